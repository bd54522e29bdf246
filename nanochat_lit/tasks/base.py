"""What every task offers: a number of conversations, and a judgement of what a model answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Task(Protocol):
    """A sequence of conversations whose last answer can be judged."""

    def __len__(self) -> int:
        """How many conversations there are."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The conversation at this place: {"messages": [...], ...}."""
        ...

    def evaluate(self, conversation: dict[str, Any], completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Whether the completion, with the tool calls made for it, is a right answer to the conversation."""
        ...
