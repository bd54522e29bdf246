"""Compiled code is loaded only if it is this user's and whole; otherwise it is built again, and that is said."""

import os
from pathlib import Path

import pytest

from nanochat_lit.common import compilers as module
from nanochat_lit.common.compilers import kept_code


class Builder:
    num_built = 0

    def __call__(self, path: Path) -> None:
        self.num_built += 1
        path.write_bytes(b"code" * 1000)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library that was built once."""
    module._own_folder.cache_clear()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    build = Builder()
    path = kept_code(tmp_path / "cache" / "libraries" / "x-1.so", build)
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o700)
    yield path, build
    module._own_folder.cache_clear()


def test_what_is_whole_is_used_again_without_a_word(library, capfd):
    path, build = library
    assert kept_code(path, build) == path
    assert build.num_built == 1
    assert capfd.readouterr().err == ""


DAMAGE = {
    "half": lambda path: os.truncate(path, 2000),
    "empty": lambda path: os.truncate(path, 0),
    "other": lambda path: path.write_bytes(b"edoc" * 1000),
    "writable": lambda path: path.chmod(0o777),
    "no checksum": lambda path: path.with_suffix(".sha256").unlink(),
    "binary checksum": lambda path: path.with_suffix(".sha256").write_bytes(b"\xff"),
    "dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_built_again_with_a_line(library, damage, capfd):
    path, build = library
    DAMAGE[damage](path)
    assert kept_code(path, build).read_bytes() == b"code" * 1000
    assert build.num_built == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert kept_code(path, build) == path
    assert build.num_built == 2


def test_what_belongs_to_another_user_is_not_loaded(library, monkeypatch, capfd):
    path, build = library
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:  # what root has written may be used by everyone
        os.chown(path, 12345, 12345)
        os.chown(path.parent, 12345, 12345)
    module._own_folder.cache_clear()
    own = kept_code(path, build)
    assert own.parent != path.parent
    assert build.num_built == 2
    assert "belongs to another user" in capfd.readouterr().err


def test_a_folder_that_others_can_write_to_is_left_alone(library, capfd):
    path, build = library
    path.parent.chmod(0o777)
    module._own_folder.cache_clear()
    assert kept_code(path, build).parent != path.parent
    assert "can be written by other users" in capfd.readouterr().err
