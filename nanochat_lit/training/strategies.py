"""How several ranks train one model: `zero` (optimizer state divided) and `ddp` (everything on every rank).

Both are Lightning's DDP strategy in process group, launchers and checkpoints. `zero` leaves the DDP wrapper out: gradients
stay local while they accumulate, and `MuonAdamW` averages them when it steps.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch.distributed as dist
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDP
from lightning.fabric.strategies.strategy import _BackwardSyncControl
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.optim import Optimizer

from nanochat_lit.common.errors import UserError
from nanochat_lit.optim import clip_grad_norm
from nanochat_lit.optim.sharding import average_gradients
from nanochat_lit.training.rank_watch import RankWatch


class WatchedDDPStrategy(DDPStrategy):
    """Lightning's `ddp`, which ends soon and with a clear line when a rank dies.

    Buffers are sent once at the start and not before every forward pass: those of a GPT are constants, and in validation,
    where ranks may have different numbers of batches, the ranks with more would wait for ever.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"forward_sync_buffers": False, **kwargs})
        self._watch: RankWatch | None = None

    def setup_environment(self) -> None:
        """Make the process group, and watch over it from here on: data are prepared next, which may take long."""
        super().setup_environment()
        if self._watch is None:
            self._watch = RankWatch(self.global_rank, self.world_size)

    def on_exception(self, exception: BaseException) -> None:
        """Let the other ranks know; a SystemExit is an end that all ranks have agreed on."""
        super().on_exception(exception)
        if self._watch is not None and isinstance(exception, SystemExit):
            self._watch.finish()
        elif self._watch is not None:
            if is_communication_error(exception):
                self._watch.wait_for_blame()
            self._watch.fail(exception)

    def teardown(self) -> None:
        """End well."""
        super().teardown()
        if self._watch is not None:
            self._watch.finish()
            self._watch = None


class ZeroStrategy(WatchedDDPStrategy):
    """ZeRO stage 1: every rank has all parameters and 1/N of the optimizer's state.

    Needs `MuonAdamW`, which sends and receives. Gradients are local until it steps, so accumulation costs no messages;
    `global_grad_norm`, `clip_grad_norm` and `average_gradients` are right before that. The last backward pass of a step
    already starts the messages of gradients that are complete.
    """

    def configure_ddp(self) -> None:
        """No wrapper; all ranks start from rank 0's parameters and buffers."""
        assert self.model is not None
        broadcast_module(self.model)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Divide the optimizers that the module has made."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            shard_optimizer(optimizer)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Let the last backward pass of a step start the messages, unless clipping or a loss scale changes what is sent."""
        super().pre_backward(closure_loss)
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        is_last = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_scaled = getattr(self.precision_plugin, "scaler", None) is not None
        if is_last and not is_scaled and not trainer.gradient_clip_val:
            for optimizer in filter(lambda optimizer: hasattr(optimizer, "expect_step"), self.optimizers):
                cast(Any, optimizer).expect_step()


class _LocalGradients(_BackwardSyncControl):
    """`Fabric.no_backward_sync` under zero: backward never sends anything."""

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext()


class FabricZeroStrategy(FabricDDP):
    """The same for Fabric: `Fabric(strategy=FabricZeroStrategy(), devices=2)`, or by name after `register_strategies`.

    `fabric.setup(model, optimizer)` divides a `MuonAdamW`; `optimizer.state_dict()` and `fabric.save` are collective.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._backward_sync_control = _LocalGradients()

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """No wrapper; all ranks start from rank 0's parameters and buffers."""
        broadcast_module(module)
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Divide the optimizer."""
        shard_optimizer(optimizer)
        return optimizer

    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Clip by the norm of the averaged gradients."""
        if norm_type != 2.0:
            raise UserError(f"norm_type is {norm_type}; the strategy zero clips by the 2-norm only")
        self.precision.unscale_gradients(optimizer)
        norm = clip_grad_norm(optimizer, max_norm)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(f"the norm of the gradients is {norm.item()}, so they cannot be clipped")
        return norm

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float) -> None:
        """Clip the entries of the averaged gradients."""
        average_gradients(optimizer)
        super().clip_gradients_value(module, optimizer, clip_val)


def register_strategies() -> None:
    """Make `zero` known to Trainer and Fabric by name, and let the Trainer's `ddp` watch its ranks."""
    StrategyRegistry.register("zero", ZeroStrategy, "MuonAdamW's state divided among the ranks", override=True)
    StrategyRegistry.register("ddp", WatchedDDPStrategy, "everything on every rank", override=True)
    STRATEGY_REGISTRY.register("zero", FabricZeroStrategy, "MuonAdamW's state divided among the ranks", override=True)


def broadcast_module(module: nn.Module) -> None:
    """Give all ranks the parameters and buffers of rank 0."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.numel():
            dist.broadcast(tensor.data, src=0)


def shard_optimizer(optimizer: Any) -> None:
    """Divide an optimizer's state among the ranks of the process group.

    Raises:
        UserError: If it has no `shard` method, as MuonAdamW has.
    """
    optimizer = getattr(optimizer, "_optimizer", optimizer)  # Lightning wraps them
    if not hasattr(optimizer, "shard"):
        name = type(optimizer).__name__
        raise UserError(f"strategy zero cannot divide the state of {name}, which has no method shard; use strategy ddp")
    optimizer.shard(dist.get_rank(), dist.get_world_size())


def is_communication_error(error: BaseException) -> bool:
    """Whether a collective has failed, as it does when another rank is gone."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
