"""torch.compile changes the speed of a run and nothing else."""

from functools import partial

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.model import loss
from nanochat_lit.training.run_records import read_metrics

LOSS_TOLERANCE = 1e-4
"""Of the losses of the first steps, nats, in float32: fused kernels add up in another order."""


def losses(recipe):
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    return {
        step: row["train_loss"] for step, row in read_metrics(recipe.parent / "run" / "metrics.csv").items() if step
    }


@pytest.fixture
def no_inductor(monkeypatch):
    """Graphs are captured as ever, but run as they are: seconds instead of minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it traces
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # Python 3.13.0
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_are_captured_once(checkpointing, write_recipe, no_inductor, monkeypatch):
    """Two graphs (features, and a chunk of the loss where it has no C++), whatever follows: accumulation, validations, a last step.

    Recompiling would raise; so would a break in either graph show as a third one.
    """
    from torch._dynamo.utils import counters

    counters.clear()
    monkeypatch.setattr(loss, "has_loss_kernel", lambda _: False)
    options = {"activation_checkpointing": checkpointing, "num_steps": 5}
    compiled = write_recipe(model={**options, "compile": "true"}, data={"micro_batch_size": 2})
    with torch._dynamo.config.patch(error_on_recompile=True):
        with_graphs = losses(compiled)
    assert counters["stats"]["unique_graphs"] == 2
    assert sum(counters["graph_break"].values()) == 0
    eager = write_recipe(model=options, data={"micro_batch_size": 2})
    plain = losses(eager)
    assert with_graphs == pytest.approx(plain, abs=LOSS_TOLERANCE)
    assert len(plain) == 5
    assert checkpoint_keys(compiled) == checkpoint_keys(eager)


def checkpoint_keys(recipe):
    return list(torch.load(recipe.parent / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_run_equals_eager_run(checkpointing, write_recipe):
    """With TorchInductor's own kernels."""
    options = {"activation_checkpointing": checkpointing, "num_steps": 5}
    compiled = losses(write_recipe(model={**options, "compile": "true"}))
    assert compiled == pytest.approx(losses(write_recipe(model=options)), abs=LOSS_TOLERANCE)
    torch.compiler.reset()
