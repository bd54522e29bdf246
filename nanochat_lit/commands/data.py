"""`nanochat-lit data`: write the generated corpus to files."""

from pathlib import Path

from nanochat_lit.data.tiny_world_files import write_tiny_world


def generate(
    out: str,
    num_documents: int = 20_000,
    num_conversations: int = 20_000,
    per_category: int = 100,
    seed: int = 0,
) -> None:
    """Write the tiny world: pretraining texts, conversations and an examination, in English, endless and free.

    The folder gets pretrain/shard_*.parquet (the last shard is validation), sft/train.jsonl, sft/val.jsonl,
    test.jsonl, and harder/*.jsonl, questions of harder arithmetic for reinforcement learning. The splits share no item.

    Args:
        out: Folder to write into; files of these names are replaced.
        num_documents: Training documents.
        num_conversations: Training conversations.
        per_category: Questions of every category in the examination.
        seed: Which texts are drawn.
    """
    write_tiny_world(out, num_documents, num_conversations, per_category, seed)
    for path in sorted(
        [
            *Path(out).glob("pretrain/*.parquet"),
            *Path(out).glob("sft/*.jsonl"),
            *Path(out).glob("harder/*.jsonl"),
            Path(out) / "test.jsonl",
        ]
    ):
        print(f"{path.stat().st_size:>12,} bytes  {path}")
