"""The generated tiny world as files, laid out like any other corpus."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, whole_folder

ROW_GROUP_SIZE = 1024

HARDER_PROBLEMS = {"train": 8000, "val": 400, "test": 1000}
"""Questions of harder arithmetic in each split."""

PREFERENCE_PAIRS = {"train": 6_000, "val": 200, "test": 400}
"""Preference pairs in each split."""

KNOWN_QUESTIONS = 150
"""Training questions of each category of the held-out evaluation, asked between the harder ones so that nothing is forgotten."""


def write_tiny_world(
    out: str | Path,
    num_documents: int = 20_000,
    num_conversations: int = 20_000,
    per_category: int = 100,
    seed: int = 0,
    documents_per_shard: int = 16_384,
) -> None:
    """Write pretrain/shard_*.parquet, sft/{train,val}.jsonl, test.jsonl (the held-out evaluation), preferences/ and harder/.

    preferences/ has train, val and test pairs of answers, one of them preferred.
    harder/ has train, val and test questions of harder arithmetic, for reinforcement learning, and known.jsonl, training
    questions of what the conversations teach.

    The validation parts come on top, one for every 50 training items, from splits that share no item with training;
    among the shards the last is validation. The same arguments give the same bytes.

    Args:
        out: Folder; it appears whole or not at all, and replaces an earlier generated corpus.
        num_documents: Training documents.
        num_conversations: Training conversations.
        per_category: Questions of every category in the held-out evaluation.
        seed: Which world's texts are drawn.
        documents_per_shard: Training documents in one parquet file.
    """
    counts = {"num_documents": num_documents, "num_conversations": num_conversations, "per_category": per_category}
    for name, value in {**counts, "documents_per_shard": documents_per_shard}.items():
        if value < 1:
            raise UserError(f"{name} is {value}, but must be at least 1")
    with whole_folder(
        out, {"pretrain", "sft", "preferences", "harder", "test.jsonl"}, "the generated corpus"
    ) as folder:
        _write_splits(folder, num_documents, num_conversations, per_category, seed, documents_per_shard)


def _write_splits(
    out: Path, num_documents: int, num_conversations: int, per_category: int, seed: int, documents_per_shard: int
) -> None:
    from nanochat_lit import tiny_world

    folder = out / "pretrain"
    texts = islice(tiny_world.documents("train", seed), num_documents)
    index = 0
    while shard := list(islice(texts, documents_per_shard)):
        _write_parquet(folder / f"shard_{index:05d}.parquet", shard)
        index += 1
    val_texts = list(islice(tiny_world.documents("val", seed), _num_val(num_documents)))
    _write_parquet(folder / f"shard_{index:05d}.parquet", val_texts)
    for split, count in (("train", num_conversations), ("val", _num_val(num_conversations))):
        _write_jsonl(out / "sft" / f"{split}.jsonl", islice(tiny_world.conversations(split, seed), count))
    _write_jsonl(out / "test.jsonl", iter(tiny_world.held_out_items("test", seed, per_category)))
    for split, count in PREFERENCE_PAIRS.items():
        _write_jsonl(out / "preferences" / f"{split}.jsonl", iter(tiny_world.preferences(split, count, seed)))
    for split, count in HARDER_PROBLEMS.items():
        _write_jsonl(out / "harder" / f"{split}.jsonl", iter(tiny_world.problems(split, count, seed)))
    _write_jsonl(out / "harder" / "known.jsonl", iter(tiny_world.held_out_items("train", seed, KNOWN_QUESTIONS)))


def _num_val(num_train: int) -> int:
    return max(1, num_train // 50)


def _write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())})
    with atomic_write(path, "wb") as file:
        pyarrow.parquet.write_table(table, file, row_group_size=ROW_GROUP_SIZE, compression="zstd")


def _write_jsonl(path: Path, rows: Iterator[dict[str, object]]) -> None:
    with atomic_write(path, "w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
