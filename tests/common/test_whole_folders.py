"""Folders that appear whole, paths that begin with ~, and the lock of a run folder."""

import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import LOCK_FILE, expand_home, run_lock, user_cache, whole_folder

KNOWN = {"a.txt", "b"}


def write(target: Path, text: str = "new") -> None:
    with whole_folder(target, KNOWN, "a test") as folder:
        (folder / "a.txt").write_text(text)
        (folder / "a.txt").chmod(0o600)
        (folder / "b").mkdir()
        (folder / "b" / "c.txt").write_text(text)


def test_a_folder_appears_whole_and_replaces_an_older_one(tmp_path):
    target = tmp_path / "new" / "target"
    for text in ("first", "second"):
        write(target, text)
        assert (target / "b" / "c.txt").read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((target / "a.txt").stat().st_mode) == 0o666 & ~umask, "other users can read it"


def test_an_error_leaves_the_older_folder(tmp_path):
    write(tmp_path / "target", "old")

    def fail():
        with whole_folder(tmp_path / "target", KNOWN, "a test") as folder:
            (folder / "a.txt").write_text("half")
            (folder / "none" / "b.txt").write_text("")

    with pytest.raises(FileNotFoundError) as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "target"), "the message names what was asked for"
    assert (tmp_path / "target" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


KILLED = """
import os, signal, sys
from nanochat_lit.common.paths import whole_folder
with whole_folder(sys.argv[1], {"a.txt"}, "a test") as folder:
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_no_half_and_the_next_removes_its_rest(tmp_path):
    target = tmp_path / "target"
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False, timeout=60)
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_foreign_folders_and_files_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains notes.txt, which is not part of a test"):
        write(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_renamed_is_filled(tmp_path, monkeypatch):
    target = tmp_path / "mounted"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    for text in ("first", "second"):
        write(target, text)
        assert sorted(path.name for path in target.iterdir()) == ["a.txt", "b"]
        assert (target / "b" / "c.txt").read_text() == text


def test_home_is_the_same_everywhere(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    value = {"a": "~/x", "b": ["~", "./~", 3], "c": "~nobody-of-that-name/x"}
    home = "/home/somebody"
    assert expand_home(value) == {"a": f"{home}/x", "b": [home, "./~", 3], "c": "~nobody-of-that-name/x"}


def test_a_user_without_home_and_name(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(os.getuid()) in user_cache().name
    with pytest.raises(UserError, match="HOME is not set"):
        expand_home("~/x")


def _hold(folder: Path, ready, done) -> None:
    with run_lock(folder, "nanochat-lit fit"):
        ready.set()
        done.wait(60)


def test_one_process_holds_a_run_folder(tmp_path):
    folder = tmp_path / "runs" / "x"
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder, ready, done))
    holder.start()
    assert ready.wait(60)
    with (
        pytest.raises(UserError, match=rf"in use by nanochat-lit fit, pid {holder.pid} on "),
        run_lock(folder, "nanochat-lit fit"),
    ):
        pass
    holder.kill()
    holder.join(60)
    with run_lock(folder, "nanochat-lit fit"), run_lock(folder, "nanochat-lit fit"):  # the same process may do so twice
        assert (folder / LOCK_FILE).is_file()
    assert not (folder / LOCK_FILE).exists()


def test_a_lock_leaves_no_folders_behind(tmp_path):
    with run_lock(tmp_path / "runs" / "x", "nanochat-lit fit"):
        pass
    assert list(tmp_path.iterdir()) == []
