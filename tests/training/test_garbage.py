"""The collector is frozen after the first step and free again after the run, however that ends."""

import gc
from types import SimpleNamespace

import pytest

from nanochat_lit.training.callbacks.start_and_end import FreezeGarbage


@pytest.fixture(autouse=True)
def _nothing_frozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def step(callback, trainer):
    trainer.global_step += 1
    callback.on_train_batch_end(trainer, None, None, None, 0)


@pytest.mark.parametrize("end", ["teardown", "on_exception"])
def test_frozen_between_first_step_and_end(end):
    callback, trainer = FreezeGarbage(), SimpleNamespace(global_step=5)
    callback.on_train_start(trainer, None)
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert gc.get_freeze_count() == 0, "a micro-batch that only accumulated"
    step(callback, trainer)
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    step(callback, trainer)
    assert gc.get_freeze_count() <= frozen, "once only: what steps leave behind is to be collected"
    getattr(callback, end)(trainer, None, "fit")
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


def test_what_others_have_frozen_stays_frozen():
    gc.freeze()
    callback, trainer = FreezeGarbage(), SimpleNamespace(global_step=0)
    callback.on_train_start(trainer, None)
    step(callback, trainer)
    callback.teardown(trainer, None, "fit")
    assert gc.get_freeze_count() > 0
