"""`micro_batch_size: auto`: the largest number of sequences per forward pass that fits, identical on every rank.

On a GPU, sizes are tried and out-of-memory errors caught. On a CPU, where running out of memory kills the process, the
estimate of `nanochat_lit.model.memory` is compared with the free memory.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from nanochat_lit.common.available_memory import available_memory_bytes
from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.attention import cuda_facts
from nanochat_lit.model.gpt import Checkpointing
from nanochat_lit.model.memory import largest_that_fits, training_memory
from nanochat_lit.optim import micro_batches

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from nanochat_lit.training.module import LanguageModule

CPU_ENOUGH_TOKENS = 8192
"""Tokens per forward pass above which a CPU does not get faster."""

CPU_MEMORY_SHARE = 0.8
"""Fraction of the free memory that a run may use, leaving some for other programs."""


def possible_sizes(tokens_per_step: int, sequence_len: int, world_size: int) -> list[int]:
    """Return the micro-batch sizes that divide tokens_per_step, in ascending order.

    Raises:
        UserError: If not even one sequence per rank does.
    """
    rows = micro_batches(tokens_per_step, 1, sequence_len, world_size)
    return [size for size in range(1, rows + 1) if rows % size == 0]


def cpu_fits(
    config: GPTConfig,
    available_bytes: float,
    *,
    compute_dtype: torch.dtype,
    is_compiled: bool,
    checkpointing: Checkpointing,
) -> Callable[[int], bool]:
    """Return a predicate: whether the estimated memory of a size is available and the size is useful."""

    def fits(size: int) -> bool:
        estimate = training_memory(
            config,
            micro_batch_size=size,
            compute_dtype=compute_dtype,
            device_type="cpu",
            is_compiled=is_compiled,
            activation_checkpointing=checkpointing,
        )
        is_useful = size == 1 or size * config.sequence_len <= CPU_ENOUGH_TOKENS
        return is_useful and estimate.total <= available_bytes

    return fits


def trial_fits(model: GPT, reserved_bytes: int) -> Callable[[int], bool]:
    """Return a predicate: whether a forward and backward pass of a size fit the model's device.

    Args:
        model: Model on its device, in its compute dtype; its gradients are discarded.
        reserved_bytes: Memory to reserve during the trial for the optimizer state.
    """

    def fits(size: int) -> bool:
        try:
            reserved = torch.empty(reserved_bytes, dtype=torch.uint8, device=model.device)
            tokens = torch.zeros(size, model.config.sequence_len, dtype=torch.int64, device=model.device)
            for _ in range(2):  # the second pass runs with the first one's gradients allocated, as in accumulation
                model(tokens, tokens).backward()
            del reserved
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
            gc.collect()  # a traceback may keep activations alive
            if model.device.type != "cpu":
                torch.accelerator.empty_cache()
        return True

    return fits


def choose_micro_batch_size(module: "LanguageModule", tokens_per_step: int) -> int:
    """Return the micro-batch size for this run, agreed by all ranks.

    Raises:
        UserError: If not even one sequence fits.
    """
    trainer, model = module.trainer, module.model
    device = trainer.strategy.root_device
    sizes = possible_sizes(tokens_per_step, model.config.sequence_len, trainer.world_size)
    dtype = getattr(trainer.precision_plugin, "compute_dtype", model.compute_dtype)
    if device.type != "cpu":
        model.to(device).set_compute_dtype(dtype)
        memory = training_memory(
            model.config,
            micro_batch_size=1,
            compute_dtype=dtype,
            device_type=device.type,
            capability=cuda_facts(device).get("capability"),
            strategy=strategy_name(trainer),
            world_size=trainer.world_size,
        )
        bucket_bytes = memory.gradients - memory.weights  # ddp only
        fits = trial_fits(model, memory.optimizer_state + bucket_bytes)
    else:
        available = CPU_MEMORY_SHARE * available_memory_bytes() / trainer.num_devices
        fits = cpu_fits(
            model.config,
            available,
            compute_dtype=dtype,
            is_compiled=module.will_compile(),
            checkpointing=model.activation_checkpointing,
        )
    size = largest_that_fits(sizes, fits)
    if dist.is_available() and dist.is_initialized():
        smallest = torch.tensor(size, device=device)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        size = int(smallest)
    if size == 0:
        raise UserError(
            f"not even one sequence of {model.config.sequence_len} tokens fits this machine's memory; use a smaller depth or "
            "sequence_len, or activation_checkpointing: true"
        )
    return size


def strategy_name(trainer: "Trainer") -> str:
    """Return the sharding strategy: "zero" or "ddp"."""
    return "zero" if "Zero" in type(trainer.strategy).__name__ else "ddp"
