import json

import pytest

from nanochat_lit import cli
from nanochat_lit.commands.data import generate
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import check_source
from nanochat_lit.tiny_world.files import write_tiny_world


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_generated_files_are_sources_and_reproducible(tmp_path, capsys):
    generate(str(tmp_path / "world"), num_documents=120, num_conversations=100, per_category=2, seed=3)
    assert "shard_00001.parquet" in capsys.readouterr().out
    files = files_of(tmp_path / "world")
    assert set(files) == {
        "pretrain/shard_00000.parquet", "pretrain/shard_00001.parquet", "sft/train.jsonl", "sft/val.jsonl", "test.jsonl",
        "harder/train.jsonl", "harder/val.jsonl", "harder/test.jsonl",
        "harder/known.jsonl", "preferences/train.jsonl", "preferences/val.jsonl", "preferences/test.jsonl",
    }  # fmt: skip
    texts = check_source(tmp_path / "world" / "pretrain")
    chats = check_source(tmp_path / "world" / "sft", "messages")
    assert (texts.num_rows("train"), texts.num_rows("val")) == (120, 2)
    assert (chats.num_rows("train"), chats.num_rows("val")) == (100, 2)
    items = [json.loads(line) for line in files["test.jsonl"].splitlines()]
    assert all(item["messages"][-1]["role"] == "user" for item in items)
    assert all({"category", "expect"} <= set(item) for item in items)

    # A shorter run over an older one leaves no shard of it behind; the same arguments give the same bytes.
    write_tiny_world(tmp_path / "again", 120, 100, 2, seed=4, documents_per_shard=10)
    assert len(list((tmp_path / "again" / "pretrain").iterdir())) == 13
    write_tiny_world(tmp_path / "again", 120, 100, 2, seed=3)
    assert files_of(tmp_path / "again") == files
    with pytest.raises(UserError, match="num_documents is 0"):
        write_tiny_world(tmp_path / "none", num_documents=0)


def test_info_tells_what_a_corpus_is_made_of(tmp_path, capsys):
    write_tiny_world(tmp_path / "world", 120, 10, 2)
    folder, plot = str(tmp_path / "world" / "pretrain"), tmp_path / "info.png"
    assert cli.main(["data", "info", folder, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for line in ("documents            122, 0 records skipped", "  English", "  shard_00000.parquet"):
        assert line in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert (
        cli.main(["data", "info", "--path", json.dumps([folder, str(tmp_path / "world" / "pretrain")]), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["exact_duplicates"]) == (122, 0.0), "the same folder twice is one source"
    (tmp_path / "none.jsonl").write_text('{"text": null}\n')
    assert cli.main(["data", "info", str(tmp_path / "none.jsonl")]) == 2
    assert "no documents, 1 records skipped" in capsys.readouterr().err
