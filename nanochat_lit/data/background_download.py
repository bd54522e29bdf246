"""A process that downloads the shards which training does not need yet, and ends with the process that started it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat_lit.common.downloads import locked
from nanochat_lit.data.hub import DataSet, RemoteFile
from nanochat_lit.data.shard_folder import FAILED, LOCK, ShardFolder, whole_file_check

_STOP_S = 10.0


class BackgroundDownload:
    """The process, seen from the one that started it.

    Args:
        folder: Where the files go.
        source: Where they come from.
        files: Which, in the order of need.
        connections: Downloads at the same time.
    """

    def __init__(self, folder: Path, source: DataSet, files: Sequence[RemoteFile], connections: int) -> None:
        plan = {
            "folder": str(folder.resolve()),
            "source": asdict(source),
            "files": [asdict(file) for file in files],
            "connections": connections,
        }
        package_parent = str(Path(__file__).resolve().parents[2])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nanochat_lit.data.background_download"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C lets the run write its checkpoint first, which may need data
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan) + "\n")
        self._process.stdin.flush()  # and left open: its end tells the process that we have ended
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has the lock now, so that who waits for a file knows that it is coming

    def stop(self) -> None:
        """End the process; what has arrived stays, also in parts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def main() -> None:
    """Download by the plan on stdin; end when stdin does."""
    plan = json.loads(sys.stdin.readline())

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    files = [RemoteFile(**file) for file in plan["files"]]
    shards = ShardFolder(plan["folder"])

    def ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    try:
        with locked(shards.folder / LOCK, wait=False) as is_ours:
            if is_ours:
                _fetch(plan, shards, files, ready)
                return
        ready()  # another run is downloading into this folder
        with locked(shards.folder / LOCK):
            _fetch(plan, shards, files, lambda: None)
    except BaseException as error:
        shards.say_failed(str(error))
        raise


def _fetch(plan: dict[str, Any], shards: ShardFolder, files: list[RemoteFile], ready: Callable[[], None]) -> None:
    (shards.folder / FAILED).unlink(missing_ok=True)
    ready()
    source = DataSet(**plan["source"])
    shards.fetch(source, files, whole_file_check(files), connections=plan["connections"])


if __name__ == "__main__":
    main()
