"""Losses and rewards of reinforcement learning with verifiable rewards, as pure functions.

As in nanochat, Dr. GRPO and DAPO, advantages subtract the group mean without dividing by the standard deviation, and
the loss is normalised per token. Dividing by the standard deviation would weight questions by their uncertainty; a mean
per completion would penalize long wrong answers too little. The ratio clipping of PPO and the KL penalty of GRPO are
optional and off by default.

Shapes: G groups (questions), S samples per group, B sequences (samples), T tokens.

Reference:
    Liu et al. 2025, Understanding R1-Zero-Like Training. https://arxiv.org/abs/2503.20783
    Yu et al. 2025, DAPO. https://arxiv.org/abs/2503.14476
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RewardShape:
    """Components of the reward."""

    partial_reward: float = 0.0
    """Maximum reward of a wrong answer, in proportion to its partial credit."""
    format_reward: float = 0.0
    """Reward of a completion in the task's format, right or wrong."""
    length_penalty: float = 0.0
    """Penalty of a completion of maximum length, in proportion for shorter ones."""

    def __post_init__(self) -> None:
        for name in ("partial_reward", "format_reward", "length_penalty"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 (off) or positive")
        if self.partial_reward >= 1:
            raise UserError(
                f"partial_reward is {self.partial_reward}; it must be less than 1, the reward of a correct answer"
            )

    def reward(self, *, is_right: bool, has_form: bool, length: int, max_length: int, credit: float = 0.0) -> float:
        """Return 1 for a correct answer, plus the components of the fields.

        Args:
            is_right: Whether the answer is correct.
            has_form: Whether the completion is in the task's format.
            length: Number of sampled tokens.
            max_length: Maximum number of tokens.
            credit: Partial credit of a wrong answer, from 0 to 1.
        """
        earned = 1.0 if is_right else self.partial_reward * credit
        return earned + self.format_reward * has_form - self.length_penalty * length / max_length


def group_advantages(rewards: Tensor) -> Tensor:
    """Return the rewards minus the mean of their group.

    Args:
        rewards: (G, S).

    Returns:
        (G, S); each group sums to 0, and a group with equal rewards has zero advantages.
    """
    return rewards - rewards.mean(dim=1, keepdim=True)


def policy_gradient_loss(
    logprobs: Tensor,
    advantages: Tensor,
    is_sampled: Tensor,
    num_tokens: Tensor | int,
    old_logprobs: Tensor | None = None,
    clip_ratio: float = 0.0,
) -> Tensor:
    """Return the REINFORCE loss per sampled token; with old log-probabilities, PPO's clipped loss.

    Args:
        logprobs: (B, T) log-probabilities of the targets under the current policy, nats.
        advantages: (B,).
        is_sampled: (B, T) True where the policy sampled the token; False for prompts, tool results and padding.
        num_tokens: Sampled tokens of the whole batch; the losses of its micro-batches add up.
        old_logprobs: (B, T) log-probabilities under the sampling policy; None is the same policy, with ratio 1.
        clip_ratio: Clip ratios to 1 - clip_ratio to 1 + clip_ratio; 0 disables clipping.

    Returns:
        Scalar, nats per sampled token of the batch.

    Reference:
        Schulman et al. 2017, Proximal Policy Optimization. https://arxiv.org/abs/1707.06347
    """
    weights = advantages.unsqueeze(1)
    if old_logprobs is None:
        gains = logprobs * weights
    else:
        ratios = torch.exp(logprobs - old_logprobs)
        gains = ratios * weights
        if clip_ratio:
            gains = torch.minimum(gains, ratios.clamp(1.0 - clip_ratio, 1.0 + clip_ratio) * weights)
    # where instead of a product: other positions may have arbitrary values, even infinities
    return -torch.where(is_sampled, gains, 0.0).sum() / num_tokens


def divergence(logprobs: Tensor, reference_logprobs: Tensor, is_sampled: Tensor, num_tokens: Tensor | int) -> Tensor:
    """Return the KL divergence of the policy from a reference, estimated on the sampled tokens.

    The estimator r - 1 - log r with r = p_reference / p is non-negative and unbiased (Schulman 2020).

    Args:
        logprobs: (B, T) log-probabilities under the policy, nats.
        reference_logprobs: (B, T) log-probabilities under the reference.
        is_sampled: (B, T) True where the policy sampled the token.
        num_tokens: Sampled tokens of the whole batch.

    Returns:
        Scalar, nats per sampled token of the batch.

    Reference:
        http://joschu.net/blog/kl-approx.html
    """
    log_ratios = reference_logprobs - logprobs
    return torch.where(is_sampled, torch.expm1(log_ratios) - log_ratios, 0.0).sum() / num_tokens
