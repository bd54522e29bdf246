"""Losses of learning from preferences between two completions of a prompt, as pure functions.

The log-ratio of a completion is log p(completion) - log p_reference(completion), summed over its tokens, in nats;
beta times it is the implicit reward. The reference is the model that training starts from.

Shapes: P pairs; the last dimension of 2 is chosen, rejected.

Reference:
    Rafailov et al. 2023, Direct Preference Optimization. https://arxiv.org/abs/2305.18290
    Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences (IPO).
    https://arxiv.org/abs/2310.12036
    D'Oosterlinck et al. 2024, Anchored Preference Optimization. https://arxiv.org/abs/2408.06266
"""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss: TypeAlias = Literal["sigmoid", "ipo", "apo_zero"]
"""sigmoid is DPO; apo_zero is the loss of KTO with a reference point of 0. The names are those of TRL."""


def preference_losses(log_ratios: Tensor, num_tokens: Tensor, beta: float, loss: PreferenceLoss = "sigmoid") -> Tensor:
    """Return the loss of every pair, (P,), from float32 log-ratios, (P, 2).

    IPO compares means over the `num_tokens`, (P, 2), of the completions, as in TRL. Larger values of `beta` stay closer
    to the reference.
    """
    if loss == "ipo":
        chosen, rejected = (log_ratios / num_tokens.clamp(min=1)).unbind(1)
        return (chosen - rejected - 1.0 / (2.0 * beta)).square()
    chosen, rejected = (beta * log_ratios).unbind(1)
    if loss == "sigmoid":
        return -F.logsigmoid(chosen - rejected)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def preference_accuracy(log_ratios: Tensor) -> Tensor:
    """Return 1 for every pair whose chosen completion has the larger log-ratio, 0.5 for ties (as at the start), else 0."""
    return (torch.sign(log_ratios[:, 0] - log_ratios[:, 1]) + 1.0) / 2.0
