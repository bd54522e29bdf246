"""Derives training length, batch size, learning rates and weight decay from a model's shape (nanochat's scaling laws).

The reference is a depth-12 model trained on batches of 2^19 tokens, where the learning rates and the weight decay were
tuned. Tokens follow from a ratio of tokens to scaling parameters (Hoffmann et al. 2022, Chinchilla.
https://arxiv.org/abs/2203.15556), the batch grows as tokens ** 0.383 (Bergsma et al. 2025, Power Lines.
https://arxiv.org/abs/2505.13738), learning rates as sqrt(batch), weight decay as sqrt(batch) / tokens.
"""

import math
from dataclasses import dataclass

from nanochat_lit.common.errors import UserError, check_positive
from nanochat_lit.model.accounting import count_parameters, flops_per_token
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.optim.build import WEIGHT_DECAY

REFERENCE_DEPTH = 12
REFERENCE_TOKENS_PER_STEP = 2**19
BATCH_EXPONENT = 0.383


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Derived hyper-parameters of a run."""

    target_tokens: int
    """Number of tokens by the token-to-parameter ratio."""
    tokens_per_step: int
    """Tokens per optimizer step over all ranks."""
    num_steps: int
    """Number of optimizer steps."""
    lr_scale: float
    """Factor on every learning rate (except the smear group) for this batch size."""
    weight_decay: float
    """Weight decay of the Muon groups."""
    flops_per_token: int
    """FLOPs per trained token, forward and backward."""

    @property
    def total_tokens(self) -> int:
        """Total number of trained tokens."""
        return self.num_steps * self.tokens_per_step

    @property
    def total_flops(self) -> int:
        """FLOPs of the whole run."""
        return self.total_tokens * self.flops_per_token


def derive_plan(
    config: GPTConfig,
    *,
    target_param_data_ratio: float = 12.0,
    tokens_per_step: int | None = None,
    num_steps: int | None = None,
    target_flops: float | None = None,
    weight_decay: float = WEIGHT_DECAY,
) -> TrainingPlan:
    """Derive batch, steps, learning-rate scale and weight decay.

    The length of the run is determined by the first one given of num_steps, target_flops, target_param_data_ratio.

    Args:
        config: Configuration of the model.
        target_param_data_ratio: Tokens per scaling parameter.
        tokens_per_step: Batch size, tokens; None derives it.
        num_steps: Number of steps; None derives it.
        target_flops: Compute budget of the run, FLOPs.
        weight_decay: Weight decay at the reference batch and horizon.

    Raises:
        UserError: If a value is not positive or the budget is less than one step.
    """
    check_positive(
        target_param_data_ratio=target_param_data_ratio,
        tokens_per_step=tokens_per_step,
        num_steps=num_steps,
        target_flops=target_flops,
    )
    reference = GPTConfig.from_depth(
        REFERENCE_DEPTH,
        vocab_size=config.vocab_size,
        sequence_len=config.sequence_len,
        head_dim=config.head_dim,
        window_pattern=config.window_pattern,
    )
    target_tokens = int(target_param_data_ratio * count_parameters(config).scaling)
    reference_tokens = target_param_data_ratio * count_parameters(reference).scaling
    batch = tokens_per_step or _derive_tokens_per_step(target_tokens, reference_tokens)
    flops = flops_per_token(config)
    steps = num_steps or _derive_num_steps(target_tokens, target_flops, flops, batch)
    batch_ratio = batch / REFERENCE_TOKENS_PER_STEP
    return TrainingPlan(
        target_tokens=target_tokens,
        tokens_per_step=batch,
        num_steps=steps,
        lr_scale=batch_ratio**0.5,
        weight_decay=weight_decay * batch_ratio**0.5 * (reference_tokens / target_tokens),
        flops_per_token=flops,
    )


def _derive_tokens_per_step(target_tokens: int, reference_tokens: float) -> int:
    """Return the power of two nearest to the optimal batch size of the token horizon."""
    batch = REFERENCE_TOKENS_PER_STEP * (target_tokens / reference_tokens) ** BATCH_EXPONENT
    return int(2 ** round(math.log2(batch)))


def _derive_num_steps(target_tokens: int, target_flops: float | None, flops: int, tokens_per_step: int) -> int:
    budget = target_tokens if target_flops is None else target_flops / flops
    num_steps = int(budget // tokens_per_step) if target_flops is None else round(budget / tokens_per_step)
    if num_steps < 1:
        raise UserError(
            f"{int(budget):,} tokens are less than one step of {tokens_per_step:,}; "
            "increase the ratio or decrease tokens_per_step"
        )
    return num_steps


def micro_batches(tokens_per_step: int, micro_batch_size: int, sequence_len: int, world_size: int = 1) -> int:
    """Return the micro-batches per rank and optimizer step; UserError, with the nearest sizes, if they don't fill it."""
    unit = micro_batch_size * sequence_len * world_size
    if unit <= 0 or tokens_per_step < 1:
        raise UserError(
            f"tokens_per_step {tokens_per_step}, micro_batch_size {micro_batch_size}, sequence_len {sequence_len} and "
            f"world size {world_size} must all be at least 1"
        )
    if tokens_per_step % unit:
        below, above = tokens_per_step // unit * unit, -(-tokens_per_step // unit) * unit
        nearest = f"{above:,}" if below == 0 else f"{below:,} or {above:,}"
        raise UserError(
            f"tokens_per_step {tokens_per_step:,} is not a multiple of micro_batch_size {micro_batch_size} x "
            f"sequence_len {sequence_len} x {world_size} rank(s) = {unit:,}; use {nearest}"
        )
    return tokens_per_step // unit
