"""Checks of processes, Trainer options, batch and memory before a run starts, and errors in one line."""

import contextlib
import os
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry

from nanochat_lit.common.distributed import is_srun, rank, world_size
from nanochat_lit.common.errors import UserError, os_error_text
from nanochat_lit.common.hardware import default_device, memory_text, total_memory_bytes, why_no_gpu
from nanochat_lit.model.attention import cuda_facts
from nanochat_lit.model.gpt import Checkpointing
from nanochat_lit.model.memory import largest_that_fits, training_memory
from nanochat_lit.training.datamodules import LanguageDataModule
from nanochat_lit.training.execution import strategy_name
from nanochat_lit.training.module import LanguageModule

_STEPS = "model.num_steps, as training data have no epochs"

REPLACED_OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "precision": ((None,), "compute_dtype"),
    "default_root_dir": ((None,), "run_dir"),
    "accumulate_grad_batches": ((1,), "model.tokens_per_step, from which it is derived"),
    "val_check_interval": ((None,), "model.eval_every"),
    "check_val_every_n_epoch": ((None, 1), "model.eval_every"),
    "max_epochs": ((None, -1), _STEPS),
    "min_epochs": ((None,), _STEPS),
    "limit_train_batches": ((None, 1.0), _STEPS),
    "overfit_batches": ((0, 0.0), "data.path to a file of a few documents"),
    "reload_dataloaders_every_n_epochs": ((0,), _STEPS),
    "barebones": ((False, None), "the individual options, such as enable_checkpointing and logger"),
}
"""Trainer options that other keys replace: the allowed values, and the key to use instead."""

REPLACED_CALLBACKS: dict[type, str] = {
    callbacks.GradientAccumulationScheduler: "set model.tokens_per_step, which determines accumulation",
    callbacks.StochasticWeightAveraging: "it averages over epochs, but training data have no epochs; use EMAWeightAveraging",
    callbacks.BatchSizeFinder: "set data.micro_batch_size auto",
    callbacks.ModelPruning: "it prunes torch layers, which the model does not use",
    callbacks.LearningRateFinder: "learning rates derive from model.depth; set model.matrix_lr and the others explicitly",
}
"""Unsupported callbacks, and what to use instead."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UserError for Trainer options that would have no effect or that other keys replace."""
    for name, (unset, instead) in REPLACED_OPTIONS.items():
        value = options.get(name, unset[0])
        if value not in unset:
            raise UserError(f"trainer.{name} is {value!r}, but is not supported; set {instead}")
    share = options.get("limit_val_batches")
    if isinstance(share, float) and share not in (0.0, 1.0):
        raise UserError(
            f"trainer.limit_val_batches is {share}, but the number of batches is not known in advance; "
            "use an integer, 0 for no validation, or set data.val_docs or data.val_rows"
        )


def check_callbacks(trainer: Trainer, module: LightningModule) -> None:
    """Raise UserError for callbacks that cannot work, before any data is read."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        for kind, instead in REPLACED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"the callback {name} is not supported: {instead}")
        has_monitor = isinstance(callback, callbacks.EarlyStopping | callbacks.ModelCheckpoint)
        monitor = callback.monitor if has_monitor else None
        is_ours = isinstance(module, LanguageModule) and type(module).__module__.startswith("nanochat_lit.")
        if monitor and is_ours and monitor.partition("/")[0] != module.figure:
            raise UserError(f"{name} monitors {monitor!r}, which is not logged; monitor {module.figure!r}")


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Convert user errors raised by Lightning (options, missing packages, paths) to UserError.

    jsonargparse wraps such errors in its own, whose text is about type annotations.
    """
    try:
        yield
    except (UserError, ArgumentError, MemoryError):
        raise
    except Exception as error:
        if (explained := _explained(error)) is None:
            raise
        raise explained from error


def _explained(error: Exception) -> Exception | None:
    """Return the error to raise instead; None for a bug."""
    if isinstance(error, RecursionError):
        return UserError("an option or a recipe is nested too deeply")
    if isinstance(error, OSError):
        text = os_error_text(error)
        return None if text is None else UserError(text)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, MisconfigurationException) or (
            isinstance(cause, ModuleNotFoundError) and _is_raised_in("lightning", error, cause)
        ):
            return UserError(_first_line(cause))
        cause = cause.__cause__ or cause.__context__
    if _is_raised_in("lightning", error):
        return UserError(f"Lightning: {_first_line(error)}")
    return ArgumentError(None, str(error)) if _is_raised_in("jsonargparse", error) else None


