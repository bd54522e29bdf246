"""`nanochat-lit fit|validate|test`: LightningCLI with a run folder, explicit precision and defaults that work."""

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from nanochat_lit.common.errors import UserError
from nanochat_lit.training.callbacks.export import ExportModel
from nanochat_lit.training.callbacks.progress import RunProgress
from nanochat_lit.training.callbacks.samples import SampleWriter
from nanochat_lit.training.metrics_file import MetricsFile
from nanochat_lit.training.precision import ExplicitPrecision

# Warnings of Lightning about choices that are made on purpose here.
_EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*IterableDataset.*__len__.*",
    r".*Trying to infer the `batch_size`.*",
    r".*`max_epochs` was not set.*",
    r".*Starting from v1.9.0, `tensorboardX` has been removed.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*save_on_train_epoch_end.*",
    r".*consider setting .*val_check_interval.*",
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


class NanochatCLI(LightningCLI):
    """LightningCLI that adds `run_dir`, `compute_dtype`, `log_every` and `checkpoint_every`, and the standard callbacks."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of ours beside trainer, model and data."""
        parser.add_argument(
            "--run_dir", type=str, default="runs/default", help="Folder of the run: config, logs, checkpoints, export."
        )
        parser.add_argument(
            "--compute_dtype",
            type=str,
            default="auto",
            help="Dtype of activations and matrix products: auto, bfloat16, float16 or float32. "
            "The environment variable NANOCHAT_DTYPE wins over it.",
        )
        parser.add_argument("--log_every", type=int, default=10, help="Steps between progress lines and log rows.")
        parser.add_argument(
            "--checkpoint_every", type=int, default=250, help="Steps between checkpoints; the last is always kept."
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with our precision, loggers and callbacks."""
        run_dir = Path(self._get(self.config_init, "run_dir"))
        log_every = self._get(self.config_init, "log_every")
        checkpoint_every = self._get(self.config_init, "checkpoint_every")
        trainer_config = self._get(self.config_init, "trainer", default={})
        for name, value in (("log_every", log_every), ("checkpoint_every", checkpoint_every)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1 step")
        device = "cpu" if trainer_config.get("accelerator") == "cpu" else None
        precision = ExplicitPrecision(self._get(self.config_init, "compute_dtype"), device)
        callbacks = [
            # first the checkpoint, then whatever can fail
            ModelCheckpoint(
                run_dir / "checkpoints",
                filename="step{step:06d}",
                auto_insert_metric_name=False,
                every_n_train_steps=checkpoint_every,
                save_top_k=1,
                monitor="step",
                mode="max",
                save_last=True,
            ),
            RunProgress(log_every),
            SampleWriter(),
            ExportModel(),
        ]
        kwargs |= {
            "default_root_dir": str(run_dir),
            "logger": _loggers(run_dir) if self.subcommand == "fit" else False,
            "plugins": [*(trainer_config.get("plugins") or []), precision],
        }
        config = {**trainer_config, **kwargs}
        config["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        try:
            return self._instantiate_trainer(config, [])
        except MisconfigurationException as error:
            raise UserError(_explain(error, trainer_config)) from error


def _loggers(run_dir: Path) -> list[Logger]:
    loggers: list[Logger] = [MetricsFile(run_dir)]
    try:
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version=""))
    except ModuleNotFoundError:
        pass  # TensorBoard is optional; metrics.csv always is there
    return loggers


def _explain(error: Exception, trainer_config: Any) -> str:
    accelerator, devices = trainer_config.get("accelerator"), trainer_config.get("devices")
    return (
        f"the Trainer cannot be set up with accelerator {accelerator!r} and devices {devices!r}: "
        f"{str(error).splitlines()[0]} (on this machine try --trainer.accelerator auto --trainer.devices 1)"
    )


def _find_recipe(argument: str) -> str:
    """The packaged recipe when `recipes/X.yaml` is asked for outside a checkout; other arguments as they are."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    packaged = Path(str(files("nanochat_lit"))) / "recipes" / path.name
    if path.parent.name == "recipes" and path.suffix == ".yaml" and not path.exists() and packaged.exists():
        return f"{option}{equals}{packaged}"
    return argument


def main(argv: Sequence[str]) -> int:
    """Run a Trainer verb.

    Args:
        argv: The verb (fit, validate or test) and its options.

    Returns:
        Exit status 0.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices found, seeds set, tips: the plan table says what counts
    for pattern in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    NanochatCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_defaults=TRAINER_DEFAULTS,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=42,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=[_find_recipe(argument) for argument in argv],
        parser_kwargs={"prog": "nanochat-lit", "exit_on_error": False},
    )
    sys.stderr.flush()
    return 0
