import json
import math
import stat

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, write_json


def test_the_name_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("grün")
        assert not path.exists()
    assert path.read_text("utf-8") == "grün"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail_half_way():
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    ordinary, atomic = tmp_path / "a", tmp_path / "b"
    ordinary.write_text("x")
    with atomic_write(atomic, "w") as file:
        file.write("x")
    assert stat.S_IMODE(atomic.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_append_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a'"), atomic_write(tmp_path / "x", "a"):
        pass


def test_json_round_trip(tmp_path):
    obj = {"text": "▁ü", "numbers": [1, 2.5, None], "deep": {"x": True}}
    write_json(tmp_path / "x.json", obj)
    assert read_json(tmp_path / "x.json") == obj == json.loads((tmp_path / "x.json").read_text("utf-8"))


def test_nan_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"{'a': 1}", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_unreadable_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"settings\.json: {message}") as error:
        read_json(path)
    assert len(str(error.value).splitlines()) <= 2
