"""Files as people have them: damaged, huge, binary, compressed, doubled, changed while they are read."""

import errno
import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.common import paths
from nanochat_lit.common.errors import UserError
from nanochat_lit.data import records
from nanochat_lit.data.shards import FileSource, check_source, documents

FINE = [f"a fine text, number {number}" for number in range(30)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_parquet(path, texts, kind=None, group=8):
    pq.write_table(pa.table({"text": pa.array(texts, kind or pa.string())}), path, row_group_size=group)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


BINARY = "\x00\x01\x02PNG\x1a" * 300


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_binary_and_huge_rows_are_passed_over_and_reported(tmp_path, kind, caplog, monkeypatch):
    monkeypatch.setattr(records, "MAX_DOC_CHARS", 100_000)
    texts = [*FINE[:10], BINARY, None, *FINE[10:20], "x" * 100_001, "", BINARY, *FINE[20:]]
    write = {"parquet": write_parquet, "jsonl": write_jsonl}[kind]
    write(tmp_path / f"a.{kind}", texts)
    with caplog.at_level(logging.WARNING):
        source = FileSource(tmp_path / f"a.{kind}")
        assert list(source.documents()) == FINE
        assert list(source.documents()) == FINE
    assert source.num_skipped == 10
    where = [r"a.parquet, row 10:", r"a.parquet, row 22:"] if kind == "parquet" else ["a.jsonl:11:", "a.jsonl:23:"]
    assert where[0] in caplog.messages[0]
    assert "looks like binary data" in caplog.messages[0]
    assert where[1] in caplog.messages[1]
    assert "longer than 100,000 characters" in caplog.messages[1]
    assert len(caplog.messages) == 2, "once a file and reason"


@pytest.mark.slow
def test_a_row_of_100_megabytes(tmp_path):
    write_parquet(tmp_path / "a.parquet", [*FINE, "word " * 20_000_000])
    assert list(documents(tmp_path / "a.parquet")) == FINE


def test_bytes_that_are_text_are_read_and_others_are_not(tmp_path, caplog):
    rows = [FINE[0].encode(), b"\xff\xfe no text", "ünï".encode()]
    write_parquet(tmp_path / "binary.parquet", rows, pa.binary())
    assert list(documents(tmp_path / "binary.parquet")) == [FINE[0], "ünï"]
    assert "row 1: 'text' is not UTF-8 text" in caplog.text
    # A column that claims to be text and is not: a writer without checks.
    claimed = pa.Array.from_buffers(pa.string(), 3, pa.array(rows, pa.binary()).buffers())
    pq.write_table(pa.table({"text": claimed}), tmp_path / "claimed.parquet")
    assert list(documents(tmp_path / "claimed.parquet")) == [FINE[0], "ünï"]


def test_text_in_any_script_and_with_escapes_is_no_binary_data(tmp_path):
    texts = ["日本語のテキスト" * 50, "\x1b[31mred\x1b[0m " * 100, "a\tb\r\n" * 50, "مرحبا " * 40, "\x00" * 5]
    write_parquet(tmp_path / "a.parquet", texts)
    assert list(documents(tmp_path / "a.parquet")) == texts


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_jsonl_is_read_by_row(tmp_path, ending, monkeypatch):
    texts = [f"row {number} ünï" for number in range(2500)]
    lines = b"\n".join(json.dumps({"text": text, "id": 1}).encode() for text in texts) + b"\n\n"
    path = tmp_path / f"a.jsonl{ending}"
    half = lines.index(b"row 1000")
    parts = [lines[:half], lines[half:]]  # two frames one after the other, as parallel compressors write
    if ending == ".gz":
        path.write_bytes(b"".join(map(gzip.compress, parts)))
    else:
        path.write_bytes(b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in parts))
    source = check_source(tmp_path / path.name)
    assert list(source.documents()) == texts
    assert sorted(source.iterate("train", 0, 1, 3)) == sorted(set(texts[:-25]) & set(source.iterate("train", 0, 1, 3)))
    monkeypatch.setattr("nanochat_lit.data.text_files.CompressedFile._unpack", None)
    assert list(documents(path)) == texts, "unpacked once"


def test_errors_in_compressed_files_name_the_line_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "fine"}\n\n{"body": 1}\n'))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:3: no field 'text' \(fields: 'body'\)"):
        check_source(path)
    path.write_bytes(gzip.compress(b'{"text": "fine"}\n' * 1000)[:40])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz' cannot be unpacked"):
        check_source(path)
    assert list((tmp_path / "cache").rglob("*.parquet*")) == []


def test_no_space_for_the_unpacked_copy(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n' * 5))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be unpacked into .*No space left.*XDG_CACHE_HOME"):
        check_source(tmp_path / "a.jsonl.gz")
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.suffix in (".parquet", ".tmp")] == []


def test_duplicate_files(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"text {name}"])
    check_source(tmp_path)
    assert caplog.messages == []
    write_jsonl(tmp_path / "b.jsonl", ["text a"])
    check_source(tmp_path)
    assert "b.jsonl' has the same content as" in caplog.text
    write_jsonl(tmp_path / "c.jsonl", ["text a"])
    with pytest.raises(UserError, match=r"c\.jsonl', which is for validation, has the same content as '.*a\.jsonl'"):
        check_source(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_a_folder_that_changes_during_the_run(tmp_path, kind):
    def write(name, texts):
        if kind == "txt":
            (tmp_path / name).write_text("\n".join(texts))
        else:
            {"parquet": write_parquet, "jsonl": write_jsonl}[kind](tmp_path / name, texts)

    for number in range(3):
        write(f"{number}.{kind}", FINE[number * 10 : number * 10 + 10])
    source = check_source(tmp_path)
    before = list(source.documents("train"))
    write(f"0a.{kind}", ["a file that comes later"])
    assert list(source.documents("train")) == before
    write(f"1.{kind}", [text.upper() + "!" for text in FINE])
    with pytest.raises(UserError, match=rf"1\.{kind}' has changed while it was in use"):
        list(source.documents("train"))
    (tmp_path / f"1.{kind}").unlink()
    with pytest.raises(UserError, match=rf"1\.{kind}' cannot be read \(No such file"):
        list(source.documents("train"))


def test_the_validation_file_can_be_named(tmp_path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"text {name}"])
    source = FileSource(tmp_path, validation="b.jsonl")
    assert list(source.documents("val")) == ["text b"]
    assert list(source.documents("train")) == ["text a", "text c"]
    assert list(source.validation()) == ["b.jsonl"]
    with pytest.raises(UserError, match=r"no validation file 'x' .*\(files: a\.jsonl, b\.jsonl, c\.jsonl\)"):
        FileSource(tmp_path, validation="x")
