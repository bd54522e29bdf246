"""The base class of DataModules: a tokenizer, and resumable loaders around streams."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nanochat_lit.common.distributed import rank, say, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.loader import ResumableLoader, merged
from nanochat_lit.data.source import TextSource
from nanochat_lit.data.stream import Batch, ChatStream, PretrainStream
from nanochat_lit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class LanguageDataModule(LightningDataModule):
    """Base class: the tokenizer, and resumable loaders around streams."""

    def __init__(
        self, tokenizer: str | None, micro_batch_size: int | Literal["auto"], num_workers: int, seed: int
    ) -> None:
        super().__init__()
        if micro_batch_size != "auto" and micro_batch_size < 1:
            raise UserError(f"micro_batch_size is {micro_batch_size}; it must be at least 1, or auto")
        self.tokenizer_path = tokenizer
        self.micro_batch_size: int | Literal["auto"] = micro_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_loader: Any = None
        """Loader that training reads from; set when training starts."""
        self.positions: list[dict[str, Any]] = []
        """Position of every rank's loader in the checkpoint that the run resumes; empty for a new run."""

    tokenizer: Tokenizer

    @property
    def module(self) -> "LanguageModule":
        """Module that is trained on these data."""
        assert self.trainer is not None
        return cast("LanguageModule", self.trainer.lightning_module)

    @property
    def sequence_len(self) -> int:
        """Context of the model in training."""
        return self.module.config.sequence_len

    @property
    def rows(self) -> int:
        """Sequences per device per forward pass; a placeholder until the value is known."""
        return 1 if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir)

    def setup(self, stage: str) -> None:
        base = self.module.start_from()
        path = self.tokenizer_path or self.run_dir / "tokenizer"
        self.tokenizer = base if base is not None and self.tokenizer_path is None else Tokenizer.load(path)

    def loader(self, stream: PretrainStream | ChatStream) -> ResumableLoader:
        """Return a loader of the stream, at the position of the checkpoint; UserError without an item for each reader."""
        readers, source = world_size() * max(1, self.num_workers), stream.source
        if isinstance(source, TextSource):
            rows = source.num_rows("train", enough=readers)
            if rows is not None and rows < readers:
                workers = f" x {self.num_workers} loader workers" if self.num_workers else ""
                raise UserError(
                    f"{source.name} has {rows} training item(s), too few for {world_size()} rank(s){workers}; "
                    "use more data, or fewer ranks or workers"
                )
        loader = ResumableLoader(stream, self.num_workers, pin_memory=self.module.device.type in ("cuda", "xpu"))
        if self.positions:
            loader.seek(_own_position(stream, self.positions, loader.num_readers))
        self.train_loader = loader
        return loader

    def val_batches(self) -> Iterator[Batch]:
        """Yield all batches of a validation, regardless of rank."""
        raise NotImplementedError

    def val_dataloader(self) -> "DataLoader[Batch]":
        """Return a loader that distributes the batches of a validation over the ranks.

        The batches do not depend on the number of ranks, so results are identical: none is dropped, repeated or
        reshaped. Ranks may get different numbers of batches, or none.
        """
        return DataLoader(Replay(lambda: islice(self.val_batches(), rank(), None, world_size())), batch_size=None)

    def test_dataloader(self) -> "DataLoader[Batch]":
        return self.val_dataloader()


def _own_position(
    stream: PretrainStream | ChatStream, positions: list[dict[str, Any]], num_readers: int
) -> dict[str, Any]:
    if len(positions) == world_size() and len(positions[0]["readers"]) == num_readers:
        return positions[rank()]
    before = sum(len(position["readers"]) for position in positions)
    say(
        f"the data were read by {before} reader(s) (ranks x loader workers), now by {num_readers * world_size()}: "
        "resuming with unused data"
    )
    return merged(stream, positions, num_readers, world_size())


class Replay(IterableDataset[Batch]):
    """A finite dataset that calls a function for a new iterator on every pass."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())
