"""Rows of files and of the hub: the same either way, malformed ones named."""

import gzip
import json
import types

import pyarrow
import pyarrow.parquet
import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.rows import RowTask, missing_text

ROWS = [{"question": f"What is {number}?", "answer": str(number)} for number in range(20)]


class Rows(RowTask):
    """A task whose conversations are its records."""

    def _problem(self, row):
        return missing_text(row, "question", "answer")

    def _conversation(self, row):
        return row


def load(path, **changes):
    return Rows(path, **{"hub": "some/data", "split": "train", "seed": None, **changes})


def write(path, rows=ROWS):
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


@pytest.fixture
def datasets():
    """Imported here, because it takes a second that other tests need not wait for."""
    import datasets

    return datasets


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("seed", [None, 7])
def test_files_and_the_hub_give_the_same_rows(name, seed, tmp_path, monkeypatch, datasets):
    asked = []

    def load_dataset(*arguments, **keywords):
        asked.append((arguments, keywords))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    local = load(write(tmp_path / name), seed=seed)
    hub = load(None, seed=seed, subset="main", split="test")
    assert list(local) == list(hub)
    assert (list(local) == ROWS) is (seed is None)
    assert sorted(local, key=ROWS.index) == ROWS
    assert asked == [(("some/data", "main"), {"split": "test"})]


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch, datasets):
    def load_dataset(*arguments, **keywords):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"some/data \(train\).*ConnectionError: no route to host.*local file: path"):
        load(None)


class BusyError(Exception):
    """As the hub's client raises for what a server answers."""

    def __init__(self, status):
        super().__init__(f"Server error {status}")
        self.response = types.SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("statuses", "pauses", "is_read"),
    [([503, 429], [1, 2], True), ([500] * 5, [1, 2, 4, 8], False), ([404], [], False)],
)
def test_a_hub_that_is_busy_is_asked_again(statuses, pauses, is_read, monkeypatch, datasets):
    waiting, waited = list(statuses), []

    def load_dataset(*arguments, **keywords):
        if waiting:
            raise BusyError(waiting.pop(0))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("time.sleep", waited.append)
    if is_read:
        assert list(load(None)) == ROWS
    else:
        with pytest.raises(UserError, match=f"Server error {statuses[0]}"):
            load(None)
    assert waited == pauses


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        (b'{"question": "\xff", "answer": "1"}', "not valid JSON .*utf-8"),
        (b'{"question": "x"}', "no field 'answer' \\(fields: 'question'\\)"),
        (b'{"question": " ", "answer": "1"}', "'question' must be text, got ' '"),
        (b'{"question": "x", "answer": 1}', "'answer' must be text, got 1"),
    ],
)
def test_a_malformed_line_is_named(line, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(UserError, match=f"rows.jsonl:3: .*{message}"):
        load(path)


def test_a_malformed_row_of_parquet_is_named(tmp_path):
    with pytest.raises(UserError, match=r"rows\.parquet, record 1: 'answer' must be text"):
        load(write(tmp_path / "rows.parquet", [ROWS[0], {"question": "x", "answer": ""}]))


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(UserError, match=name):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["broken.jsonl.gz", "broken.parquet"])
def test_a_broken_file_is_named(name, tmp_path):
    whole = write(tmp_path / name.replace("broken", "whole")).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=name):
        load(tmp_path / name)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.jsonl: has no records"):
        load(tmp_path / "empty.jsonl")
