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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer:
    """An answer and the task's judgement of it."""

    messages: list[dict[str, Any]]
    """The assistant's message; with functions several, and the user's messages with results between them."""
    text: str
    """Visible text of the last message."""
    tool_calls: list[str]
    """Expressions of the calculator calls, and calls of functions as JSON."""
    is_right: bool
    """Whether the task accepts it."""
    has_form: bool
    """Whether it is in the task's answer format; False without one."""
    credit: float
    """The task's partial credit if it were wrong, from 0 to 1; 0 without one."""
    num_tokens: int
    """Number of sampled tokens."""
    max_tokens: int
    """Maximum number of tokens."""
    has_ended: bool
    """Whether the model ended it, rather than a limit."""


Reward = Callable[[dict[str, Any], JudgedAnswer], float]
"""Returns the reward of an answer to a conversation."""


@dataclass(frozen=True, kw_only=True)
class RewardShape:
    """The default reward: 1 for a correct answer, plus the components of the fields."""

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

    def __call__(self, conversation: dict[str, Any], answer: JudgedAnswer) -> float:  # noqa: ARG002 - one of `Reward`
        """Return the reward of an answer; the conversation is not used."""
        earned = 1.0 if answer.is_right else self.partial_reward * answer.credit
        length = answer.num_tokens / answer.max_tokens
        return earned + self.format_reward * answer.has_form - self.length_penalty * length


def group_advantages(rewards: Tensor) -> Tensor:
    """Return the rewards, (G, S), minus the mean of their group; a group with equal rewards has zero advantages."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def policy_gradient_loss(
    logprobs: Tensor,
    advantages: Tensor,
    is_sampled: Tensor,
    num_tokens: Tensor | int,
    old_logprobs: Tensor | None = None,
    clip_ratio: float = 0.0,
) -> Tensor:
    """Return the REINFORCE loss in nats per sampled token; with old log-probabilities, PPO's clipped loss.

    `logprobs`, (B, T), are those of the targets, `old_logprobs` those under the sampling policy (None is the same one,
    with ratio 1); `advantages` are (B,); `is_sampled`, (B, T), is False for prompts, tool results and padding.
    `num_tokens` counts the whole batch, so that the losses of its micro-batches add up. Ratios are clipped to 1 -
    clip_ratio to 1 + clip_ratio; 0 disables clipping.

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
    """Return the KL divergence of the policy from a reference in nats per sampled token; arguments as above.

    The estimator r - 1 - log r with r = p_reference / p is non-negative and unbiased (Schulman 2020.
    http://joschu.net/blog/kl-approx.html).
    """
    log_ratios = reference_logprobs - logprobs
    return torch.where(is_sampled, torch.expm1(log_ratios) - log_ratios, 0.0).sum() / num_tokens
