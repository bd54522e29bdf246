"""Smol-SmolTalk: half a million conversations for fine-tuning small models (Ben Allal et al. 2025, SmolLM2).

https://arxiv.org/abs/2502.02737
"""

from pathlib import Path

from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.conversations import messages_problem
from nanochat_lit.tasks.rows import Row, RowTask


class SmolTalk(RowTask):
    """Conversations for training only.

    Args:
        split: "train" (460,000 conversations) or "test" (24,000).
        path: Local file with `messages` in each record; None downloads HuggingFaceTB/smol-smoltalk from the hub.
        seed: Seed of the order; None keeps the order of the data set.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None, seed: int | None = 42) -> None:
        super().__init__(path, "HuggingFaceTB/smol-smoltalk", split, seed=seed)

    def _problem(self, row: Row) -> str | None:
        return messages_problem(row)

    def _conversation(self, row: Row) -> Conversation:
        return {"messages": row["messages"]}
