"""What lightning_internals.py assumes of Lightning's private parts, an assumption a test: a failure names what has changed."""

import signal

import pytest
import torch
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDP
from lightning.fabric.wrappers import _FabricOptimizer
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision

from nanochat_lit.training import lightning_internals as internals


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls = []

    def training_step(self, batch, _):
        self.calls.append(signal.getsignal(signal.SIGTERM))
        return (self.weight * batch).sum()

    def on_before_optimizer_step(self, optimizer):
        self.calls.append("before step")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, tmp_path, **options):
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, barebones=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    return trainer, torch.utils.data.DataLoader(torch.ones(1, 1))


def test_the_trainer_leaves_signals_alone(tmp_path):
    module = Line()
    trainer, loader = fit(module, tmp_path)
    assert callable(trainer._signal_connector.register_signal_handlers), "signals are registered elsewhere"
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor), "signals are sent elsewhere"
    internals.silence_signals(trainer)
    before = signal.getsignal(signal.SIGTERM)
    trainer.fit(module, loader)
    assert module.calls[0] == before, "the Trainer has taken SIGTERM over"


def test_what_follows_the_closure_has_hooks_and_clipping(tmp_path):
    class OwnStep(Precision):
        def optimizer_step(self, optimizer, model, closure, **kwargs):
            result = closure()
            assert model.calls[-1] != "before step"
            internals.after_closure(self, model, optimizer)
            assert model.calls[-1] == "before step", "hooks are called elsewhere"
            torch.testing.assert_close(model.weight.grad, torch.tensor([0.5]))
            return optimizer.step(**kwargs) or result

    module = Line()
    trainer, loader = fit(module, tmp_path, plugins=[OwnStep()], gradient_clip_val=0.5)
    trainer.fit(module, loader)
    torch.testing.assert_close(module.weight.detach(), torch.tensor([0.95]))


def test_wrapped_optimizers_are_found():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert internals.unwrapped(optimizer) is optimizer
    assert internals.unwrapped(LightningOptimizer(optimizer)) is optimizer
    assert internals.unwrapped(_FabricOptimizer(optimizer, FabricDDP())) is optimizer


def test_fabric_asks_its_strategy_when_gradients_are_sent():
    strategy = FabricDDP()
    assert strategy._backward_sync_control is not None, "it is asked elsewhere"
    internals.keep_gradients_local(strategy)
    module = torch.nn.Linear(1, 1)  # not a DDP module, which Lightning's own control would refuse
    with strategy._backward_sync_control.no_backward_sync(module, True):
        pass


@pytest.mark.parametrize(
    "name", ["_get", "_parser", "_instantiate_trainer", "_parse_ckpt_path", "_prepare_subcommand_kwargs"]
)
def test_the_command_line_has_its_parts(name):
    assert callable(getattr(LightningCLI, name, None)), f"LightningCLI has no {name} any more"


def test_checkpoints_are_read_with_weights_only(monkeypatch):
    monkeypatch.setattr(LightningCLI, "_prepare_subcommand_kwargs", lambda *_: {"ckpt_path": "x", "weights_only": None})
    made = internals.CommandLine.__new__(internals.CommandLine)
    assert made._prepare_subcommand_kwargs("fit") == {"ckpt_path": "x", "weights_only": True}
