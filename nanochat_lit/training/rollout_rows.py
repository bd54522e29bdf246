"""Rollouts as rows of a batch, and what they say about the policy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_lit.common.lengths import padded_length
from nanochat_lit.engine.rollout import Rollout
from nanochat_lit.model import IGNORE_INDEX

ROW_UNIT = 32
"""Rows are as long as the longest prompt with the longest answer, rounded up to a multiple of this."""


def rollout_rows(
    prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], row_len: int, pad_id: int
) -> dict[str, Tensor]:
    """One row for each rollout: the prompt, then the completion, then padding.

    Args:
        prompts: Token ids, one for each rollout.
        rollouts: Completions.
        row_len: T; prompt and completion together have at most one token more.
        pad_id: Fills inputs on the right, where causal attention lets it change nothing.

    Returns:
        inputs and targets, (rows, T) int64; targets are IGNORE_INDEX where the model has not sampled the token.
    """
    inputs = torch.full((len(rollouts), row_len), pad_id, dtype=torch.int64)
    targets = torch.full((len(rollouts), row_len), IGNORE_INDEX, dtype=torch.int64)
    for row, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        token_ids = [*prompt, *rollout.token_ids]
        assert len(token_ids) <= row_len + 1, f"{len(token_ids)} tokens for a row of {row_len}"
        inputs[row, : len(token_ids) - 1] = torch.tensor(token_ids[:-1])
        own = [token if mask else IGNORE_INDEX for token, mask in zip(rollout.token_ids, rollout.mask, strict=True)]
        targets[row, len(prompt) - 1 : len(token_ids) - 1] = torch.tensor(own)
    return {"inputs": inputs, "targets": targets}


def without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch without the columns on the right in which no row has a token to learn.

    Args:
        batch: Of `rollout_rows`, with other tensors of (rows,) or (rows, T).
    """
    used = (batch["targets"] != IGNORE_INDEX).any(0).nonzero()
    last = int(used[-1]) + 1 if len(used) else 1
    length = padded_length(last, batch["targets"].shape[1])
    return {name: tensor[:, :length] if tensor.ndim == 2 else tensor for name, tensor in batch.items()}


class RolloutFigures:
    """Means over the rollouts since they were last asked for; sums, so that ranks and checkpoints can add them up."""

    NAMES = ("completions", "tokens", "reward", "right", "form", "tool_use", "unfinished", "groups", "mixed_groups")

    def __init__(self) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64)

    def add(self, **sums: float) -> None:
        """Add to the sums of these names."""
        self.sums += torch.tensor([float(sums.get(name, 0.0)) for name in self.NAMES], dtype=torch.float64)

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Figures of sums over all ranks.

        Args:
            sums: In the order of NAMES.

        Returns:
            reward; train_accuracy, format_rate, tool_use, unfinished as shares of the completions; completion_len in
            sampled tokens; mixed_groups, the share of questions whose samples earned differently, from which alone
            something is learned. Empty before the first completion.
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
