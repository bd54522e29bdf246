"""Counts of trained, read and padding tokens in fine-tuning batches, and losses by source."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.model import IGNORE_INDEX


class TokenAccounts:
    """Accumulates counts since the last `pop`; on the device, to avoid synchronization.

    Args:
        names: Names of the sources; None counts them together.
        pad_id: Token id of padding at the end of a sequence.
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
            batch: inputs and targets, (B, T), and sources if names are given.
            token_losses: (B, T), 0 for ignored targets.
        """
        inputs, targets = batch["inputs"], batch["targets"]
        # A sequence ends with padding but never with BOS alone, so the trailing run of pad_id is padding.
        padding = (inputs.flip(1) == self.pad_id).to(torch.int64).cumprod(dim=1).sum()
        sizes = [torch.full_like(padding, inputs.numel()), (targets != IGNORE_INDEX).sum(), padding]
        is_own = [batch["sources"] == number for number, _ in enumerate(self.names, start=1)]
        counts = torch.stack([*sizes, *(own.sum() for own in is_own)])
        # torch.where instead of a product, so that a NaN loss affects only its source
        losses = torch.stack([token_losses.where(own, 0.0).sum() for own in is_own]) if is_own else counts.new_zeros(0)
        self._counts = counts if self._counts is None else self._counts + counts
        self._losses = losses if self._losses is None else self._losses + losses

    def pop(self) -> Tensor:
        """Return counts since the last call and sums of losses, (3 + 2 * sources,) float32; sum them over the ranks."""
        assert self._counts is not None, "pop() without add()"
        assert self._losses is not None, "both or none"
        sums = torch.cat([self._counts.float(), self._losses.float()])
        self._counts = self._losses = None
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Return the unread counts on the CPU."""
        if self._counts is None or self._losses is None:
            return {}
        return {"counts": self._counts.cpu(), "losses": self._losses.cpu()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state that `state_dict` returned."""
        self._counts = state["counts"].to(device) if state else None
        self._losses = state["losses"].to(device) if state else None

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the metrics from sums over all ranks.

        A sequence may contain conversations of several sources. Tokens are attributed individually, so a source's loss
        is the mean over its trained tokens.

        Args:
            sums: Results of `pop`, summed.

        Returns:
            tokens_trained, tokens_read and tokens_padding as fractions of all positions. With names, also share/NAME
            (fraction of the trained tokens) and train_loss/NAME (nats per trained token) for sources with trained
            tokens.
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