def _is_raised_in(package: str, *errors: BaseException) -> bool:
    """Return whether the innermost frame of one of the errors belongs to a package."""
    for error in errors:
        frames = list(traceback.walk_tb(error.__traceback__))
        if frames and frames[-1][0].f_globals.get("__name__", "").partition(".")[0] == package:
            return True
    return False


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class XPUAccelerator(Accelerator):
    """Intel GPUs: `--trainer.accelerator xpu`."""

    def setup_device(self, device: torch.device) -> None:
        torch.xpu.set_device(device)

    def teardown(self) -> None:
        torch.xpu.empty_cache()

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return torch.xpu.memory_stats(device)

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Return device indices for a count, a selection (a list or "0,1") or all ("auto" or -1)."""
        if isinstance(devices, str) and devices not in ("auto", "-1"):
            devices = [int(part) for part in devices.split(",")] if "," in devices else int(devices)
        if devices in ("auto", "-1", -1):
            devices = XPUAccelerator.auto_device_count()
        return list(range(devices)) if isinstance(devices, int) else list(devices)

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("xpu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return torch.xpu.device_count()

    @staticmethod
    def is_available() -> bool:
        return torch.xpu.is_available()

    @staticmethod
    def name() -> str:
        return "xpu"


def choose_accelerator(requested: Any, devices: Any) -> Any:
    """Return the Trainer's accelerator; "gpu" and "auto" select an Intel GPU if it is the only kind available."""
    AcceleratorRegistry.register("xpu", XPUAccelerator, description="Intel GPUs", override=True)
    if requested in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(
            f"this run requests {devices} GPU(s), but {why_no_gpu()}; use a machine with GPUs, or "
            "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto"
        )
    return "xpu" if requested in ("gpu", "auto", None) and default_device().type == "xpu" else requested


def check_processes(trainer: Trainer) -> None:
    """Raise UserError if the processes started by torchrun or srun differ from the Trainer's settings.

    They would train independently in one run folder, or wait for processes that never start.
    """
    is_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not (is_torchrun or is_srun()):
        return
    found, wanted = world_size(), trainer.num_devices * trainer.num_nodes
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE" if is_torchrun else "SLURM_NTASKS_PER_NODE") or found)
    num_nodes = max(1, found // per_node)
    if (per_node, num_nodes) != (trainer.num_devices, trainer.num_nodes):
        raise UserError(
            f"{'torchrun' if is_torchrun else 'srun'} has started {found} process(es), {per_node} per node, but the Trainer "
            f"expects {wanted}; set --trainer.devices {per_node} --trainer.num_nodes {num_nodes}"
        )


PLAN_TOLERANCE = 0.1
"""Tolerance of the memory estimate; a run is rejected only if the estimate exceeds the memory by this fraction."""


def check_memory(trainer: Trainer, module: LanguageModule, datamodule: LanguageDataModule) -> None:
    """Raise UserError if the memory estimate of `nanochat-lit plan` exceeds the GPU's; suggests settings that fit."""
    device = trainer.strategy.root_device
    config = module.config_before_data(getattr(datamodule, "vocab_size", "auto"))
    if config is None or device.type == "cpu":
        return
    memory, size = total_memory_bytes(device), datamodule.rows
    trains_in_float8, _ = module.float8_choice(trainer)

    def need(sequences: int, *, checkpointing: Checkpointing = module.activation_checkpointing) -> int:
        return training_memory(
            config,
            micro_batch_size=sequences,
            compute_dtype=getattr(trainer.precision_plugin, "compute_dtype", torch.float32),
            device_type=device.type,
            capability=cuda_facts(device).get("capability"),
            activation_checkpointing=checkpointing,
            fp8=trains_in_float8,
            strategy=strategy_name(trainer),
            world_size=trainer.num_devices * trainer.num_nodes,
        ).total

    if need(size) <= (1 + PLAN_TOLERANCE) * memory:
        return
    sizes = [number for number in range(1, size) if size % number == 0]
    if fitting := largest_that_fits(sizes, lambda sequences: need(sequences) <= memory):
        fix = f"use --data.micro_batch_size {fitting}"
    elif need(1, checkpointing=True) <= memory:
        fix = "use --data.micro_batch_size 1 --model.activation_checkpointing true"
    else:
        fix = "use a smaller model, such as the recipes one_gpu_8gb to one_gpu_24gb"
    raise UserError(
        f"micro_batch_size {size} of this {config.n_layer}-layer model needs about {memory_text(need(size))} "
        f"(nanochat-lit plan) and the GPU has {memory_text(memory)}; {fix}"
    )


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Print a UserError of a running job only on rank 0, which receives the errors of other ranks (see `strategies`)."""
    try:
        yield
    except UserError:
        if dist.is_initialized() and rank() != 0:
            raise SystemExit(2) from None
        raise


def check_launch(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None) -> None:
    """Run all checks; results are identical on every rank, and only rank 0 reports them."""
    try:
        check_callbacks(trainer, module)
        check_processes(trainer)
        if isinstance(module, LanguageModule) and isinstance(datamodule, LanguageDataModule):
            module.float8_choice(trainer)  # raises for a device without float8
            num_ranks = trainer.num_devices * trainer.num_nodes
            module.check_batch(datamodule.rows, num_ranks, getattr(datamodule, "vocab_size", "auto"))
            check_memory(trainer, module, datamodule)
    except UserError:
        if rank() != 0:
            raise SystemExit(2) from None
        raise
