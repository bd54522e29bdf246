"""Base class of text sources, which recipes select by `class_path`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from nanochat_lit.common.download_progress import Report

Split = Literal["train", "val", "all"]


class TextSource(ABC):
    """Training and validation documents.

    `prepare` is called by one process per machine, before any other method; it shares information with other processes
    through files.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name for messages and tables."""

    @abstractmethod
    def documents(self, split: Split = "all") -> Iterator[Any]:
        """Yield every document of a split once, in a fixed order."""

    @abstractmethod
    def iterate(self, split: Split, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the documents of one epoch for `rank`: every `world_size`-th, or those of its `cursor`."""

    def prepare(self, mirror: str | None = None, report: Report | None = None) -> None:
        """Provide everything that training needs to start.

        Args:
            mirror: URL to download from instead of the hub.
            report: Progress callback of downloads.
        """
        del mirror, report

    def check(self) -> None:  # noqa: B027 - optional for sources without files
        """Check the available data.

        Raises:
            UserError: If a file is damaged; names the file and, if known, the record.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Stop background work of `prepare`."""

    def validation(self) -> dict[str, str]:
        """Return the sha256 of the validation data by name; empty if they cannot be pinned."""
        return {}

    def num_rows(self, split: Split, enough: int | None = None) -> int | None:
        """Return the number of records of a split; stops counting at `enough`. None if unknown."""
        del split, enough
        return None
