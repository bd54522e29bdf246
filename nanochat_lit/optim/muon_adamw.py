"""One optimizer for the whole model: Muon for the matrices of the blocks, AdamW for everything else."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nanochat_lit.common.errors import UserError
from nanochat_lit.optim.muon_kernel import add_product, has_muon_kernel, normalised_momentum, update_in_place
from nanochat_lit.optim.polar import equilibrate_rows, polar_express, polar_iterations
from nanochat_lit.optim.sharding import MIN_SHARDED_ELEMENTS, Exchange, Pending, Shards


def muon_direction(gradients: Tensor, momentum_buffer: Tensor, momentum: float, product_dtype: torch.dtype) -> Tensor:
    """Return the orthogonalised Nesterov momentum of a stack of matrices, (K, m, n) (Jordan et al. 2024, Muon).

    `momentum_buffer`, the running mean of the gradients in which the old mean has the weight `momentum`, is updated in
    place.
    """
    momentum_buffer.lerp_(gradients, 1.0 - momentum)
    nesterov = gradients.lerp(momentum_buffer, momentum)
    return polar_express(equilibrate_rows(nesterov.to(product_dtype)))


def normalise_neurons(direction: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """Equalize the update sizes of the neurons of (K, m, n), keeping each matrix's norm (NorMuon).

    `second_moment`, (K, m, 1), or (K, 1, n) when m < n, has running mean squares; it is updated in place.
    https://arxiv.org/abs/2510.05491
    """
    axis = -1 if direction.shape[-2] >= direction.shape[-1] else -2
    size = direction.shape[axis]
    mean_square = torch.linalg.vector_norm(direction, dim=axis, keepdim=True, dtype=torch.float32).square() / size
    second_moment.lerp_(mean_square.to(second_moment.dtype), 1.0 - beta2)
    scale = second_moment.float().clamp(min=1e-10).rsqrt()
    old_norm = (mean_square.sum(dim=(-2, -1), keepdim=True) * size).sqrt()
    new_norm = ((mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True) * size).sqrt()
    return direction * (scale * (old_norm / new_norm.clamp(min=1e-10))).to(direction.dtype)


def cautious_update(parameters: Tensor, direction: Tensor, lr: float, weight_decay: float) -> None:
    """Update parameters, (K, m, n), in place; weight decay applies only where it has the sign of the update.

    `lr` is that of a square matrix; it is multiplied by sqrt(m / n) for tall ones. Weight decay is per unit of learning
    rate.
    """
    lr = lr * _shape_factor(direction)
    direction = direction.to(parameters.dtype)
    if weight_decay:
        agrees = (direction * parameters) >= 0
        direction = direction.addcmul(parameters, agrees.to(parameters.dtype), value=weight_decay)
    parameters.sub_(direction, alpha=lr)


def muon_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    state: dict[str, Tensor],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    """Take one Muon step on K matrices of one shape, in place.

    `state` has momentum_buffer and second_moment, as above; `options` has momentum, beta2, lr and weight_decay; `dtype`
    is that of the matmuls.
    """
    momentum, beta2, lr, weight_decay = (options[name] for name in ("momentum", "beta2", "lr", "weight_decay"))
    if has_muon_kernel([*parameters, *gradients], dtype):
        x = normalised_momentum(gradients, state["momentum_buffer"], momentum, dtype)
        x, lr = polar_iterations(x, add_product), lr * _shape_factor(x)
        update_in_place(parameters, x, state["second_moment"], beta2=beta2, lr=lr, weight_decay=weight_decay)
        return
    direction = muon_direction(torch.stack(gradients), state["momentum_buffer"], momentum, dtype)
    direction = normalise_neurons(direction, state["second_moment"], beta2)
    stacked = torch.stack(parameters)
    cautious_update(stacked, direction, lr, weight_decay)
    for parameter, value in zip(parameters, stacked.unbind(), strict=True):
        parameter.copy_(value)


def _shape_factor(matrices: Tensor) -> float:
    return max(1.0, matrices.shape[-2] / matrices.shape[-1]) ** 0.5


class MuonAdamW(torch.optim.Optimizer):
    """Muon (with MuonEq, Polar Express, Muon+, NorMuon and cautious decay) and AdamW in one optimizer.

    Every group has a `kind`. "muon" groups have matrices of one shape, updated as a stack, and use lr, momentum, beta2
    and weight_decay. "adamw" groups use lr, betas, eps and weight_decay. Schedules may change any of them.

    After `shard` each rank stores and updates its shard: some matrices of the muon groups, and some rows of each large
    adamw tensor. `state_dict` and `load_state_dict` use the full state, so a checkpoint fits any number of ranks.

    Args:
        groups: Result of `param_groups`.
        product_dtype: Dtype of Muon's matmuls; None is the gradient's dtype.

    Raises:
        UserError: If a group has an unknown kind, or a muon group mixes shapes.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], product_dtype: torch.dtype | None = None) -> None:
        super().__init__(groups, {})
        self.product_dtype = product_dtype
        self.shards = Shards()
        self._exchange: Exchange | None = None
        for group in self.param_groups:
            if group.get("kind") not in ("muon", "adamw"):
                raise UserError(f"parameter group of kind {group.get('kind')!r}; it must be 'muon' or 'adamw'")
            shapes = {tuple(parameter.shape) for parameter in group["params"]}
            if group["kind"] == "muon" and (len(shapes) != 1 or len(next(iter(shapes))) != 2):
                raise UserError(f"a muon group needs matrices of one shape, but has {sorted(shapes)}")
            group.setdefault("initial_lr", group["lr"])

    def shard(self, rank: int, world_size: int) -> None:
        """Shard the optimizer over the ranks of the default process group; `step` then averages their local gradients."""
        shards = Shards(rank, world_size)
        if shards != self.shards:
            assert self.shards.world_size == 1, "the optimizer is already sharded"
            whole = super().state_dict()
            muon, adamw = ([group["params"] for group in self._groups(kind)] for kind in ("muon", "adamw"))
            tables = [list(filter(_is_divided, parameters)) for parameters in adamw]
            self.shards, self._exchange = shards, Exchange(muon, tables, shards)
            self.load_state_dict(whole)

    def expect_step(self) -> None:
        """Start averaging gradients during the next backward pass, the last one before `step`."""
        if self._exchange is not None:
            self._exchange.expect_step()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter with a gradient; return the closure's result."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._exchange is not None:
            self._exchange.start()
        small = self._small_averages()  # start all messages before waiting for the first
        writes: list[Callable[[], None]] = []
        for group in self._groups("adamw"):
            writes += self._update_adamw(group, small)
        if self._exchange is None:
            own = {p: p.grad for group in self._groups("muon") for p in group["params"] if p.grad is not None}
        else:
            own = self._exchange.averages_of_matrices()
        for group in self._groups("muon"):
            self._update_muon(group, own)
        if self._exchange is not None:
            writes += [bucket.gather() for bucket in self._exchange.buckets]
        for write in writes:  # the embeddings were gathered while Muon computed
            write()
        return loss

    def _groups(self, kind: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["kind"] == kind]

    def _small_averages(self) -> dict[Tensor, Pending]:
        """Return averaged gradients of the adamw tensors that every rank updates."""
        parameters: list[Tensor] = [p for group in self._groups("adamw") for p in group["params"]]
        small = [p for p in parameters if self._exchange is None or not _is_divided(p)]
        return {p: self.shards.average_whole(p.grad) for p in small if p.grad is not None}

    def _update_muon(self, group: dict[str, Any], averages: dict[Tensor, Tensor]) -> None:
        parameters = _with_gradient(group)
        if not parameters:
            return
        assert len(parameters) == len(group["params"]), "every matrix of a muon group needs a gradient"
        own = [parameter for parameter in parameters if parameter in averages]
        state = self.state[parameters[0]]
        if not state:
            num_rows, num_columns = parameters[0].shape
            moment_shape = (num_rows, 1) if num_rows >= num_columns else (1, num_columns)
            for name, shape in (("momentum_buffer", (num_rows, num_columns)), ("second_moment", moment_shape)):
                state[name] = parameters[0].new_zeros(len(own), *shape)
        if own:
            gradients = [averages[parameter] for parameter in own]
            muon_step(own, gradients, state, group, self.product_dtype or gradients[0].dtype)

    def _update_adamw(self, group: dict[str, Any], small: dict[Tensor, Pending]) -> list[Callable[[], None]]:
        parameters = _with_gradient(group)
        parts = [parameter if parameter in small else self.shards.own(parameter) for parameter in parameters]
        for parameter, part in zip(parameters, parts, strict=True):
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(part)
                state["exp_avg_sq"] = torch.zeros_like(part)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parts,
            [small[p].wait() if p in small else cast(Exchange, self._exchange).average_of_rows(p) for p in parameters],
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
        return [
            partial(_write, parameter, self.shards.gather(part, len(parameter), into=parameter.data))
            for parameter, part in zip(parameters, parts, strict=True)
            if parameter not in small
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the full state of all ranks, as on a single rank.

        Collective if sharded. The tensors are gathered one at a time on the CPU of rank 0; other ranks get only the
        hyper-parameters.
        """
        whole = super().state_dict()
        if self._exchange is not None:
            for index, _, gather in self._divided():
                if index in whole["state"]:
                    state = whole["state"][index]
                    whole["state"][index] = {name: self._gather_state(name, state[name], gather) for name in state}
            if self.shards.rank != 0:
                whole["state"] = {}
        return whole

    def _gather_state(self, name: str, value: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        if name == "step":
            return value
        gathered = gather(value)
        return gathered.cpu() if self.shards.rank == 0 else value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state from any number of ranks; this rank keeps its shard."""
        state = dict(state_dict["state"])
        for index, own, _ in self._divided():
            if index in state:
                parts = {name: value if name == "step" else value[own].clone() for name, value in state[index].items()}
                state[index] = parts
        super().load_state_dict({**state_dict, "state": state})
        for parameter, loaded in self.state.items():
            if "step" in loaded:  # torch keeps it on the CPU; fused AdamW needs it on the parameter's device
                loaded["step"] = loaded["step"].to(parameter.device)

    def _divided(self) -> Iterator[tuple[int, slice | list[int], Callable[[Tensor], Tensor]]]:
        """Yield each sharded state's index in state_dict, this rank's rows, and a function that gathers all rows."""
        index = 0
        for group in self.param_groups:
            parameters: list[Tensor] = group["params"]
            if group["kind"] == "muon":  # the first parameter has the state of the stack
                owners = [0 if self._exchange is None else self._exchange.owner(p) for p in parameters]
                own = [at for at, owner in enumerate(owners) if owner == self.shards.rank]
                yield index, own, partial(self.shards.gather_dealt, owners=owners)
            else:
                for at, parameter in enumerate(parameters):
                    if _is_divided(parameter):
                        count = len(parameter)
                        yield index + at, self.shards.span(count), partial(self._gather_rows, count=count)
            index += len(parameters)

    def _gather_rows(self, own: Tensor, count: int) -> Tensor:
        return self.shards.gather(own, count).wait()


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _is_divided(tensor: Tensor) -> bool:
    return tensor.numel() >= MIN_SHARDED_ELEMENTS


def _write(parameter: Tensor, whole: Pending) -> None:
    value = whole.wait()
    if value.data_ptr() != parameter.data_ptr():
        parameter.copy_(value)
