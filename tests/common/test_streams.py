"""Standard streams that are closed, or of an encoding that lacks characters."""

import os
import subprocess
import sys

import pytest

PROGRAM = r"""
import os, sys
from nanochat_lit.common.streams import prepare_streams
prepare_streams()
print("gr\u00fcn \u2713 \U0001f600 \udcff")
print("to stderr", file=sys.stderr)
file = open(sys.argv[1], "w")
assert file.fileno() > 2, "a file must not take the place of a standard stream"
file.write(sys.stdin.read())
sys.stdout.flush()
"""


def run(tmp_path, shell: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = f"{sys.executable} {program} {tmp_path / 'out.txt'} {shell}"
    path = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=path | environment, timeout=60, check=False)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    done = run(tmp_path, f"{closed} " if "<" in closed else f"{closed} < /dev/null")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_encodings(encoding, tmp_path):
    done = run(tmp_path, "< /dev/null", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "gr" in done.stdout.decode(encoding, "replace")


def test_a_terminal_that_has_gone(tmp_path):
    """What is printed is lost; the program runs to its end."""
    program = tmp_path / "program.py"
    lines = ["import sys", "from nanochat_lit.common.streams import prepare_streams", "prepare_streams()"]
    lines += [
        "assert sys.stdout.isatty() and sys.stderr.isatty()",
        "print('ready', flush=True)",
        "sys.stdin.readline()",
    ]
    lines += ["print('lost')", "print('lost', file=sys.stderr)", f"open({str(tmp_path / 'end')!r}, 'w').close()"]
    program.write_text("\n".join(lines))
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert os.read(ours, 100) == b"ready\r\n"
    os.close(ours)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "end").exists()
