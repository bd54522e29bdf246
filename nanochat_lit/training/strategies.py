"""Multi-rank strategies: `zero` (sharded optimizer state) and `ddp` (everything replicated).

Both use the process group, launchers and checkpoints of Lightning's DDP strategy. `zero` omits the DDP wrapper:
gradients accumulate locally, and `MuonAdamW` averages them in its step.
"""

from inspect import signature
from typing import Any, cast

import torch.distributed as dist
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDP
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nanochat_lit.common.errors import UserError
from nanochat_lit.optim import clip_grad_norm
from nanochat_lit.optim.sharding import average_gradients
from nanochat_lit.training.lightning_internals import keep_gradients_local, unwrapped
from nanochat_lit.training.rank_watch import RankWatch


class WatchedDDPStrategy(DDPStrategy):
    """Lightning's `ddp`, which also exits promptly with a one-line error when a rank dies.

    Buffers are broadcast once at the start instead of before every forward pass. Those of a GPT are constant, and in
    validation ranks may have different numbers of batches, which would deadlock a broadcast per batch.
    """

    def __init__(self, **kwargs: Any) -> None:
        options = signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"  # before torch 2.13
        super().__init__(**{name: False, **kwargs})
        self._watch: RankWatch | None = None

    def setup_environment(self) -> None:
        """Create the process group and start watching it, because preparing data may take long."""
        super().setup_environment()
        if self._watch is None:
            self._watch = RankWatch(self.global_rank, self.world_size)

    def on_exception(self, exception: BaseException) -> None:
        """Notify the other ranks, except of a SystemExit, which all ranks have agreed on."""
        super().on_exception(exception)
        if self._watch is not None and isinstance(exception, SystemExit):
            self._watch.finish()
        elif self._watch is not None:
            self._watch.fail(exception)

    def teardown(self) -> None:
        """Announce a normal exit and tear down."""
        super().teardown()
        if self._watch is not None:
            self._watch.finish()
            self._watch = None


class ZeroStrategy(WatchedDDPStrategy):
    """ZeRO stage 1: every rank has all parameters and 1/N of the optimizer state.

    Requires `MuonAdamW`, which communicates in its step. Gradients are local until then, so accumulation needs no
    communication; use `global_grad_norm`, `clip_grad_norm` and `average_gradients` before the step. The last backward
    pass of a step already starts to exchange finished gradients.
    """

    def configure_ddp(self) -> None:
        """Broadcast rank 0's parameters and buffers; no DDP wrapper."""
        assert self.model is not None
        broadcast_module(self.model)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Shard the module's optimizers."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            shard_optimizer(optimizer)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Overlap communication with a step's last backward pass, unless clipping or loss scaling changes gradients."""
        super().pre_backward(closure_loss)
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        is_last = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_scaled = getattr(self.precision_plugin, "scaler", None) is not None
        if is_last and not is_scaled and not trainer.gradient_clip_val:
            for optimizer in filter(lambda optimizer: hasattr(optimizer, "expect_step"), self.optimizers):
                cast(Any, optimizer).expect_step()


class FabricZeroStrategy(FabricDDP):
    """ZeRO stage 1 for Fabric: `Fabric(strategy=FabricZeroStrategy(), devices=2)`.

    `register_strategies` also makes it available by name. `fabric.setup(model, optimizer)` shards a `MuonAdamW`;
    `optimizer.state_dict()` and `fabric.save` are collective.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keep_gradients_local(self)

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Broadcast rank 0's parameters and buffers; no DDP wrapper."""
        broadcast_module(module)
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Shard the optimizer."""
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
            raise UserError(f"norm_type is {norm_type}; strategy zero supports only 2")
        self.precision.unscale_gradients(optimizer)
        norm = clip_grad_norm(optimizer, max_norm)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(f"the gradient norm is {norm.item()}, so gradients cannot be clipped")
        return norm

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float) -> None:
        """Clip the entries of the averaged gradients."""
        average_gradients(optimizer)
        super().clip_gradients_value(module, optimizer, clip_val)


def register_strategies() -> None:
    """Register `zero` with Trainer and Fabric, and replace the Trainer's `ddp` by `WatchedDDPStrategy`."""
    StrategyRegistry.register("zero", ZeroStrategy, "MuonAdamW state sharded over the ranks", override=True)
    StrategyRegistry.register("ddp", WatchedDDPStrategy, "everything replicated on every rank", override=True)
    STRATEGY_REGISTRY.register("zero", FabricZeroStrategy, "MuonAdamW state sharded over the ranks", override=True)


def broadcast_module(module: nn.Module) -> None:
    """Broadcast the parameters and buffers of rank 0."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.numel():
            dist.broadcast(tensor.data, src=0)


def shard_optimizer(optimizer: Any) -> None:
    """Shard an optimizer's state over the ranks of the process group.

    Raises:
        UserError: If the optimizer has no `shard` method.
    """
    optimizer = unwrapped(optimizer)
    if not hasattr(optimizer, "shard"):
        name = type(optimizer).__name__
        raise UserError(f"strategy zero cannot shard the state of {name}, which has no method shard; use strategy ddp")
    optimizer.shard(dist.get_rank(), dist.get_world_size())
