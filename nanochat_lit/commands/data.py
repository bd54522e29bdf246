"""`nanochat-lit data generate` and `data download`."""

from pathlib import Path
from typing import Any

from nanochat_lit.common.download_progress import DownloadProgress
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.hub_files import DCLM, ClimbMix, FineWebEdu, HubFiles
from nanochat_lit.tiny_world.files import write_tiny_world

SOURCES: dict[str, type[HubFiles]] = {"climbmix": ClimbMix, "fineweb-edu": FineWebEdu, "dclm": DCLM}


def generate(
    out: str,
    num_documents: int = 20_000,
    num_conversations: int = 20_000,
    per_category: int = 100,
    seed: int = 0,
) -> None:
    """Write the tiny world: generated English pretraining texts, conversations and a held-out evaluation.

    Writes pretrain/shard_*.parquet (the last shard is validation), sft/train.jsonl, sft/val.jsonl, test.jsonl, and
    harder/*.jsonl (harder arithmetic for reinforcement learning). The splits are disjoint.

    Args:
        out: Folder to write, atomically; replaces an earlier generated corpus there.
        num_documents: Number of training documents.
        num_conversations: Number of training conversations.
        per_category: Questions per category in the held-out evaluation.
        seed: Seed of the generator.
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


def download(
    source: str,
    shards: int = 8,
    folder: str | None = None,
    mirror: str | None = None,
    pattern: str | None = None,
    validation: str | None = None,
    revision: str | None = None,
    connections: int = 8,
) -> None:
    """Download shards of a data set in parallel; resumes partial downloads.

    Verifies every file by the checksum from the hub or mirror. Without one, checks its size and, for parquet, opens it.
    Respects HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. Recipes that name the same source find the files.

    Args:
        source: climbmix, fineweb-edu, dclm, or OWNER/NAME of a data set on the Hugging Face hub.
        shards: Number of training files; the validation file is downloaded in addition.
        folder: Target folder; None is a folder in the user's cache, where recipes look too.
        mirror: URL of a folder with the same files, used instead of the hub; should contain SHA256SUMS.
        pattern: Shell pattern for files of OWNER/NAME; * also matches slashes. None is *.parquet.
        validation: Validation file of OWNER/NAME; None is the last file by name.
        revision: Branch, tag or commit of OWNER/NAME; None is main.
        connections: Number of parallel downloads.
    """
    options: dict[str, Any] = {"num_shards": shards, "folder": folder, "connections": connections}
    chosen = {"pattern": pattern, "validation": validation, "revision": revision}
    more: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if source in SOURCES:
        if more:
            raise UserError(f"{', '.join(more)} cannot be set for {source}; use OWNER/NAME of a data set instead")
        files = SOURCES[source](**options)
    elif "/" in source:
        files = HubFiles(source, **options, **more)
    else:
        raise UserError(f"source is {source!r}; use {', '.join(SOURCES)}, or OWNER/NAME of a data set on the hub")
    progress = DownloadProgress()
    files.download(mirror, progress.report)
    progress.end()
    print(f"{shards} training shards and {files.files[-1].path.name} for validation are in {files.path}")
