"""Prepared shards: the same rows as from text, by any readers; damage, other tokenizers and full disks are said."""

import errno
import itertools
import json
import os
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nanochat_lit.common import paths
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.data.prepared import HEADER_BYTES, LIST_FILE, PreparedFile, is_prepared, prepare, read_header
from nanochat_lit.data.shards import FileSource, check_source, documents
from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.evaluation.bpb import document_batches
from nanochat_lit.tokenizer import Tokenizer

T = 32


def text_of(index):
    return None if index % 13 == 5 else f"story {index}: " + "the red boat sails on " * (index % 9)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text_of(index) or "" for index in range(50)], vocab_size=320)


@pytest.fixture(scope="module", params=["parquet", "jsonl", "one_file"])
def text(request, tmp_path_factory):
    """Three files of rows, some of them null, in blocks of 16 or of one; or a single file."""
    folder = tmp_path_factory.mktemp(request.param)
    for number, name in enumerate(["a", "b", "c"][: 1 if request.param == "one_file" else 3]):
        rows = [text_of(index) for index in range(100 * number, 100 * number + 90)]
        if request.param == "jsonl":
            (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
        else:
            table = pyarrow.table({"text": pyarrow.array(rows, pyarrow.string())})
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=16)
    return folder


@pytest.fixture(scope="module")
def prepared(text, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare(FileSource(text), tokenizer, folder, num_threads=2)
    return folder


def stream(path, tokenizer, **options):
    settings = {"sequence_len": T, "micro_batch_size": 4, "buffer_size": 20, "long_documents": "split", **options}
    return PretrainStream(texts=path, tokenizer=tokenizer, **settings)


def rows(batches, count):
    return [batch["inputs"].tolist() + batch["targets"].tolist() for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("options", [{}, {"seed": 3, "rank": 1, "world_size": 3}, {"split": "val"}])
@pytest.mark.parametrize("long_documents", ["split", "crop"])
def test_the_rows_are_those_of_the_text(text, prepared, tokenizer, options, long_documents):
    options = {**options, "long_documents": long_documents}
    expected = rows(stream(text, tokenizer, **options), 120)
    assert expected
    assert rows(stream(prepared, tokenizer, **options), 120) == expected


def test_validation_is_the_same(text, prepared, tokenizer):
    def batches(path, column):
        return [
            (batch["inputs"].tolist(), batch["targets"].tolist())
            for batch in document_batches(FileSource(path, column).documents("val"), tokenizer, T, 4)
        ]

    assert batches(prepared, "tokens") == batches(text, "text")


@pytest.mark.parametrize("num_batches", [3, 70])
def test_workers_and_their_resume(text, prepared, tokenizer, num_batches):
    expected = rows(iter(ResumableLoader(stream(text, tokenizer), 2)), num_batches + 20)
    loader = ResumableLoader(stream(prepared, tokenizer), 2)
    batches = iter(loader)
    head = rows(batches, num_batches)
    again = ResumableLoader(stream(prepared, tokenizer), 2)
    again.seek(loader.position())
    assert head + rows(iter(again), 20) == expected
    assert 0 <= loader.lost < 0.15


def test_a_stopped_preparation_goes_on(text, tokenizer, tmp_path):
    whole = tmp_path / "whole"
    prepare(FileSource(text), tokenizer, whole)
    names = json.loads((whole / LIST_FILE).read_text())["shards"]
    (whole / LIST_FILE).unlink()
    with pytest.raises(UserError, match="was not finished"):
        stream(whole, tokenizer)
    last = whole / names[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-8])
    (whole / f".{names[-1]}.x.tmp").write_bytes(b"half")
    stamps = {name: (whole / name).stat().st_mtime_ns for name in names[:-1]}
    written = []
    prepare(FileSource(text), tokenizer, whole, report=lambda path, _, is_new: written.append((path.name, is_new)))
    assert written == [*((name, False) for name in names[:-1]), (names[-1], True)]
    assert stamps == {name: (whole / name).stat().st_mtime_ns for name in names[:-1]}
    assert last.read_bytes() == content
    assert not list(whole.glob(".*.tmp"))


def test_a_changed_text_file_is_prepared_again(tokenizer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the boat {name}")
    prepare(FileSource(tmp_path), tokenizer, tmp_path / "out")
    (tmp_path / "a.txt").write_text("the red boat")
    written = []
    prepare(FileSource(tmp_path), tokenizer, tmp_path / "out", report=lambda *about: written.append(about[2]))
    assert written == [True, False]


def test_damage_is_said(prepared, tokenizer, tmp_path):
    file = sorted(prepared.glob("*.tokens"))[0]
    content = file.read_bytes()
    for name, data, message in (
        ("short", content[:-1], "is incomplete .* expected"),
        ("empty", b"", "is not a prepared shard"),
        ("foreign", b"PAR1" + content[4:], "is not a prepared shard"),
        ("newer", content[:8] + b"\x09" + content[9:], "format version 9"),
    ):
        path = tmp_path / f"{name}.tokens"
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_header(path)
    flipped = bytearray(content)
    flipped[HEADER_BYTES + 5] ^= 1
    path = tmp_path / "flipped.tokens"
    path.write_bytes(flipped)
    PreparedFile(path).check(thorough=False)
    with pytest.raises(UserError, match="checksum differs"):
        PreparedFile(path).check(thorough=True)
    open_file = PreparedFile(file)
    assert next(open_file.read(range(1))) is not None
    assert len(pickle.dumps(open_file)) < 2000  # a worker gets the name, not the content
    check_source(prepared, "tokens")


def test_other_tokenizers_and_other_uses(text, prepared, tokenizer, tmp_path):
    other = Tokenizer.train([text_of(index) or "" for index in range(50)], vocab_size=300)
    with pytest.raises(UserError, match=r"prepared with another tokenizer .*use '.*tokenizer'"):
        stream(prepared, other)
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        prepare(FileSource(text), other, prepared)
    assert rows(stream(prepared, tokenizer), 1)  # untouched
    with pytest.raises(UserError, match="contains prepared token ids"):
        next(documents(prepared))
    assert not is_prepared(text)


def test_a_missing_shard(prepared, tokenizer, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in prepared.glob("*.*"):
        if path.is_file():
            os.link(path, copy / path.name)
    gone = sorted(copy.glob("*.tokens"))[-1]
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name}' is missing"):
        stream(copy, tokenizer)


def test_a_full_disk_leaves_what_was_finished(text, tokenizer, tmp_path, monkeypatch):
    out = tmp_path / "out"
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 4:  # two files of the tokenizer, a shard, and now
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(paths.os, "fsync", full)
    if len(FileSource(text).files) == 1:
        calls.append(None)
    with pytest.raises(UserError, match=r"No space left on device.* bytes are free there: free disk space"):
        prepare(FileSource(text), tokenizer, out)
    names = {path.name for path in out.iterdir()}
    assert LIST_FILE not in names
    assert not [name for name in names if name.endswith(".tmp")]
    for path in out.glob("*.tokens"):
        PreparedFile(path).check(thorough=True)
    monkeypatch.undo()
    prepare(FileSource(text), tokenizer, out)
    assert rows(stream(out, tokenizer), 3) == rows(stream(text, tokenizer), 3)


def test_large_vocabularies_take_four_bytes(tmp_path):
    from nanochat_lit.data.prepared import token_dtype, write_shard

    assert (token_dtype(2**16), token_dtype(2**16 + 1)) == (np.uint16, np.uint32)
    document = np.array([0, 70_000, 2**20 - 1], np.uint32)
    write_shard(tmp_path / "a.tokens", [document, None], [(0, 2)], np.dtype(np.uint32), ("ab" * 32, "cd" * 32))
    file = PreparedFile(tmp_path / "a.tokens")
    assert [item if item is None else item.tolist() for item in file.read([1, 0])] == [None, document.tolist()]
    assert (file.header.tokenizer.hex(), file.blocks()) == ("ab" * 32, [(0, 2)])
