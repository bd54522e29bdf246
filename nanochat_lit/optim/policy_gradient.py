"""The mathematics of reinforcement learning with verifiable rewards, as pure functions.

Group-mean advantages without division by the spread and a loss normalised per token are nanochat's choices, those of
Dr. GRPO and DAPO: dividing by the spread weighs questions by how uncertain they are, and a mean per completion lets a long
wrong answer off lightly. Ratio clipping and the penalty for leaving the start model are what PPO and GRPO add; both are off
unless asked for.

Shapes: G groups (questions), S samples of each, B rows (samples), T tokens.

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
    """What a completion earns."""

    partial_reward: float = 0.0
    """Of a wrong answer that could not be nearer; others in proportion to how near they have come."""
    format_reward: float = 0.0
    """Added when the completion has the form of an answer, right or wrong."""
    length_penalty: float = 0.0
    """Taken away from a completion as long as allowed; from shorter ones in proportion."""

    def __post_init__(self) -> None:
        for name in ("partial_reward", "format_reward", "length_penalty"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 (off) or positive")
        if self.partial_reward >= 1:
            raise UserError(
                f"partial_reward is {self.partial_reward}; a wrong answer must earn less than the 1 of a right one"
            )

    def reward(self, *, is_right: bool, has_form: bool, length: int, max_length: int, credit: float = 0.0) -> float:
        """1 for a right answer, and what the fields say.

        Args:
            is_right: By the judgement of the task.
            has_form: Whether it looks like an answer.
            length: Tokens that were sampled.
            max_length: Most tokens there may be.
            credit: How near a wrong answer has come, from 0 to 1.
        """
        earned = 1.0 if is_right else self.partial_reward * credit
        return earned + self.format_reward * has_form - self.length_penalty * length / max_length


def group_advantages(rewards: Tensor) -> Tensor:
    """How much better each sample is than the mean of its group.

    Args:
        rewards: (G, S).

    Returns:
        (G, S), each group summing to 0; a group whose samples all earn the same teaches nothing.
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
    """REINFORCE summed over sampled tokens and divided by their number; with old log-probabilities, PPO's clipped form.

    Args:
        logprobs: (B, T) of each target under the policy that learns, nats.
        advantages: (B,).
        is_sampled: (B, T) True where the policy chose the token; False for prompts, tool results and padding.
        num_tokens: Sampled tokens of the whole batch, of which these rows may be a part: losses of parts add up.
        old_logprobs: (B, T) under the policy that sampled; None is the same policy, whose ratio is 1.
        clip_ratio: Ratios count only from 1 - clip_ratio to 1 + clip_ratio; 0 does not clip.

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
    # where, not a product: what stands beside the sampled tokens may be anything, infinities included
    return -torch.where(is_sampled, gains, 0.0).sum() / num_tokens


def divergence(logprobs: Tensor, reference_logprobs: Tensor, is_sampled: Tensor, num_tokens: Tensor | int) -> Tensor:
    """Kullback-Leibler divergence of the policy from a reference, estimated on the tokens that the policy sampled.

    The estimate r - 1 - log r with r = p_reference / p is never negative and unbiased (Schulman 2020).

    Args:
        logprobs: (B, T) under the policy, nats.
        reference_logprobs: (B, T) under the reference.
        is_sampled: (B, T) True where the policy chose the token.
        num_tokens: Sampled tokens of the whole batch.

    Returns:
        Scalar, nats per sampled token of the batch.

    Reference:
        http://joschu.net/blog/kl-approx.html
    """
    log_ratios = reference_logprobs - logprobs
    return torch.where(is_sampled, torch.expm1(log_ratios) - log_ratios, 0.0).sum() / num_tokens
