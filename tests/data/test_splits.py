"""Which files of a folder train, validate, or are left out, and what is said about it."""

import bz2
import codecs
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource, check_source, documents
from nanochat_lit.data.splits import find_split, split_of
from nanochat_lit.data.text_files import TXT_BYTES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def folder_of(tmp_path, *names):
    """A folder in which every .jsonl file has its own name as its two documents."""
    folder = tmp_path / "data"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines(f"{name} 1", f"{name} 2"), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "split"), [
    ("train.jsonl", "train"), ("train-00000-of-00002.parquet", "train"), ("TRAIN.TXT", "train"),
    ("wiki.train.tokens.txt", "train"), ("gsm8k_training_2.jsonl", "train"), ("trainset.jsonl", "train"),
    ("validation-00000-of-00001.parquet", "val"), ("c4.valid.jsonl.gz", "val"), ("val.jsonl", "val"),
    ("x-dev.jsonl", "val"), ("held_out.jsonl", "val"), ("x-hold-out.txt", "val"), ("heldout/a.txt", "val"),
    ("withheld.txt", None), ("validation_matched.jsonl", "val"),
    ("test.jsonl", "test"), ("name_test.jsonl", "test"), ("test1.txt", "test"), ("eval-set.jsonl", "test"),
    ("train_test.jsonl", "test"), ("testing.jsonl", "test"),
    ("data/test/x.parquet", "test"), ("valid/0.txt", "val"), ("train/part.txt", "train"), ("data/train-0.parquet", "train"),
    ("shard_00000.parquet", None), ("contest.txt", None), ("valley.txt", None), ("training/", "train"),
    ("latest.jsonl", None), ("evaluate.txt", None), ("constrained.txt", None), ("eval_results/x.txt", None),
])  # fmt: skip
def test_names_tell_the_split(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(("names", "train", "val", "words"), [
    (["train", "test"], ["train 1"], ["train 2"], "last 1% of train.jsonl: 1; ignored: test.jsonl (test split)"),
    (["train", "val", "test"], ["train 1", "train 2"], ["val 1", "val 2"], "with val.jsonl: 2; ignored: test.jsonl (test"),
    (["val", "zebra", "ant"], ["ant 1", "ant 2", "zebra 1", "zebra 2"], ["val 1", "val 2"], "on ant.jsonl, zebra.jsonl: 4"),
    (["a", "b", "test"], ["a 1", "a 2"], ["b 1", "b 2"], "with b.jsonl (the last by name): 2; ignored: test.jsonl"),
    (["a", "test"], ["a 1"], ["a 2"], "ignored: test.jsonl (test split)"),
    (["train", "dev", "all"], ["train 1", "train 2"], ["dev 1", "dev 2"], "ignored: all.jsonl (no split in its name)"),
    (["train-0", "train-1"], ["train-0 1", "train-0 2", "train-1 1"], ["train-1 2"], "last 1% of train-1.jsonl"),
])  # fmt: skip
def test_folders_as_the_hub_has_them(tmp_path, names, train, val, words):
    source = check_source(folder_of(tmp_path, *(f"{name}.jsonl" for name in names)))
    found = {split: [text.replace(".jsonl", "") for text in source.documents(split)] for split in ("train", "val")}
    assert found == {"train": train, "val": val}
    assert sorted(source.iterate("train")) == sorted(source.documents("train"))
    assert words in source.summary()


def test_folders_of_splits(tmp_path):
    folder = folder_of(tmp_path, "train/x.jsonl", "train/y.jsonl", "validation/x.jsonl", "test/x.jsonl", "raw/z.jsonl")
    source = check_source(folder)
    assert list(source.documents("train")) == [
        "train/x.jsonl 1",
        "train/x.jsonl 2",
        "train/y.jsonl 1",
        "train/y.jsonl 2",
    ]
    assert list(source.documents("val")) == ["validation/x.jsonl 1", "validation/x.jsonl 2"]
    assert list(source.validation()) == ["validation/x.jsonl"]
    assert source.summary().endswith("; ignored: raw/, test/x.jsonl (test split)")


def test_a_test_split_is_never_trained_on_unasked(tmp_path):
    folder = folder_of(tmp_path, "test-0.jsonl", "test-1.jsonl")
    assert len(list(documents(folder))) == 4, "but it can be measured"
    for split in ("train", "val"):
        with pytest.raises(
            UserError, match=r"no training file: by its name, test-0\.jsonl, test-1\.jsonl belongs to the test split"
        ):
            list(FileSource(folder).documents(split))
    assert list(documents(folder / "test-0.jsonl", "train")) == ["test-0.jsonl 1"], "asked for by name"
    with pytest.raises(UserError, match="validation split"):
        check_source(folder_of(tmp_path / "other", "val.jsonl"))


def test_the_validation_file_that_is_named_goes_first(tmp_path):
    source = FileSource(folder_of(tmp_path, "train.jsonl", "val.jsonl", "test.jsonl"), validation="test.jsonl")
    assert list(source.documents("val")) == ["test.jsonl 1", "test.jsonl 2"]
    assert list(source.documents("train")) == ["train.jsonl 1", "train.jsonl 2"]
    assert "ignored: val.jsonl (val split)" in source.summary()
    with pytest.raises(UserError, match="single file"):
        FileSource(tmp_path / "data" / "train.jsonl", validation="val.jsonl")


def test_everything_that_is_not_read_is_named(tmp_path):
    for name in ("a.txt", "B.TXT", "notes.md", "more.text"):
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    for name in ("paper.pdf", "data.csv", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "part2").mkdir()
    (tmp_path / "z.txt").symlink_to(tmp_path / "nothing")
    source = check_source(tmp_path)
    assert [file.path.name for file in source.files] == ["B.TXT", "a.txt", "d.txt.gz", "more.text", "notes.md"]
    assert source.split.left_out == ["data.csv", "paper.pdf", "part2/", "z.txt"]
    assert (
        "trains on B.TXT, a.txt, d.txt.gz, more.text: 4 documents; validates with notes.md (the last by name): 1"
        in (source.summary())
    )


def test_a_readme_beside_records_is_not_data(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl", "val.jsonl")
    (folder / "README.md").write_text("# The data")
    assert find_split(folder).left_out == ["README.md"]
    (folder / "book.txt").write_text("a book")
    with pytest.raises(UserError, match=r"\.jsonl and \.txt files"):
        find_split(folder)


def test_a_lone_text_file_is_cut_and_that_is_said(tmp_path):
    path = tmp_path / "input.txt"
    speech = "First Citizen:\r\nBefore we proceed any further, hear me speak.\r\n\r\n"
    path.write_bytes((speech * 60).encode())
    source = check_source(path)
    assert "".join(source.documents()) == speech.replace("\r\n", "\n") * 60
    assert "input.txt: 29 documents (text is split at blank lines); validates with the last 1% of input.txt: 1" in (
        source.summary()
    )
    path.write_bytes(speech.encode() * 30_000)
    assert len(list(check_source(path).documents("val"))) == 1
    assert max(map(len, FileSource(path).documents())) < TXT_BYTES + len(speech)
    path.write_text("one line without an end " * 30)
    assert "".join(documents(path)) == "one line without an end " * 30
    assert len(list(documents(path, "train"))) == 3


def test_an_empty_last_file_is_named(tmp_path):
    folder = folder_of(tmp_path, "a.jsonl", "b.jsonl")
    (folder / "b.jsonl").write_text("\n")
    with pytest.raises(
        UserError, match=r"b\.jsonl in .* is the validation file \(the last by name\), but has no records"
    ):
        check_source(folder)


def test_rows_without_anything_are_the_cause_that_is_named(tmp_path):
    path = tmp_path / "null.parquet"
    pq.write_table(pa.table({"text": pa.nulls(200, pa.string())}), path)
    with pytest.raises(UserError, match=r"all 200 records of '.*null\.parquet' are null or empty in 'text'"):
        check_source(path)
    path = tmp_path / "empty.jsonl"
    path.write_text(lines("") * 50)
    with pytest.raises(UserError, match=r"all 50 records of '.*empty\.jsonl'"):
        check_source(path)
    (tmp_path / "x.jsonl").write_text('{"content": "a text"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:1: no field 'text' .*; if 'content' has the text, rename it"):
        check_source(tmp_path / "x.jsonl")


def test_records_may_have_their_conversation_in_either_column(tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    kinds = {"from": pa.string(), "value": pa.string(), "role": pa.string(), "content": pa.string()}
    rows = [{"messages": None, "conversations": turns} for _ in range(9)]
    rows[3] = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "conversations": [],
    }
    rows[5] = {"messages": [], "conversations": turns}
    schema = pa.schema({name: pa.list_(pa.struct(kinds)) for name in ("messages", "conversations")})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "both.parquet")
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("both.parquet", "both.jsonl"):
        found = list(check_source(tmp_path / name, "messages").documents())
        said = [[message["content"] for message in row["messages"]] for row in found]
        assert said == [["hi", "ho"]] * 9


MARKS = {"utf-8-sig": None, "utf-16": "UTF-16", "utf-32": "UTF-32"}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("ending", [".txt", ".md", ".jsonl", ".ndjson", ".jsonl.gz", ".txt.gz"])
def test_byte_order_marks(tmp_path, encoding, ending):
    path = tmp_path / f"a{ending}"
    text = "first\r\n" if "t" in ending[1:3] or "md" in ending else lines("first\n", "second")
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    if MARKS[encoding]:
        with pytest.raises(UserError, match=rf"is {MARKS[encoding]} text; convert it to UTF-8"):
            list(documents(path))
    else:
        assert next(documents(path)) == "first\n"


def test_marks_within_a_file_and_lines_after_a_mark(tmp_path):
    path = tmp_path / "joined.jsonl"
    mark = codecs.BOM_UTF8
    path.write_bytes(mark + lines("a").encode() + mark + lines("b").encode() + b"{")
    found = documents(path)
    assert [next(found), next(found)] == ["a", "b"]
    with pytest.raises(UserError, match=r"joined\.jsonl:3: not valid JSON"):
        next(found)


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize(("ending", "pack"), [
    (".gz", gzip.compress), (".bz2", bz2.compress), (".XZ", lzma.compress),
    (".zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
])  # fmt: skip
def test_every_kind_of_compression(tmp_path, kind, ending, pack):
    text = "\n\n".join(f"paragraph {number} " + "word " * 400 for number in range(30))
    plain, packed = tmp_path / f"a{kind}", tmp_path / f"b{kind}{ending}"
    plain.write_text(text if kind == ".txt" else lines(*text.split("\n\n")))
    packed.write_bytes(pack(plain.read_bytes()))
    expected = text if kind == ".txt" else text.replace("\n\n", "")
    assert "".join(documents(packed)) == expected
    if kind == ".jsonl":
        assert list(documents(packed)) == list(documents(plain))
    packed.write_bytes(pack(plain.read_bytes())[:50])
    with pytest.raises(UserError, match="cannot be unpacked"):
        check_source(packed)


def test_a_compressed_file_of_many_row_groups_is_split(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    texts = [f"text {number}" for number in range(2500)]
    path.write_bytes(gzip.compress(lines(*texts).encode()))
    assert list(documents(path, "train")) == texts[:-25]
    assert list(documents(path, "val")) == texts[-25:]


TEXT_TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string()),
]  # fmt: skip


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_every_arrow_type_of_text(tmp_path, kind):
    texts = [f"a fine text, number {number % 7}" for number in range(20)]
    pq.write_table(pa.table({"text": pa.array(texts, kind)}), tmp_path / "a.parquet", row_group_size=8)
    source = check_source(tmp_path / "a.parquet")
    assert list(source.documents()) == texts
    assert sorted(source.iterate("train", 0, 0, 2)) == sorted(source.iterate("train", 0, 0, 2))
    assert sum(len(list(source.iterate("train", 0, rank, 2))) for rank in range(2)) == 19


def test_what_pyarrow_cannot_read_is_not_called_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y"]}), path)

    for error, words in (
        (pa.ArrowNotImplementedError("lzo"), rf"pyarrow {pa.__version__} \(lzo\)"),
        (pa.ArrowMemoryError("malloc"), "more memory than available"),
        (PermissionError(13, "Permission denied"), r"cannot be read \(Permission denied\)"),
        (pa.ArrowInvalid("bad page"), "is damaged in row group 0"),
    ):

        def refuse(*_args, error=error, **_options):
            raise error

        monkeypatch.setattr(pq.ParquetFile, "read_row_group", refuse)
        with pytest.raises(UserError, match=words):
            list(documents(path))
