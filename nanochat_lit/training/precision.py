"""Explicit precision: one compute dtype, float32 master weights, no autocast.

The model itself casts its matrices to the dtype of its activations (see `nanochat_lit.model.gpt`), so a plugin's work is
to choose that dtype once, to store the embedding tables in it, and for float16 to scale the loss.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.precision import Precision as FabricPrecision
from lightning.pytorch.plugins.precision import Precision as TrainerPrecision
from torch import Tensor, nn

from nanochat_lit.common.hardware import find_device, resolve_compute_dtype
from nanochat_lit.model.gpt import GPT
from nanochat_lit.optim import clip_grad_norm
from nanochat_lit.optim.sharding import average_gradients


class _ComputeDtype:
    """What both plugins share: the dtype, and the loss scale of float16."""

    precision: Any = "32-true"  # the word Lightning knows for "do not convert anything"

    def __init__(self, compute_dtype: str = "auto", device: str | torch.device | None = None) -> None:
        device = find_device(device)
        self.compute_dtype = resolve_compute_dtype(compute_dtype, device)
        self.scaler = torch.amp.GradScaler(device.type) if self.compute_dtype == torch.float16 else None
        self._unscaled: set[int] = set()

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Set the compute dtype of every GPT inside; called once, before the optimizer is made."""
        for part in module.modules():
            if isinstance(part, GPT):
                part.set_compute_dtype(self.compute_dtype)
        return module

    def unscale_gradients(self, optimizer: Any) -> None:
        """Take the loss scale out of the gradients, in float16, unless that is done already: who clips needs it."""
        if self.scaler is not None and id(optimizer) not in self._unscaled:
            self.scaler.unscale_(optimizer)
            self._unscaled.add(id(optimizer))

    def agree_on_overflow(self, optimizer: Any) -> None:
        """Unscale the gradients, then let every rank know whether any rank's overflowed, so that all skip or none."""
        assert self.scaler is not None
        self.unscale_gradients(optimizer)
        self._unscaled.discard(id(optimizer))
        if dist.is_available() and dist.is_initialized():
            for found_inf in self.scaler._found_inf_per_device(optimizer).values():
                dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, in float16."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the loss scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state_dict)


class ExplicitPrecision(_ComputeDtype, TrainerPrecision):
    """Trainer plugin that runs every GPT of a module in one compute dtype.

    Args:
        compute_dtype: auto, bfloat16, float16 or float32; the environment variable NANOCHAT_DTYPE wins over it. auto
            is bfloat16 where the hardware has it (CUDA from compute capability 8.0, CPUs with bf16 instructions).
        device: Where the model will run; None is the fastest device there is.
    """

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """Scale the loss, in float16."""
        return super().pre_backward(tensor if self.scaler is None else self.scaler.scale(tensor), module)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Step; in float16 only if no rank's gradients overflowed."""
        if self.scaler is None:
            return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)
        result = closure()
        self.agree_on_overflow(optimizer)
        self._after_closure(model, optimizer)
        self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result

    def clip_grad_by_norm(self, optimizer: Any, clip_val: float) -> None:
        """Clip by the norm over all ranks: under zero the gradients here are still those of this rank's batches."""
        clip_grad_norm(optimizer, clip_val)

    def clip_grad_by_value(self, optimizer: Any, clip_val: float) -> None:
        """Clip the entries of the averaged gradients."""
        average_gradients(optimizer)
        super().clip_grad_by_value(optimizer, clip_val)


class FabricExplicitPrecision(_ComputeDtype, FabricPrecision):
    """The same for Fabric: `Fabric(plugins=[FabricExplicitPrecision("bfloat16")])`."""

    def backward(self, tensor: Tensor, model: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        """Scale the loss, in float16, and run backward."""
        super().backward(tensor if self.scaler is None else self.scaler.scale(tensor), model, *args, **kwargs)

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        """Step; in float16 only if no rank's gradients overflowed."""
        if self.scaler is None:
            return super().optimizer_step(optimizer, **kwargs)
        self.agree_on_overflow(optimizer)
        result = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result
