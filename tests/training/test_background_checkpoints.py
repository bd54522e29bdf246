"""Checkpoints that a thread writes while training continues. Kills and signals are in tests/reliability/test_kills.py."""

import errno
import threading

import pytest
import torch

from nanochat_lit import MuonAdamW, cli
from nanochat_lit.training import checkpoint_files
from nanochat_lit.training.checkpoint_files import AtomicCheckpointIO

TIMEOUT_S = 20


@pytest.fixture
def disk(monkeypatch):
    """A disk that is slow: nothing is written until it is set."""
    ready, save = threading.Event(), checkpoint_files._save

    def slow_save(checkpoint, file):
        assert ready.wait(TIMEOUT_S), "training waited for the disk"
        save(checkpoint, file)

    monkeypatch.setattr(checkpoint_files, "_save", slow_save)
    return ready


def loaded(path):
    return torch.load(path, weights_only=True)


def test_what_is_written_is_the_state_when_it_was_saved(disk, tmp_path):
    writer, weight = AtomicCheckpointIO(in_background=True), torch.ones(3)
    state = {
        "state_dict": {"weight": weight},
        "loops": [{"steps": 1}],
        "pair": (torch.zeros(2, dtype=torch.uint8), "a"),
    }
    writer.save_checkpoint(state, tmp_path / "a.ckpt")
    weight.zero_()
    state["loops"][0]["steps"] = 2
    writer.then(lambda: (tmp_path / "a.ckpt").rename(tmp_path / "b.ckpt"))
    assert list(tmp_path.glob("[ab].ckpt")) == []
    disk.set()
    writer.wait()
    written = loaded(tmp_path / "b.ckpt")
    assert torch.equal(written["state_dict"]["weight"], torch.ones(3))
    assert written["loops"] == [{"steps": 1}]
    assert written["pair"][0].dtype == torch.uint8
    assert [path.name for path in tmp_path.iterdir()] == ["b.ckpt"]


def test_the_next_waits_for_the_one_in_flight(disk, tmp_path):
    writer, seen = AtomicCheckpointIO(in_background=True), []
    writer.save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt")
    writer.then(lambda: seen.append("a"))
    threading.Timer(0.05, disk.set).start()
    writer.save_checkpoint({"state_dict": {}}, tmp_path / "b.ckpt")
    assert seen == ["a"]
    writer.teardown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_noted_and_nothing_follows(in_background, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer, followed = AtomicCheckpointIO(in_background=in_background), []
    monkeypatch.setattr(checkpoint_files, "_save", full)
    writer.save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt")
    writer.then(lambda: followed.append(1))
    writer.wait()
    assert (writer.error.errno, followed, list(tmp_path.iterdir())) == (errno.ENOSPC, [], [])


def test_other_exceptions_of_the_thread_are_raised(monkeypatch, tmp_path):
    def broken(*_):
        raise TypeError("cannot pickle")

    writer = AtomicCheckpointIO(in_background=True)
    monkeypatch.setattr(checkpoint_files, "_save", broken)
    writer.save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match="cannot pickle"):
        writer.wait()


def test_by_default_only_a_gpu_and_enough_memory_choose_the_thread(monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    small, large = torch.ones(3).as_subclass(OnGpu), torch.ones(1000).as_subclass(OnGpu)
    monkeypatch.setattr(checkpoint_files, "available_memory_bytes", lambda: 8000)
    chosen = checkpoint_files._is_worth_a_copy
    assert not chosen({"state_dict": {"weight": torch.ones(3)}})
    assert chosen({"state_dict": {"weight": small}})
    assert not chosen({"state_dict": {"weight": small}, "optimizer_states": [{"state": {0: {"moment": large}}}]})


def test_steps_are_taken_while_the_disk_is_slow(disk, write_recipe, monkeypatch):
    """The checkpoint of step 2 reaches the disk after step 3, with the state of step 2; the last one is waited for."""
    step, steps = MuonAdamW.step, []

    def counted(self, closure=None):
        loss = step(self, closure)
        steps.append(1)
        if len(steps) == 3:
            disk.set()
        return loss

    monkeypatch.setattr(MuonAdamW, "step", counted)
    recipe = write_recipe({"num_steps": 4, "eval_every": 0})
    options = ["--checkpoint_every", "2", "--keep_last", "9"]
    assert cli.main(["fit", "--config", str(recipe), *options, "--checkpoint_in_background", "true"]) == 0
    folder = recipe.parent / "run" / "checkpoints"
    assert [loaded(folder / name)["global_step"] for name in ("step000002.ckpt", "last.ckpt")] == [2, 4]
    plain = ["--run_dir", str(recipe.parent / "plain"), "--checkpoint_in_background", "false"]
    assert cli.main(["fit", "--config", str(recipe), *options, *plain]) == 0
    for name in ("step000002.ckpt", "best.ckpt"):
        ours, theirs = (loaded(at / name) for at in (folder, recipe.parent / "plain" / "checkpoints"))
        assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
        state, other = (made["optimizer_states"][0]["state"] for made in (ours, theirs))
        assert all(torch.equal(state[at][key], value) for at in other for key, value in other[at].items())
