"""Where the positions of fine-tuning batches go: tokens that are learned, by source with their losses, read, padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.model import IGNORE_INDEX


class TokenAccounts:
    """Counts of the batches since they were last asked for; on the device, to avoid a synchronization.

    Args:
        names: Of the sources; None counts them together.
        pad_id: What fills the end of a row.
    """

    def __init__(self, names: Sequence[str] | None, pad_id: int) -> None:
        self.names = list(names or ())
        self.pad_id = pad_id
        self._counts: Tensor | None = None
        """(3 + sources,) positions, trained, padding, then trained by source."""
        self._losses: Tensor | None = None
        """(sources,) sums of the losses of the trained tokens, nats."""

    def add(self, batch: dict[str, Tensor], token_losses: Tensor) -> None:
        """Count a batch.

        Args:
            batch: inputs and targets, (B, T), and sources if there are names.
            token_losses: (B, T), 0 where nothing is learned.
        """
        inputs, targets = batch["inputs"], batch["targets"]
        # A row ends with padding, never with BOS alone: from the right, padding goes on while every token is pad_id.
        padding = (inputs.flip(1) == self.pad_id).to(torch.int64).cumprod(dim=1).sum()
        sizes = [torch.full_like(padding, inputs.numel()), (targets != IGNORE_INDEX).sum(), padding]
        is_own = [batch["sources"] == number for number, _ in enumerate(self.names, start=1)]
        counts = torch.stack([*sizes, *(own.sum() for own in is_own)])
        # chosen, not multiplied: a NaN loss stays with its source
        losses = torch.stack([token_losses.where(own, 0.0).sum() for own in is_own]) if is_own else counts.new_zeros(0)
        self._counts = counts if self._counts is None else self._counts + counts
        self._losses = losses if self._losses is None else self._losses + losses

    def pop(self) -> Tensor:
        """(3 + 2 sources,) float32: the counts since the last call, then the sums of losses; ranks add them up."""
        assert self._counts is not None, "a row of metrics follows a step"
        assert self._losses is not None, "both or none"
        sums = torch.cat([self._counts.float(), self._losses.float()])
        self._counts = self._losses = None
        return sums

    def state_dict(self) -> dict[str, Any]:
        """What has not been read yet, on the CPU."""
        if self._counts is None or self._losses is None:
            return {}
        return {"counts": self._counts.cpu(), "losses": self._losses.cpu()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what `state_dict` gave."""
        self._counts = state["counts"].to(device) if state else None
        self._losses = state["losses"].to(device) if state else None

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Figures of the sums over all ranks.

        A row of a batch may hold conversations of several sources: each token counts for its own, so that a source's loss
        is the mean over its trained tokens, wherever they stand.

        Args:
            sums: As `pop` gives them.

        Returns:
            tokens_trained, tokens_read and tokens_padding as shares of all positions; with names also share/NAME of the
            trained tokens, and train_loss/NAME, nats per trained token, of those that have any.
        """
        positions, trained, padding, *by_source = sums
        if not positions:
            return {}
        figures = {
            "tokens_trained": trained / positions,
            "tokens_read": (positions - trained - padding) / positions,
            "tokens_padding": padding / positions,
        }
        counts, losses = by_source[: len(self.names)], by_source[len(self.names) :]
        figures |= {f"share/{name}": count / max(trained, 1) for name, count in zip(self.names, counts, strict=True)}
        sources = zip(self.names, counts, losses, strict=True)
        return figures | {f"train_loss/{name}": loss / count for name, count, loss in sources if count}
