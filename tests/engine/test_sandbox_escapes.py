"""Every way out of the sandbox that we know of, tried as this user and, where that is root, as an unprivileged one.

The attempts lie in `sandbox_attempts.py`; `sandbox_probe.py` tries them in a process of its own, on a copy of the sandbox's
files, because an unprivileged user may not be able to read this checkout or to start the interpreter that runs the tests.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

import nanochat_lit

HERE = Path(__file__).parent
ATTEMPTS = runpy.run_path(str(HERE / "sandbox_attempts.py"))
NOBODY = 65534


@pytest.fixture(scope="module")
def probe():
    """Run the probe as a user; its report."""
    if not sys.platform.startswith("linux"):
        pytest.skip("isolation needs Linux")
    from nanochat_lit.engine.sandbox import missing_isolation

    if (missing := missing_isolation()) is not None:
        pytest.skip(missing)
    with tempfile.TemporaryDirectory(prefix="nanochat-probe-") as name:
        base, package = Path(name), Path(nanochat_lit.__file__).parent
        base.chmod(0o755)
        for folder in ("nanochat_lit", "nanochat_lit/engine", "nanochat_lit/common"):
            (base / folder).mkdir()
            (base / folder / "__init__.py").touch()
        for source in [*package.glob("engine/sandbox*.py"), package / "common" / "errors.py"]:
            shutil.copyfile(source, base / "nanochat_lit" / source.relative_to(package))
        for source in HERE.glob("sandbox_*.py"):
            shutil.copyfile(source, base / source.name)

        def run(python: str = sys.executable, *arguments: str, **user: object) -> dict:
            bait = Path(tempfile.mkdtemp(dir=base))
            bait.chmod(0o777)
            command = [
                python,
                "-B",
                str(base / "sandbox_probe.py"),
                str(bait),
                sysconfig.get_path("purelib"),
                *arguments,
            ]
            done = subprocess.run(command, cwd=base, env={}, capture_output=True, text=True, timeout=300, **user)
            assert done.returncode == 0, done.stderr[-3000:]
            return json.loads(done.stdout)

        yield run


@pytest.fixture(scope="module")
def report(probe):
    return probe()


@pytest.mark.parametrize("name", ATTEMPTS["ATTEMPTS"])
def test_attempt_fails(report, name):
    assert report["tried"][name] != "ESCAPED"
    assert report["tried"][name].split(":")[0] in ("exception", "exit", "memory", "output", "files", "crash", "timeout")


def test_nothing_outside_was_reached_or_changed(report):
    assert report["user"] == os.getuid()
    assert (report["reached"], report["changed"]) == ([], [])


def test_every_attempt_fails_as_an_unprivileged_user(probe):
    if os.getuid() != 0:
        pytest.skip("this user is unprivileged already: the other tests were made as it; root is not to be had")
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            version = subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"], **user)
        except OSError:
            continue
        if version.returncode == 0:
            break
    else:
        pytest.skip("no Python 3.10 or newer that an unprivileged user may start")
    report = probe(python, **user)
    assert report["user"] == NOBODY
    assert set(report["tried"]) == set(ATTEMPTS["ATTEMPTS"])
    assert [name for name, outcome in report["tried"].items() if outcome == "ESCAPED"] == []
    assert (report["reached"], report["changed"]) == ([], [])


def test_attempts_are_real(probe):
    """In the open they get out, and every trap of the probe notices it: what the sandbox stops is not a typing mistake."""
    report = probe(sys.executable, "outside")
    assert len(report["tried"]) >= 90
    assert {name: outcome for name, outcome in report["tried"].items() if outcome != "ESCAPED"} == {}
    assert report["reached"] == [0, 1, 2, 3]
