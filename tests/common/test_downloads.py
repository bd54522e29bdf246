"""What every download has, and the lock that lets one process download at a time; see also data/test_hub_files.py."""

import itertools
import sys
import threading
import time
import types

import pytest

from nanochat_lit.common.downloads import download, locked
from nanochat_lit.common.errors import UserError


def test_no_server_and_no_scheme(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UserError, match="cannot be downloaded"):
        download("http://127.0.0.1:9/none", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="neither http nor https"):
        download("file:///etc/passwd", tmp_path / "file")


def test_another_file_is_not_kept(fault_server, tmp_path):
    (fault_server.folder / "file").write_bytes(b"a bundle " * 9)
    (tmp_path / "file").write_text("the old one")
    pauses = []
    with pytest.raises(UserError, match=r"sha256 \w+, not 00.*tried 5 times"):
        download(f"{fault_server.url}/file", tmp_path / "file", "00" * 32, pause=pauses.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "served"]
    assert (tmp_path / "file").read_text() == "the old one"


def test_one_at_a_time_is_in_a_lock(tmp_path):
    """Threads stand for processes: each opens the file itself, and that is what the lock goes by."""
    spans = []

    def hold():
        with locked(tmp_path / "lock"):
            start = time.monotonic()
            time.sleep(0.05)
            spans.append((start, time.monotonic()))

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans) == 3
    assert all(after[0] >= before[1] for before, after in itertools.pairwise(spans))


def test_the_lock_where_there_is_no_fcntl(tmp_path, monkeypatch):
    """Windows' call gives up after ten seconds and is asked again."""
    answers = [OSError("held"), OSError("held"), None]

    def locking(number, mode, num_bytes):
        assert (mode, num_bytes) == (1, 1)
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_LOCK=1))
    with locked(tmp_path / "lock"):
        assert answers == []
