"""Which checkpoints a run writes and keeps: every so many steps or minutes, the newest ones, the best one."""

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.engine.checkpoint import step_files
from nanochat_lit.training.module import BitsPerByte

VAL_BPB = (3.0, 2.5, 2.0, 2.2, 2.1, 2.4)
"""What the validations of a run that overfits are made to find, from step 0 on."""
BEST_STEP = 2


def fit(recipe, *options):
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    return recipe.parent / "run" / "checkpoints"


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_every_so_many_steps(write_recipe):
    options = ["--model.num_steps", "7", "--model.eval_every", "5", "--checkpoint_every", "3", "--keep_last", "9"]
    folder = fit(write_recipe(), *options)
    assert list(step_files(folder)) == [7, 6, 5, 3]  # the end, two multiples, and before the validation
    assert step_of(folder / "last.ckpt") == 7


def test_every_so_many_minutes(write_recipe):
    options = ["--model.eval_every", "0", "--checkpoint_every", "1000", "--keep_last", "9"]
    assert list(step_files(fit(write_recipe(), *options))) == [4]
    assert list(step_files(fit(write_recipe(), *options, "--checkpoint_minutes", "1e-9"))) == [4, 3, 2, 1]


@pytest.fixture(scope="module")
def overfitted(write_recipe):
    values = iter(VAL_BPB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BitsPerByte, "compute", lambda _: torch.tensor(next(values)))
        return fit(write_recipe({"eval_every": 1, "num_steps": 5}), "--keep_last", "1")


def test_the_newest_and_the_best_are_kept(overfitted):
    folder = overfitted
    assert list(step_files(folder)) == [5]
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt", "step000005.ckpt"]
    assert step_of(folder / "last.ckpt") == 5
    assert step_of(folder / "best.ckpt") == BEST_STEP


def test_a_resumed_run_remembers_the_best(overfitted, monkeypatch):
    folder = overfitted
    monkeypatch.setattr(BitsPerByte, "compute", lambda _: torch.tensor(2.3))
    options = ["--config", str(folder.parent / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "6"]
    assert cli.main(["fit", *options]) == 0
    assert step_of(folder / "last.ckpt") == 6
    assert step_of(folder / "best.ckpt") == BEST_STEP
    assert cli.main(["validate", "--config", str(folder.parent / "config.yaml"), "--ckpt_path", "best"]) == 0


def test_the_best_can_be_left_out(write_recipe):
    folder = fit(write_recipe(), "--keep_best", "false")
    assert not (folder / "best.ckpt").exists()
