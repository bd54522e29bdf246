"""`nanochat-lit data`: write the generated corpus to files, download data sets."""

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
    """Write the tiny world: pretraining texts, conversations and a held-out evaluation, in English, endless and free.

    The folder gets pretrain/shard_*.parquet (the last shard is validation), sft/train.jsonl, sft/val.jsonl,
    test.jsonl, and harder/*.jsonl, questions of harder arithmetic for reinforcement learning. The splits share no item.

    Args:
        out: Folder to write; it appears whole, and an earlier generated corpus of that name is replaced.
        num_documents: Training documents.
        num_conversations: Training conversations.
        per_category: Questions of every category in the held-out evaluation.
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
    """Download shards of a data set, several at once; what was begun before is continued.

    Every file is checked: by the checksum that the hub or the mirror states, else by its length and, if it is parquet,
    by opening it. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected. Recipes that name the same source find the
    files.

    Args:
        source: climbmix, fineweb-edu, dclm, or OWNER/NAME of a data set on the Hugging Face hub.
        shards: Files to train on; the validation file is added to them.
        folder: Where to; None is a folder of the user's cache, where recipes look too.
        mirror: Address to download from instead of the hub: a folder with the same files, best with SHA256SUMS.
        pattern: Which files of OWNER/NAME, as in a shell; * goes across folders. None is *.parquet.
        validation: Path of the file of OWNER/NAME to validate with; None takes the last by name.
        revision: Branch, tag or commit of OWNER/NAME; None is main.
        connections: Downloads at the same time.
    """
    options: dict[str, Any] = {"num_shards": shards, "folder": folder, "connections": connections}
    chosen = {"pattern": pattern, "validation": validation, "revision": revision}
    more: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if source in SOURCES:
        if more:
            raise UserError(f"{', '.join(more)} cannot be chosen for {source}; give OWNER/NAME of a data set instead")
        files = SOURCES[source](**options)
    elif "/" in source:
        files = HubFiles(source, **options, **more)
    else:
        raise UserError(f"source is {source!r}; use {', '.join(SOURCES)}, or OWNER/NAME of a data set on the hub")
    progress = DownloadProgress()
    files.download(mirror, progress.report)
    progress.end()
    print(f"{shards} shards to train on and {files.files[-1].path.name} to validate with are in {files.path}")
