"""`nanochat-lit fit|validate|test`: LightningCLI with a run folder and explicit precision."""

import contextlib
import inspect
import itertools
import logging
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import Logger

from nanochat_lit import training
from nanochat_lit.common.errors import UserError, check_at_least_one, check_positive
from nanochat_lit.common.paths import expand_home, run_lock
from nanochat_lit.common.recipes import explain_unrecognized, find_recipe, put_current_folder_on_path, read_recipe
from nanochat_lit.engine.checkpoint import load
from nanochat_lit.training.callbacks.checkpoint import RankState, RunCheckpoint
from nanochat_lit.training.callbacks.loss_guard import LossGuard
from nanochat_lit.training.callbacks.progress import RunProgress
from nanochat_lit.training.callbacks.start_and_end import ExportModel, FreezeGarbage, RunStart, SampleWriter
from nanochat_lit.training.checkpoint_files import KEY as CONFIG_KEY
from nanochat_lit.training.checkpoint_files import AtomicCheckpointIO, check_no_earlier_run, compare_configs, resolve
from nanochat_lit.training.execution import keep_compile_cache
from nanochat_lit.training.launch import (
    check_launch,
    check_options,
    choose_accelerator,
    errors_in_one_line,
    reported_once,
)
from nanochat_lit.training.lightning_internals import CommandLine
from nanochat_lit.training.precision import ExplicitPrecision
from nanochat_lit.training.run_records import MetricsFile, SessionRecord
from nanochat_lit.training.strategies import register_strategies

# Lightning's warnings about deliberate choices.
_EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*IterableDataset.*__len__.*",
    r".*Trying to infer the `batch_size`.*",
    r".*`max_epochs` was not set.*",
    r".*Starting from v1.9.0, `tensorboardX` has been removed.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*save_on_train_epoch_end.*",
    r".*The dirpath has changed from.*",  # a run folder was moved or copied
    r".*consider setting .*val_check_interval.*",
    r".*You called `self.log.*have no logger configured.*",
    r".*It is recommended to use `self.log.*sync_dist=True.*",  # the metric has synchronised its own state
    r".*your dataloader is not resumable.*",  # it is, through RankState
    r".*LightningCLI's args parameter is intended to run from within Python.*",
)

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "logger": False,
}


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration to config.yaml when training starts, and into checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.parser.dump(self.config, skip_unset=False)


def run_options(
    run_dir: str = "runs/default",
    compute_dtype: str = "auto",
    log_every: int = 10,
    checkpoint_every: int = 250,
    checkpoint_minutes: float | None = None,
    checkpoint_in_background: bool | None = None,
    keep_last: int = 2,
    keep_best: bool = True,
    overwrite: bool = False,
    stop_on_explosion: float = 3.0,
) -> SimpleNamespace:
    """Check and return the options of a run.

    Args:
        run_dir: Folder of the run: config, logs, checkpoints, export.
        compute_dtype: Dtype of activations and matmuls: auto, bfloat16, float16 or float32. The environment variable
            NANOCHAT_DTYPE overrides it.
        log_every: Steps between progress lines and logged rows.
        checkpoint_every: Steps between checkpoints; one is also written before each validation and at the end.
        checkpoint_minutes: Minutes between checkpoints; null disables them.
        checkpoint_in_background: Copy each checkpoint to host memory and write it in a background thread. Default null:
            enabled on a GPU if the copy needs less than half of the host's free memory.
        keep_last: Number of most recent checkpoints to keep.
        keep_best: Keep the checkpoint of the best validation (lowest val_bpb) as best.ckpt.
        overwrite: Replace an earlier run in run_dir. Otherwise fit raises an error, unless --ckpt_path resumes the run.
        stop_on_explosion: Stop when the loss of ten consecutive steps exceeds its average by this many nats; 0 disables
            the check. A non-finite loss always stops the run.
    """
    options = SimpleNamespace(**locals())
    check_at_least_one(log_every=log_every, checkpoint_every=checkpoint_every, keep_last=keep_last)
    check_positive(checkpoint_minutes=checkpoint_minutes)
    if stop_on_explosion < 0:
        raise UserError(f"stop_on_explosion is {stop_on_explosion}; it must be positive, or 0 to disable the check")
    return options


