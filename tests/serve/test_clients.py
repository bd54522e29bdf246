"""Other people's clients of OpenAI's API, each in an environment of its own: chat, stream, a JSON schema, a tool."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

pytestmark = [pytest.mark.slow]

PROGRAMS = Path(__file__).with_name("clients")
PYTHON = {"openai": ["openai>=3"], "langchain": ["langchain-openai>=1"], "litellm": ["litellm>=1.80"]}
JAVASCRIPT = {"openai": ["openai@6"], "ai_sdk": ["ai@6", "@ai-sdk/openai-compatible@2"]}
CITY = {"type": "string", "enum": ["Paris", "Köln"]}
TRIP = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 30}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CITY_ONLY = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": CITY_ONLY}}


def check(command, server, folder):
    """Runs a client's program and looks at what it received."""
    words = [*map(str, command), f"{server.url}/v1", json.dumps(TRIP), json.dumps(TOOL)]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it downloads prices otherwise
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **quiet})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = server.chat(temperature=0, max_tokens=20)[1]["choices"][0]["message"]["content"]
    assert found["chat"] == found["stream"] == expected
    jsonschema.validate(found["json"], TRIP)
    for name, arguments in (found["call"], found["streamed_call"]):
        assert name == "get_weather"
        jsonschema.validate(arguments, {**CITY_ONLY, "additionalProperties": False})
    assert found["call"] == found["streamed_call"]
    assert isinstance(found["after"], str)


@pytest.fixture(scope="module")
def roomy_server(start_server, make_export):
    return start_server("--api_key", "secret", model=make_export(sequence_len=1024))


@pytest.mark.parametrize("name", PYTHON)
def test_python(make_environment, roomy_server, tmp_path, name):
    programs = make_environment(name, PYTHON[name])
    check([programs / "python", PROGRAMS / f"{name}_client.py"], roomy_server, tmp_path)


@pytest.mark.parametrize("name", JAVASCRIPT)
def test_javascript(install_here, roomy_server, tmp_path, name):
    if shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    install_here(["npm", "install", "--no-audit", "--no-fund", *JAVASCRIPT[name]], tmp_path)
    program = shutil.copy(PROGRAMS / f"{name}_client.mjs", tmp_path)  # node looks for packages beside the program
    check(["node", program], roomy_server, tmp_path)
