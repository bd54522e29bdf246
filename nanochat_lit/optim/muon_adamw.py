"""One optimizer for the whole model: Muon for the matrices of the blocks, AdamW for everything else."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nanochat_lit.common.errors import UserError
from nanochat_lit.optim.polar import equilibrate_rows, polar_express


def muon_direction(gradients: Tensor, momentum_buffer: Tensor, momentum: float, product_dtype: torch.dtype) -> Tensor:
    """Orthogonalised Nesterov momentum of a stack of matrices (Jordan et al. 2024, Muon).

    Args:
        gradients: (K, m, n).
        momentum_buffer: (K, m, n) running mean of the gradients; updated in place.
        momentum: Share of the old mean that stays.
        product_dtype: Dtype of the matrix products.

    Returns:
        (K, m, n) in product_dtype.
    """
    momentum_buffer.lerp_(gradients, 1.0 - momentum)
    nesterov = gradients.lerp(momentum_buffer, momentum)
    return polar_express(equilibrate_rows(nesterov.to(product_dtype)))


def normalise_neurons(direction: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """Even out the update sizes of the neurons, keeping each matrix's norm (NorMuon. https://arxiv.org/abs/2510.05491).

    Args:
        direction: (K, m, n).
        second_moment: (K, m, 1), or (K, 1, n) when m < n: running mean squares; updated in place.
        beta2: Share of the old mean squares that stays.
    """
    axis = -1 if direction.shape[-2] >= direction.shape[-1] else -2
    size = direction.shape[axis]
    mean_square = direction.float().square().mean(dim=axis, keepdim=True)
    second_moment.lerp_(mean_square.to(second_moment.dtype), 1.0 - beta2)
    scale = second_moment.float().clamp(min=1e-10).rsqrt()
    old_norm = (mean_square.sum(dim=(-2, -1), keepdim=True) * size).sqrt()
    new_norm = ((mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True) * size).sqrt()
    return direction * (scale * (old_norm / new_norm.clamp(min=1e-10))).to(direction.dtype)


def cautious_update(parameters: Tensor, direction: Tensor, lr: float, weight_decay: float) -> None:
    """Step in place; weight decay acts only where it pulls the way the update goes.

    Args:
        parameters: (K, m, n), updated in place.
        direction: (K, m, n).
        lr: Learning rate of a square matrix; tall ones take sqrt(m / n) times it.
        weight_decay: Decay per unit of learning rate.
    """
    lr = lr * max(1.0, direction.shape[-2] / direction.shape[-1]) ** 0.5
    direction = direction.to(parameters.dtype)
    if weight_decay:
        agrees = (direction * parameters) >= 0
        direction = direction.addcmul(parameters, agrees.to(parameters.dtype), value=weight_decay)
    parameters.sub_(direction, alpha=lr)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (with MuonEq, Polar Express, Muon+, NorMuon and cautious decay) and AdamW in one optimizer.

    Every group has a `kind`: "muon" groups hold same-shaped matrices, updated as one stack, and read lr, momentum,
    beta2 and weight_decay; "adamw" groups read lr, betas, eps and weight_decay. Schedules may write any of them.

    Args:
        groups: As `param_groups` makes them.
        product_dtype: Dtype of Muon's matrix products; None means the gradient's own.

    Raises:
        UserError: If a group is of no known kind or a muon group mixes shapes.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], product_dtype: torch.dtype | None = None) -> None:
        super().__init__(groups, {})
        self.product_dtype = product_dtype
        for group in self.param_groups:
            if group.get("kind") not in ("muon", "adamw"):
                raise UserError(f"parameter group of kind {group.get('kind')!r}; it must be 'muon' or 'adamw'")
            shapes = {tuple(parameter.shape) for parameter in group["params"]}
            if group["kind"] == "muon" and (len(shapes) != 1 or len(next(iter(shapes))) != 2):
                raise UserError(f"a muon group takes matrices of one shape, this one has {sorted(shapes)}")
            group.setdefault("initial_lr", group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._step_muon(group)
            else:
                self._step_adamw(group)
        return loss

    def _step_muon(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        assert len(parameters) == len(group["params"]), "a muon group steps whole: every matrix needs its gradient"
        gradients = torch.stack([parameter.grad for parameter in parameters])
        state = self.state[parameters[0]]
        if not state:
            num_rows, num_columns = gradients.shape[-2:]
            moment_shape = (
                (len(parameters), num_rows, 1) if num_rows >= num_columns else (len(parameters), 1, num_columns)
            )
            state["momentum_buffer"] = torch.zeros_like(gradients)
            state["second_moment"] = gradients.new_zeros(moment_shape)
        direction = muon_direction(
            gradients, state["momentum_buffer"], group["momentum"], self.product_dtype or gradients.dtype
        )
        direction = normalise_neurons(direction, state["second_moment"], group["beta2"])
        stacked = torch.stack(list(parameters))
        cautious_update(stacked, direction, group["lr"], group["weight_decay"])
        for parameter, updated in zip(parameters, stacked.unbind(), strict=True):
            parameter.copy_(updated)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
