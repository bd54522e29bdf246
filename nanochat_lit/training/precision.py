"""Explicit precision: one compute dtype, float32 master weights, no autocast.

The model casts its matrices to the dtype of its activations (see `nanochat_lit.model.gpt`). A plugin therefore only
chooses that dtype, stores the embeddings in it, and scales the loss for float16.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.precision import Precision as FabricPrecision
from lightning.pytorch.plugins.precision import Precision as TrainerPrecision
from torch import Tensor, nn

from nanochat_lit.common.hardware import find_device, resolve_compute_dtype
from nanochat_lit.common.torch_internals import overflows
from nanochat_lit.model.gpt import GPT
from nanochat_lit.optim import clip_grad_norm
from nanochat_lit.optim.sharding import average_gradients
from nanochat_lit.training.lightning_internals import after_closure


class _ComputeDtype:
    """Base class of both plugins: the dtype, and the loss scale of float16."""

    precision: Any = "32-true"  # Lightning's value for no conversion

    def __init__(self, compute_dtype: str = "auto", device: str | torch.device | None = None) -> None:
        device = find_device(device)
        self.compute_dtype = resolve_compute_dtype(compute_dtype, device)
        self.scaler = torch.amp.GradScaler(device.type) if self.compute_dtype == torch.float16 else None
        self._unscaled: set[int] = set()

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Set the compute dtype of every GPT in the module; called once, before the optimizer is created."""
        for part in module.modules():
            if isinstance(part, GPT):
                part.set_compute_dtype(self.compute_dtype)
        return module

    def unscale_gradients(self, optimizer: Any) -> None:
        """Divide float16 gradients by the loss scale, unless already done; required before clipping."""
        if self.scaler is not None and id(optimizer) not in self._unscaled:
            self.scaler.unscale_(optimizer)
            self._unscaled.add(id(optimizer))

    def agree_on_overflow(self, optimizer: Any) -> None:
        """Unscale the gradients and share overflows among the ranks, so that either all skip the step or none."""
        assert self.scaler is not None
        self.unscale_gradients(optimizer)
        self._unscaled.discard(id(optimizer))
        if dist.is_available() and dist.is_initialized():
            for found_inf in overflows(self.scaler, optimizer):
                dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)

    def state_dict(self) -> dict[str, Any]:
        """Return the float16 loss scale."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the float16 loss scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state_dict)


class ExplicitPrecision(_ComputeDtype, TrainerPrecision):
    """Trainer plugin that runs every GPT of a module in one compute dtype; see `resolve_compute_dtype`."""

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """Scale the float16 loss."""
        return super().pre_backward(tensor if self.scaler is None else self.scaler.scale(tensor), module)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Step the optimizer; in float16 only if no rank's gradients overflowed."""
        if self.scaler is None:
            return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)
        result = closure()
        self.agree_on_overflow(optimizer)
        after_closure(self, model, optimizer)
        self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result

    def clip_grad_by_norm(self, optimizer: Any, clip_val: float) -> None:
        """Clip by the norm over all ranks; under zero the gradients are still local to this rank."""
        clip_grad_norm(optimizer, clip_val)

    def clip_grad_by_value(self, optimizer: Any, clip_val: float) -> None:
        """Clip the entries of the averaged gradients."""
        average_gradients(optimizer)
        super().clip_grad_by_value(optimizer, clip_val)


class FabricExplicitPrecision(_ComputeDtype, FabricPrecision):
    """Fabric plugin: `Fabric(plugins=[FabricExplicitPrecision("bfloat16")])`."""

    def backward(self, tensor: Tensor, model: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        """Scale the float16 loss and run backward."""
        super().backward(tensor if self.scaler is None else self.scaler.scale(tensor), model, *args, **kwargs)

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        """Step the optimizer; in float16 only if no rank's gradients overflowed."""
        if self.scaler is None:
            return super().optimizer_step(optimizer, **kwargs)
        self.agree_on_overflow(optimizer)
        result = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result
