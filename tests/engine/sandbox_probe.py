"""Tries every way out of the sandbox as the user this runs as, and prints what came of it as JSON.

    python sandbox_probe.py FOLDER PACKAGES [outside]

FOLDER is writable by this user. With `outside` the programs run without a sandbox: then they do get out.
"""

import concurrent.futures
import importlib
import json
import os
import socket
import sys
import zipfile
from pathlib import Path

from sandbox_attempts import ALONE, ATTEMPTS, NOT_OUTSIDE, PREAMBLE, TOGETHER

from nanochat_lit.engine import sandbox, sandbox_worker

LIMITS = sandbox.SandboxLimits(timeout_s=60, cpu_s=1)
TRY_ALL = """
for name, body in GROUP.items():
    try:
        exec(body, dict(globals()))
        print(name, 'ESCAPED', sep='\\t', flush=True)
    except BaseException as error:
        print(name, 'exception: ' + repr(error), sep='\\t', flush=True)
"""


def bait(folder: Path) -> dict[str, str]:
    """Lay out files outside the sandbox; their state."""
    (folder / "canary").write_bytes(b"alive")
    (folder / "canary.py").write_bytes(b"x = 1")
    (folder / "canary.so").write_bytes(b"")
    (folder / "outside_module.py").write_bytes(b"x = 1")
    for i in range(2):
        (folder / f"canary.spare{i}").write_bytes(b"alive")
    with zipfile.ZipFile(folder / "canary.zip", "w") as archive:
        archive.writestr("x.py", "x = 1")
    return state(folder)


def state(folder: Path) -> dict[str, str]:
    """What the files hold, their modes and times, by name."""
    files = sorted(folder.iterdir())
    return {
        f.name: f"{f.read_bytes()!r} {f.stat().st_mode} {f.stat().st_mtime_ns}" for f in files if f.name != "socket"
    }


def listeners(folder: Path) -> list[socket.socket]:
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", tcp.getsockname()[1]))
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "socket"))
    abstract.bind(f"\0nanochat-sandbox-{os.getpid()}")
    for each in (unix, abstract):
        each.listen()
    return [tcp, udp, unix, abstract]


def was_reached(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
    except BlockingIOError:
        return False
    return True


def in_the_open(head: str, folder: Path) -> dict[str, str]:
    """Every attempt in a forked child; what comes to its end, or becomes another program that does, has status 0."""
    for module in (
        "asyncio",
        "ctypes",
        "http.client",
        "multiprocessing.shared_memory",
        "sqlite3",
        "subprocess",
        "tempfile",
    ):
        importlib.import_module(module)  # once, instead of in every child
    programs = {name: head + body for name, body in ATTEMPTS.items() if name not in NOT_OUTSIDE}
    tried = {}
    for i, (name, program) in enumerate(programs.items()):
        child = os.fork()
        if child == 0:
            os.setsid()
            (folder / str(i)).mkdir()
            os.chdir(folder / str(i))
            Path("program.py").touch()
            os.dup2(os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT), 1), 2)
            try:
                exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
            except BaseException as error:  # noqa: BLE001 - any of them means that it did not get out
                os.write(1, repr(error).encode())
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tried[name] = "ESCAPED" if status == 0 else f"{status} {(folder / str(i) / 'output').read_text()[-200:]}"
    return tried


def in_the_sandbox(head: str) -> dict[str, str]:
    """How each attempt ended: "ESCAPED", or what stopped it."""

    def alone(body: str) -> str:
        result = sandbox.run_python(f"{head}{body}\nprint('ESCAPED')\nprint('ESCAPED', file=sys.stderr)", LIMITS)
        if result.ok or "ESCAPED" in result.stdout + result.stderr:
            return "ESCAPED"
        return f"{result.error}: {result.message}"

    def together(group: dict[str, str]) -> dict[str, str]:
        result = sandbox.run_python(f"{head}GROUP = {group!r}\n{TRY_ALL}", LIMITS)
        lines = [line.split("\t") for line in result.stdout.splitlines()]
        return dict(lines) if result.ok else {}

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        tried = dict(zip(ALONE, pool.map(alone, ALONE.values()), strict=True))
        for outcomes in pool.map(together, TOGETHER.values()):
            tried |= outcomes
    return tried


def main() -> None:
    folder, packages, outside = Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["outside"]
    os.environ["SANDBOX_SECRET"] = "secret"
    inherited, _ = os.pipe()
    os.set_inheritable(inherited, True)
    before, sockets = bait(folder), listeners(folder)
    known = {
        "CANARY": str(folder / "canary"),
        "SOCKET": str(folder / "socket"),
        "ABSTRACT": sockets[3].getsockname(),
        "PORT": sockets[0].getsockname()[1],
        "PARENT": os.getpid(),
        "PACKAGES": packages,
        "WORKER": sandbox_worker.__file__,
        "INHERITED": inherited,
    }
    head = PREAMBLE + "".join(f"{name} = {value!r}\n" for name, value in known.items())
    if outside:
        (folder / "work").mkdir()
        tried = in_the_open(head, folder / "work")
    else:
        tried = in_the_sandbox(head)
    report = {
        "user": os.getuid(),
        "tried": tried,
        "reached": [i for i, listener in enumerate(sockets) if was_reached(listener)],
        "changed": [] if outside else sorted(set(before.items()) ^ set(state(folder).items())),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
