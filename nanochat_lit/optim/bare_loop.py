"""Training without a Trainer: the loop that notebooks and small experiments need, and nothing more."""

from collections.abc import Iterable
from itertools import islice

from torch import Tensor

from nanochat_lit.model import GPT
from nanochat_lit.optim.muon_adamw import MuonAdamW
from nanochat_lit.optim.param_groups import param_groups
from nanochat_lit.optim.schedules import Schedule


def train_in_a_loop(
    model: GPT, batches: Iterable[dict[str, Tensor]], schedule: Schedule, **learning_rates: float
) -> list[float]:
    """Take a step for each batch, on the device where the model is.

    Args:
        model: Trained in place.
        batches: Each with inputs and targets, (B, T) token ids.
        schedule: Of learning rates, momentum and weight decay; says how many steps.
        **learning_rates: And weight decay, as `param_groups` takes them.

    Returns:
        Loss of each step, nats per token.
    """
    optimizer = MuonAdamW(param_groups(model, **learning_rates))
    groups = optimizer.param_groups
    start = [(group["lr"], group["weight_decay"]) for group in groups]
    losses = []
    for step, batch in enumerate(islice(batches, schedule.num_steps)):
        for group, (lr, weight_decay) in zip(groups, start, strict=True):
            group["lr"] = lr * schedule.lr_multiplier(step)
            if group["kind"] == "muon":
                group["momentum"] = schedule.muon_momentum(step)
                group["weight_decay"] = weight_decay * schedule.weight_decay_multiplier(step)
        loss = model(batch["inputs"].to(model.device), batch["targets"].to(model.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
