"""Rollouts as training sequences, and metrics of the policy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.common.lengths import padded_length
from nanochat_lit.engine.rollout import Rollout
from nanochat_lit.model import IGNORE_INDEX

ROW_UNIT = 32
"""Sequence lengths are rounded up to a multiple of this."""


def rollout_rows(
    prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], row_len: int, pad_id: int
) -> dict[str, Tensor]:
    """Return one sequence per rollout: prompt, completion, padding.

    Args:
        prompts: Token ids, one list per rollout.
        rollouts: Completions.
        row_len: Sequence length T; prompt and completion together have at most T + 1 tokens.
        pad_id: Padding on the right, which causal attention keeps from affecting earlier positions.

    Returns:
        inputs and targets, (B, T) int64; targets are IGNORE_INDEX for tokens that the model did not sample.
    """
    inputs = torch.full((len(rollouts), row_len), pad_id, dtype=torch.int64)
    targets = torch.full((len(rollouts), row_len), IGNORE_INDEX, dtype=torch.int64)
    for row, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        token_ids = [*prompt, *rollout.token_ids]
        assert len(token_ids) <= row_len + 1, f"{len(token_ids)} tokens for a sequence of {row_len}"
        inputs[row, : len(token_ids) - 1] = torch.tensor(token_ids[:-1])
        own = [token if mask else IGNORE_INDEX for token, mask in zip(rollout.token_ids, rollout.mask, strict=True)]
        targets[row, len(prompt) - 1 : len(token_ids) - 1] = torch.tensor(own)
    return {"inputs": inputs, "targets": targets}


def without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch without trailing columns that contain no targets.

    Args:
        batch: Result of `rollout_rows`, with further tensors of shape (B,) or (B, T).
    """
    used = (batch["targets"] != IGNORE_INDEX).any(0).nonzero()
    last = int(used[-1]) + 1 if len(used) else 1
    length = padded_length(last, batch["targets"].shape[1])
    return {name: tensor[:, :length] if tensor.ndim == 2 else tensor for name, tensor in batch.items()}


class RolloutFigures:
    """Accumulates metrics over rollouts as sums, which can be added over ranks and restored from checkpoints."""

    NAMES = ("completions", "tokens", "reward", "right", "form", "tool_use", "unfinished", "groups", "mixed_groups")

    def __init__(self) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64)

    def add(self, **sums: float) -> None:
        """Add values to the sums."""
        self.sums += torch.tensor([float(sums.get(name, 0.0)) for name in self.NAMES], dtype=torch.float64)

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the means from sums over all ranks.

        Args:
            sums: Sums in the order of NAMES.

        Returns:
            reward; train_accuracy, format_rate, tool_use, unfinished as fractions of the completions; completion_len in
            sampled tokens; mixed_groups, the fraction of questions with unequal rewards (others have zero advantage).
            Empty before the first completion.
        """
        by_name: dict[str, float] = dict(zip(self.NAMES, sums, strict=True))
        count, groups = by_name["completions"], by_name["groups"]
        if not count:
            return {}
        shares = {"train_accuracy": "right", "format_rate": "form", "tool_use": "tool_use", "unfinished": "unfinished"}
        return {
            "reward": by_name["reward"] / count,
            **{figure: by_name[name] / count for figure, name in shares.items()},
            "completion_len": by_name["tokens"] / count,
            "mixed_groups": by_name["mixed_groups"] / groups,
        }
