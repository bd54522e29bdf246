"""Checks of Trainer options and callbacks, and conversion of Lightning's errors to one line."""

import contextlib
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)

from nanochat_lit.common.errors import UserError, os_error_text
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
    GradientAccumulationScheduler: "set model.tokens_per_step, which determines accumulation",
    StochasticWeightAveraging: "it averages over epochs, but training data have no epochs; use EMAWeightAveraging",
    BatchSizeFinder: "set data.micro_batch_size auto",
    ModelPruning: "it prunes torch layers, which the model does not use",
    LearningRateFinder: "learning rates derive from model.depth; set model.matrix_lr and the others explicitly",
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
        monitor = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
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