class NanochatCLI(CommandLine):
    """LightningCLI with a run folder, explicit precision, resumable checkpoints and the standard callbacks."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that are not keys of trainer, model or data."""
        parser.add_function_arguments(run_options)

    def __init__(self, locks: contextlib.ExitStack, part_of: str | None, *args: Any, **kwargs: Any) -> None:
        self._locks = locks
        self._part_of = part_of
        super().__init__(*args, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments and store the originals."""
        self._arguments = list(args or [])
        try:
            super().parse_arguments(parser, [find_recipe(argument) for argument in self._arguments])
        except ArgumentError as error:
            options = [*self.option_names(self._arguments[0]), *_class_options()]
            raise ArgumentError(None, explain_unrecognized(str(error), options)) from None
        _expand_homes(self.config)

    def before_instantiate_classes(self) -> None:
        """Check the checkpoint before anything is built."""
        subcommand = cast(str, self.subcommand)
        config, is_fit = self.config[subcommand], subcommand == "fit"
        run_dir = Path(config.run_dir)
        if is_fit:
            self._hold(run_dir)
        if config.ckpt_path is None:
            if not is_fit:
                raise UserError(f"{subcommand} needs a checkpoint; set --ckpt_path to a .ckpt file, last or best")
            if not config.overwrite:
                check_no_earlier_run(run_dir / "checkpoints")
            return
        path = resolve(config.ckpt_path, run_dir)
        if path is None:
            if not is_fit:
                raise UserError(f"{run_dir} has no checkpoint to {subcommand}")
            config.ckpt_path = None
            return
        config.ckpt_path = str(path)
        checkpoint = load(path, mmap=True)
        if is_fit and CONFIG_KEY in checkpoint:
            compare_configs(checkpoint[CONFIG_KEY], self.parser_of(subcommand).dump(config, skip_unset=False))

    def _hold(self, run_dir: Path) -> None:
        """Lock the run folder until training ends; on rank 0 only."""
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"run_dir {run_dir} is a file; give a folder")
        if cast(Any, rank_zero_only).rank == 0:
            self._locks.enter_context(run_lock(run_dir, "nanochat-lit fit"))

    def before_fit(self) -> None:
        """Check processes and batch before any process is started or data are read."""
        is_fit = self.subcommand == "fit"
        cast(Any, self.model).is_resuming = is_fit and self.config.fit.ckpt_path is not None
        check_launch(self.trainer, self.model, self.datamodule)

    before_validate = before_test = before_fit

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer with this package's precision, loggers and callbacks."""
        options = run_options(**{name: self.setting(name) for name in inspect.signature(run_options).parameters})
        run_dir, trainer_config = Path(options.run_dir), self.setting("trainer", {})
        check_options(trainer_config)
        accelerator = choose_accelerator(trainer_config.get("accelerator"), trainer_config.get("devices"))
        device = "cpu" if accelerator == "cpu" else None
        precision = ExplicitPrecision(options.compute_dtype, device)
        callbacks = [
            RankState(),
            RunStart(),
            SessionRecord(["nanochat-lit", *self._arguments]),
            RunProgress(options.log_every),
            LossGuard(options.stop_on_explosion, options.log_every),
            SampleWriter(),
            ExportModel(self._continue_with(), self._part_of is not None),
            FreezeGarbage(),
            RunCheckpoint(run_dir / "checkpoints", options),
        ]
        checkpoint_io = AtomicCheckpointIO(options.checkpoint_in_background)
        kwargs |= {
            "default_root_dir": str(run_dir),
            "logger": _loggers(run_dir, trainer_config.get("logger")) if self.subcommand == "fit" else False,
            "plugins": [*(trainer_config.get("plugins") or []), precision, checkpoint_io],
        }
        config = {**trainer_config, **kwargs, "accelerator": accelerator or "auto"}
        config["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        try:
            return self.make_trainer(config)
        except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
            accelerator, devices = trainer_config.get("accelerator"), trainer_config.get("devices")
            raise UserError(
                f"the Trainer cannot be set up with accelerator {accelerator!r} and devices {devices!r}: "
                f"{str(error).splitlines()[0]} (on this machine try --trainer.accelerator auto --trainer.devices 1)"
            ) from error

    def _continue_with(self) -> list[str]:
        if self._part_of is not None:
            return shlex.split(self._part_of)
        words, options = [], iter(self._arguments)
        for word in options:  # these no longer apply when resuming
            if word in ("--ckpt_path", "--overwrite"):
                next(options, None)
            elif not word.startswith(("--ckpt_path=", "--overwrite=")):
                words.append(word)
        return ["nanochat-lit", *words, "--ckpt_path", "last"]


def _loggers(run_dir: Path, more: Any) -> list[Logger]:
    if more is True:
        raise UserError("trainer.logger is true; give the class_path of a logger, or a list of them")
    found = [more] if isinstance(more, Logger) else list(more or [])
    return [MetricsFile(run_dir), *(logger for logger in found if not isinstance(logger, MetricsFile))]


def _expand_homes(config: Namespace) -> None:
    """Expand ~ in every value of a configuration, including classes in lists."""
    for key, value in list(config.items()):
        config[key] = expand_home(value)
        for item in value if isinstance(value, list) else ():
            if isinstance(item, Namespace):
                _expand_homes(item)


def _class_options() -> list[str]:
    options = []
    for name in dir(training):
        kind = getattr(training, name)
        for base, key in ((LightningModule, "model"), (LightningDataModule, "data")):
            for part in kind.__mro__ if isinstance(kind, type) and issubclass(kind, base) else ():
                if part.__module__.startswith(training.__name__):  # **options are those of the base class
                    options += [f"--{key}.{parameter}" for parameter in inspect.signature(part).parameters]
    return options


def _check_recipes(argv: Sequence[str]) -> None:
    """Raise UserError for a recipe that cannot be read; the parser's own message has no file name."""
    options = [*argv, ""]
    named = [value for option, value in itertools.pairwise(options) if option == "--config"]
    named += [option.partition("=")[2] for option in options if option.startswith("--config=")]
    for path in map(Path, named):
        if path.is_file():
            read_recipe(path)


def main(argv: Sequence[str], part_of: str | None = None) -> int:
    """Run a command of the Trainer (fit, validate or test) with its options; return the exit status 0.

    `part_of` is an enclosing command, which resumes this one after an interruption.
    """
    # not their devices found, seeds set and tips: the plan table has the relevant values
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    put_current_folder_on_path()  # a class_path may refer to a module in the current folder
    register_strategies()
    keep_compile_cache()
    with warnings.catch_warnings(), reported_once(), errors_in_one_line(), contextlib.ExitStack() as locks:
        for pattern in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        _check_recipes([find_recipe(argument) for argument in argv])
        NanochatCLI(
            locks,
            part_of,
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=expand_home(list(argv)),
            parser_kwargs={"prog": "nanochat-lit", "exit_on_error": False, "allow_abbrev": False},
        )
    sys.stderr.flush()
    return 0
