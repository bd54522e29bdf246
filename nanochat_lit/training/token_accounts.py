"""Where the positions of fine-tuning batches go: tokens that are learned, by source, tokens that are only read, padding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.model import IGNORE_INDEX


class TokenAccounts:
    """Counts of the batches since they were last asked for; on the device, so that nobody waits for them.

    Args:
        names: Of the sources; None counts them together.
        pad_id: What fills the end of a row.
    """

    def __init__(self, names: Sequence[str] | None, pad_id: int) -> None:
        self.names = list(names or ())
        self.pad_id = pad_id
        self.counts: Tensor | None = None
        """(3 + sources,) positions, trained, padding, then trained by source."""

    def add(self, batch: dict[str, Tensor]) -> None:
        """Count a batch: inputs and targets, (B, T), and sources if there are names."""
        inputs, targets = batch["inputs"], batch["targets"]
        # A row ends with padding, never with BOS alone: from the right, padding goes on while every token is pad_id.
        padding = (inputs.flip(1) == self.pad_id).to(torch.int64).cumprod(dim=1).sum()
        sizes = [torch.full_like(padding, inputs.numel()), (targets != IGNORE_INDEX).sum(), padding]
        by_source = [(batch["sources"] == number).sum() for number, _ in enumerate(self.names, start=1)]
        counts = torch.stack([*sizes, *by_source])
        self.counts = counts if self.counts is None else self.counts + counts

    def shares(self, counts: Sequence[float]) -> dict[str, float]:
        """Figures of counts over all ranks.

        Args:
            counts: As `counts` holds them.

        Returns:
            tokens_trained, tokens_read and tokens_padding as shares of all positions; with names also share/NAME of the
            trained tokens.
        """
        positions, trained, padding, *by_source = counts
        if not positions:
            return {}
        figures = {
            "tokens_trained": trained / positions,
            "tokens_read": (positions - trained - padding) / positions,
            "tokens_padding": padding / positions,
        }
        pairs = zip(self.names, by_source, strict=True)
        return figures | {f"share/{name}": count / max(trained, 1) for name, count in pairs}
