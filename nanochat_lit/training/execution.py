"""How a run executes: torch.compile, float8, and the micro-batch size."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nanochat_lit.common.compilers import instructions, missing_compiler
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import available_memory_bytes
from nanochat_lit.common.paths import cache_folder
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.attention import cuda_facts
from nanochat_lit.model.float8 import Float8Linear, allows_float8
from nanochat_lit.model.layers import Linear
from nanochat_lit.model.loss_kernel import loss_library, loss_problem
from nanochat_lit.model.memory import largest_that_fits, training_memory
from nanochat_lit.optim import micro_batches

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from nanochat_lit.training.module import LanguageModule

CPU_COMPILE_PAYS_FLOPS = 8e12
"""Minimum length of a CPU run, FLOPs; in shorter runs, compiling (half a minute) takes more time than it saves."""


def decide_compile(mode: str, device_type: str, total_flops: float) -> tuple[bool, str]:
    """Return whether to compile a run of this many FLOPs (mode auto, true or false), and the reason in words."""
    if mode in ("true", "false"):
        return mode == "true", "on" if mode == "true" else "off"
    if missing := missing_compiler(device_type):
        return False, f"off: {missing}"
    if device_type == "cpu" and total_flops <= CPU_COMPILE_PAYS_FLOPS:
        return False, "off: the run is too short to benefit"
    return True, "on (the first step takes about a minute, less with a warm cache)"


def describe_kernels() -> str:
    """Return which kernels compute the loss and the optimizer step on a CPU, and why if not the C++ kernels."""
    library = loss_library()
    return f"PyTorch; not C++: {loss_problem()}" if library is None else f"{instructions(library)} (C++): loss, Muon"


def keep_compile_cache() -> Path:
    """Set a persistent TorchInductor cache folder, unless the user has set one, and return the folder in use.

    The default is a temporary folder. Call this before anything is compiled.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    os.environ[name] = os.environ.get(name) or str(cache_folder() / "inductor")
    return Path(os.environ[name])


CAPABILITY = (8, 9)
"""Minimum CUDA compute capability for float8 matmuls (Ada)."""

MODES = ("auto", "true", "false")


def decide_float8(
    mode: str, device_type: str, capability: tuple[int, int] | None, compute_dtype: torch.dtype
) -> tuple[bool, str]:
    """Return whether a run trains in float8 ("auto", "true", "false"), and why not; UserError if it must but cannot.

    `capability` is None without CUDA, or on an AMD GPU; `compute_dtype` is that of everything outside float8.
    """
    if mode not in MODES:
        raise UserError(f"fp8 is {mode!r}; use one of {', '.join(MODES)}")
    if mode == "false":
        return False, "off"
    reason = ""
    if device_type != "cuda":
        reason = f"fp8 needs a CUDA GPU, this run is on {device_type}"
    elif capability is None:
        reason = "fp8 needs an NVIDIA GPU"
    elif capability < CAPABILITY:
        major, minor = capability
        reason = f"fp8 needs compute capability 8.9 (Ada, Hopper, Blackwell), this GPU has {major}.{minor}"
    elif compute_dtype != torch.bfloat16:
        reason = f"fp8 needs compute_dtype bfloat16, this run uses {str(compute_dtype).removeprefix('torch.')}"
    if reason and mode == "true":
        raise UserError(f"{reason}; remove model.fp8 or set it to auto")
    return not reason, f"off: {reason}" if reason else "on"


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None for other devices, including AMD GPUs."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if is_nvidia else None


def convert_to_float8(model: GPT) -> tuple[int, int]:
    """Convert lm_head and the blocks' linear layers to float8 for training, where their dimensions allow it.

    Parameters, evaluation and exports are unaffected. Returns the numbers of converted and of all these layers.
    """
    linears = [part for block in model.blocks for part in block.modules() if isinstance(part, Linear)]
    linears.append(model.lm_head)
    num_converted = 0
    for linear in linears:
        # of lm_head only the rows that are tokens are multiplied
        out_features = model.config.vocab_size if linear is model.lm_head else linear.out_features
        if type(linear) is Linear and allows_float8(linear.in_features, out_features):
            # keeps the parameters and their names, which the optimizer may hold already
            linear.__class__ = Float8Linear
            num_converted += 1
    return num_converted, len(linears)


CPU_ENOUGH_TOKENS = 8192
"""Tokens per forward pass above which a CPU does not get faster."""

CPU_MEMORY_SHARE = 0.8
"""Fraction of the free memory that a run may use, leaving some for other programs."""


def possible_sizes(tokens_per_step: int, sequence_len: int, world_size: int) -> list[int]:
    """Return the micro-batch sizes that divide tokens_per_step, ascending; UserError if not even one sequence does."""
    rows = micro_batches(tokens_per_step, 1, sequence_len, world_size)
    return [size for size in range(1, rows + 1) if rows % size == 0]


def cpu_fits(config: GPTConfig, available_bytes: float, **run: Any) -> Callable[[int], bool]:
    """Return a predicate on sizes: whether the estimated memory is available and the size is useful.

    `run` has the options of `training_memory`: compute_dtype, is_compiled and activation_checkpointing.
    """

    def fits(size: int) -> bool:
        estimate = training_memory(config, micro_batch_size=size, device_type="cpu", **run)
        is_useful = size == 1 or size * config.sequence_len <= CPU_ENOUGH_TOKENS
        return is_useful and estimate.total <= available_bytes

    return fits


def trial_fits(model: GPT, reserved_bytes: int) -> Callable[[int], bool]:
    """Return a predicate on sizes: whether a forward and backward pass fit the model's device, in its compute dtype.

    Memory for the optimizer state is reserved during the trial; the model's gradients are discarded.
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
    """Return the micro-batch size for this run, agreed by all ranks; UserError if not even one sequence fits."""
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
            is_compiled=module.compile_choice()[0],
            activation_checkpointing=model.activation_checkpointing,
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
