"""Every private part of Lightning that this package uses, in one file. tests/training/test_lightning_internals.py has a test per assumption."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from lightning.fabric.strategies.strategy import _BackwardSyncControl
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.precision import Precision
from torch import nn


def silence_signals(trainer: Trainer) -> None:
    """Disable the Trainer's own signal handling.

    Its handler kills the other ranks, broadcasts from within the handler, and requeues SLURM jobs from checkpoints
    within a step. With several ranks it also checks for signals in every micro-batch, which synchronizes the GPU.
    Before training starts, a signal ends the process, as there is nothing to save.
    """
    internals = cast(Any, trainer)
    internals._signal_connector.register_signal_handlers = lambda: None
    internals.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def after_closure(precision: Precision, model: Any, optimizer: Any) -> None:
    """Run the Trainer's hooks and clipping between the backward pass and the step."""
    precision._after_closure(model, optimizer)


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside Lightning's wrapper, if there is one."""
    return getattr(optimizer, "_optimizer", optimizer)


class _LocalGradients(_BackwardSyncControl):
    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext()


def keep_gradients_local(strategy: Any) -> None:
    """Make `Fabric.no_backward_sync` a no-op, for a strategy whose backward pass never communicates."""
    strategy._backward_sync_control = _LocalGradients()


class CommandLine(LightningCLI):
    """LightningCLI that loads checkpoints with weights_only and exposes parsers and settings to subclasses."""

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting of the subcommand, with its classes instantiated."""
        return self._get(self.config_init, key, default=default)

    def parser_of(self, subcommand: str | None) -> Any:
        """Return the parser of a subcommand."""
        return self._parser(subcommand)

    def option_names(self, subcommand: str | None) -> list[str]:
        """Return the options of a subcommand."""
        return list(self._parser(subcommand)._option_string_actions)

    def make_trainer(self, config: dict[str, Any]) -> Trainer:
        """Create the Trainer of a configuration."""
        return self._instantiate_trainer(config, [])

    def _parse_ckpt_path(self) -> None:
        """Skip Lightning's search for hyper-parameters in the checkpoint; the recipe has them."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Load checkpoints with weights_only; Lightning's default is an unrestricted unpickler."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}
