"""The serving page's curl command and client program, as they stand there, against a server."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "recipes" / "docs" / "serving.md").read_text("utf-8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_command_of_the_page(server):
    (command,) = re.findall(r"```\n(curl .*?)```", PAGE, flags=re.DOTALL)
    words = shlex.split(command.replace("http://127.0.0.1:8000", server.url))
    words += ["--silent", "--show-error", "--header", "Authorization: Bearer secret"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_program_of_the_page(server, capsys):
    pytest.importorskip("openai")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "OpenAI(" in block]
    for before, after in (
        ("http://127.0.0.1:8000", server.url),
        ('api_key="none"', 'api_key="secret"'),
        ('model="quickstart"', 'model="tiny"'),
    ):
        assert code.count(before) == 1
        code = code.replace(before, after)
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")
