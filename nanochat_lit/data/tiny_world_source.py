"""The generated tiny world as a source; its files are written on first use."""

from pathlib import Path

from nanochat_lit.common.download_progress import Report
from nanochat_lit.common.downloads import locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import cache_folder
from nanochat_lit.data.shards import ShardSource
from nanochat_lit.data.splits import FileSplit
from nanochat_lit.tiny_world.files import write_tiny_world


class TinyWorld(ShardSource):
    """Generated English texts for models with few layers.

    Args:
        num_documents: Number of training documents.
        seed: Seed of the texts and of their order.
        folder: Folder of the files; None is a folder of the user's cache.
    """

    def __init__(self, num_documents: int = 20_000, seed: int = 0, folder: str | None = None) -> None:
        if num_documents < 1:
            raise UserError(f"num_documents is {num_documents}; it must be at least 1")
        self.num_documents = num_documents
        self.folder = Path(folder) if folder else cache_folder() / "tiny_world" / f"{num_documents}-{seed}"
        super().__init__(self.folder / "pretrain", seed=seed)

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Write the files, unless they exist."""
        del mirror, report
        done = self.folder / "harder" / "test.jsonl"  # written last
        with locked(self.folder.with_name(f".{self.folder.name}.lock")):
            if not done.is_file():
                write_tiny_world(self.folder, self.num_documents, num_conversations=1, per_category=1, seed=self.seed)

    def find_split(self) -> FileSplit:
        """Return the shards; the last one is for validation."""
        files = sorted(self.path.glob("shard_*.parquet"))
        if not files:
            raise UserError(f"'{self.path}' has no shards yet; they are written by prepare()")
        return FileSplit(train=files[:-1], val=files[-1:])
