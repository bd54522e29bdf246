"""A minimal training loop without a Trainer, for notebooks and small experiments."""

from collections.abc import Iterable
from itertools import islice

from torch import Tensor

from nanochat_lit.model import GPT
from nanochat_lit.optim.build import apply_schedule, build_optimizer
from nanochat_lit.optim.param_groups import WEIGHT_DECAY
from nanochat_lit.optim.schedules import Schedule


def train_in_a_loop(
    model: GPT, batches: Iterable[dict[str, Tensor]], schedule: Schedule, **learning_rates: float
) -> list[float]:
    """Take one optimizer step per batch, on the model's device.

    Args:
        model: Model to train in place.
        batches: Batches with inputs and targets, (B, T) token ids.
        schedule: Schedule of learning rates, momentum and weight decay; determines the number of steps.
        **learning_rates: Learning rates and weight decay, as in `param_groups`.

    Returns:
        Loss per step, nats per token.
    """
    weight_decay = learning_rates.pop("weight_decay", WEIGHT_DECAY)
    optimizer = build_optimizer(model, learning_rates, weight_decay=weight_decay)
    losses = []
    for step, batch in enumerate(islice(batches, schedule.num_steps)):
        apply_schedule(optimizer, schedule, step, weight_decay)
        loss = model(batch["inputs"].to(model.device), batch["targets"].to(model.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
