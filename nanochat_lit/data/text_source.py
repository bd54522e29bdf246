"""What a recipe can name as the source of its text: by `class_path`, one of the classes below `TextSource`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from nanochat_lit.common.download_progress import Report

Split = Literal["train", "val", "all"]


class TextSource(ABC):
    """Documents to train on and documents to validate with.

    `prepare` is called by one process of a machine, before any other method and on no other object; what the other
    processes need to know lies in files.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages and tables."""

    @abstractmethod
    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Every document of a split once, always in the same order."""

    @abstractmethod
    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The documents of one epoch of a split that belong to `rank`: every `world_size`-th, or what its `cursor` says."""

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Let everything be there that training needs to begin.

        Args:
            mirror: Address to download from instead of the hub.
            report: Told what is downloaded.
        """
        del mirror, report

    def check(self) -> None:  # noqa: B027 - nothing is the right thing for a source without files
        """Look at what is there.

        Raises:
            UserError: Names the file that is damaged, and the row where there is one.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what `prepare` has left running."""

    def validation(self) -> dict[str, str]:
        """The sha256 of the content that validation reads, by name; empty where it is nothing that could be pinned."""
        return {}

    def num_rows(self, split: Split, enough: int | None = None) -> int | None:
        """Rows of a split, counted until there are `enough`; None where that is not known."""
        del split, enough
        return None
