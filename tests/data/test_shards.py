import json
import pickle
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource, check_source, documents


def write_parquet(path, texts, row_group_size=7, column="text"):
    pq.write_table(pa.table({column: texts}), path, row_group_size=row_group_size)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def chat(text):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]}


TEXTS = [f"document {index}\nünï" for index in range(40)]


def write_corpus(folder, kind, texts=TEXTS, num_files=3):
    """`texts` over `num_files` files, in order of their names."""
    folder.mkdir(exist_ok=True)
    per_file = -(-len(texts) // num_files)
    for number in range(num_files):
        part = texts[number * per_file : (number + 1) * per_file]
        path = folder / f"shard_{number:05d}{kind}"
        if kind == ".parquet":
            write_parquet(path, part)
        elif kind == ".jsonl":
            write_jsonl(path, [{"text": text} for text in part])
    if kind == ".txt":
        for index, text in enumerate(texts):
            (folder / f"{index:03d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_folder_is_read_whole_and_its_last_file_is_validation(tmp_path, kind):
    folder = write_corpus(tmp_path / "corpus", kind)
    assert list(documents(folder)) == TEXTS
    source = check_source(folder)
    num_val = 1 if kind == ".txt" else 12
    assert list(source.documents("train")) == TEXTS[:-num_val]
    assert list(source.documents("val")) == TEXTS[-num_val:]
    assert source.num_rows("train") == 40 - num_val


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_one_file_keeps_its_last_percent_for_validation(tmp_path, kind):
    texts = [f"text {index}" for index in range(250)]
    folder = write_corpus(tmp_path / "corpus", kind, texts, num_files=1)
    source = FileSource(folder / f"shard_00000{kind}")
    assert list(source.documents("val")) == texts[-2:]
    assert list(source.documents("train")) == texts[:-2]
    assert sorted(source.iterate("train", 3)) == sorted(texts[:-2])
    small = write_corpus(tmp_path / "small", kind, texts[:5], num_files=1)
    assert list(FileSource(small).documents("val")) == texts[4:5]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_ranks_share_an_epoch_without_overlap_or_loss(tmp_path, kind, world_size):
    source = FileSource(write_corpus(tmp_path / "corpus", kind), seed=5)
    expected = sorted(source.documents("train"))
    epochs = []
    for epoch in range(2):
        shares = [list(source.iterate("train", epoch, rank, world_size)) for rank in range(world_size)]
        assert sorted(text for share in shares for text in share) == expected
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        epochs.append(shares)
    assert epochs[0] != epochs[1]
    again = pickle.loads(pickle.dumps(FileSource(tmp_path / "corpus", seed=5)))
    assert [list(again.iterate("train", 0, rank, world_size)) for rank in range(world_size)] == epochs[0]
    assert list(FileSource(tmp_path / "corpus", seed=6).iterate("train")) != list(source.iterate("train"))
    assert list(source.iterate("val", 0)) == list(source.iterate("val", 1)) == list(source.documents("val"))


def test_null_and_empty_rows_are_skipped_and_counted(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["one", None, "", "two"])
    source = FileSource(tmp_path / "a.parquet")
    assert list(source.documents()) == ["one", "two"]
    assert source.num_skipped == 2
    write_jsonl(tmp_path / "b.jsonl", [{"text": None}, {"text": "one"}, {"text": ""}])
    source = FileSource(tmp_path / "b.jsonl")
    assert list(source.documents()) == ["one"]
    assert source.num_skipped == 2


def test_an_empty_row_group_has_no_documents(tmp_path):
    table = pa.table({"text": ["one", "two"]})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table, table[:0], table):
            writer.write_table(part)
    assert [stop - start for start, stop in FileSource(tmp_path).files[0].blocks()] == [2, 0, 2]
    assert list(check_source(tmp_path).documents()) == ["one", "two"] * 2
    assert len(list(FileSource(tmp_path).iterate("train"))) == 3


def test_long_text_files_are_cut_at_paragraphs_and_nothing_is_lost(tmp_path):
    rng = random.Random(0)
    paragraphs = ["wörd " * rng.randint(1, 400) + rng.choice(["\n\n", "\r\n\r\n", "\n \n\n"]) for _ in range(100)]
    paragraphs[50] = "…" * 30_000 + "\n\n"  # one line beyond the hard limit, three bytes a character
    paragraphs[60] = "line\n" * 10_000 + "\n"
    text = "".join(paragraphs)
    (tmp_path / "big.txt").write_bytes(text.encode())
    pieces = list(documents(tmp_path))
    text = text.replace("\r\n", "\n")
    assert "".join(pieces) == text
    sizes = [len(piece.encode()) for piece in pieces]
    assert max(sizes) <= 20_000
    assert len(pieces) > 15
    ordinary = [piece for piece in pieces if "…" not in piece and "line" not in piece]
    assert all(piece.endswith("\n") for piece in ordinary[:-1])
    (tmp_path / "big.txt").write_bytes(b"short, one document\n\nof two paragraphs")
    assert len(list(documents(tmp_path))) == 1
    with pytest.raises(UserError, match="only one document"):
        list(FileSource(tmp_path).documents("train"))


def test_conversations(tmp_path):
    rows = [{**chat(str(index)), "source": "x"} for index in range(5)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "val.jsonl", rows[:1])
    source = check_source(tmp_path, "messages")
    assert list(source.documents("train")) == rows
    assert list(FileSource(tmp_path, "messages").documents("val")) == rows[:1]
    pq.write_table(pa.Table.from_pylist([chat("a"), chat("b")]), tmp_path / "x.parquet")
    assert list(FileSource(tmp_path / "x.parquet", "messages").documents()) == [chat("a"), chat("b")]


def test_json_escapes_cannot_bring_lone_surrogates(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800y \\ud83d\\ude00"}\n', encoding="utf-8")
    assert list(documents(tmp_path)) == ["x\ufffdy \U0001f600"]


def test_missing_empty_or_foreign_paths(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder.*\.parquet"):
        FileSource(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"contains no \.txt, \.md, \.jsonl \(also \.gz, .*\) or \.parquet file"):
        FileSource(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError, match="subfolders such as 'inner'"):
        FileSource(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UserError, match=r"a\.csv' is not a"):
        FileSource(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UserError, match=r"\.jsonl and \.txt files"):
        FileSource(tmp_path)
    with pytest.raises(UserError, match="conversations need"):
        FileSource(tmp_path / "a.txt", "messages")
    (tmp_path / "inner" / "a.txt").write_text("")
    with pytest.raises(UserError, match="has no records"):
        check_source(tmp_path / "inner")


def test_check_names_damaged_parquet_files(tmp_path):
    folder = write_corpus(tmp_path / "corpus", ".parquet", [f"{index} " + "text " * 50 for index in range(300)])
    check_source(folder)
    path = folder / "shard_00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"shard_00001\.parquet' is not a whole parquet file"):
        check_source(folder)
    path.write_bytes(whole[:100] + b"\xff" * 200 + whole[300:])
    with pytest.raises(UserError, match=r"shard_00001\.parquet' is damaged in row group"):
        check_source(folder)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"shard_00001\.parquet' is not a whole"):
        check_source(folder)
    write_parquet(path, ["x"], column="content")
    with pytest.raises(UserError, match=r"no column 'text' \(columns: content\)"):
        check_source(folder)
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match=r"shard_00001\.parquet, row 0: 'text' is int, expected a string"):
        check_source(folder)


@pytest.mark.parametrize(("line", "message"), [
    ('{"text": "cut', r"a\.jsonl:3: not valid JSON"),
    ('["x"]', r"a\.jsonl:3: expected an object"),
    ('{"body": "x", "id": 1}', r"a\.jsonl:3: no field 'text' \(fields: 'body', 'id'\)"),
    ('{"text": 5}', r"a\.jsonl:3: 'text' is int"),
])  # fmt: skip
def test_check_names_the_bad_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(UserError, match=message):
        check_source(tmp_path)


def test_check_names_bad_conversations_and_bad_encoding(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [chat("x"), {"messages": [{"role": "assistant", "content": "x"}]}])
    with pytest.raises(UserError, match=r"a\.jsonl:2: message 0 has role 'assistant'"):
        check_source(tmp_path, "messages")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"b\.txt' is not UTF-8 text \(byte 3\)"):
        check_source(tmp_path / "b.txt")
