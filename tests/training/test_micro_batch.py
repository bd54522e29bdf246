"""`micro_batch_size: auto`: the search, what it asks, and a run that uses it."""

import pytest
import torch
import yaml

from nanochat_lit import GPT, GPTConfig, cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import available_memory_bytes
from nanochat_lit.common.paths import read_json
from nanochat_lit.model.memory import largest_that_fits, training_memory
from nanochat_lit.training import execution
from nanochat_lit.training.execution import cpu_fits, possible_sizes, trial_fits


@pytest.mark.parametrize("limit", range(14))
def test_the_search_finds_the_largest_and_asks_little(limit):
    sizes, asked = [1, 2, 3, 4, 6, 8, 12], []

    def fits(size):
        asked.append(size)
        return size <= limit

    assert largest_that_fits(sizes, fits) == max([size for size in sizes if size <= limit], default=0)
    assert len(asked) == len(set(asked)) <= 3  # log2 of eight outcomes


def test_nothing_to_search():
    assert largest_that_fits([], lambda size: True) == 0


def test_tokens_per_step_stay_what_was_asked():
    assert possible_sizes(12 * 64 * 2, 64, 2) == [1, 2, 3, 4, 6, 12]
    with pytest.raises(UserError, match="use 1,536 or 1,664"):
        possible_sizes(12 * 64 * 2 + 64, 64, 2)


def shape():
    return GPTConfig.from_depth(2, vocab_size=512, sequence_len=256, head_dim=64)


def test_a_cpu_takes_what_the_estimate_allows():
    needed = training_memory(shape(), micro_batch_size=4, device_type="cpu", compute_dtype=torch.float32).total
    options = {"compute_dtype": torch.float32, "is_compiled": True, "activation_checkpointing": False}
    fits = cpu_fits(shape(), needed, **options)
    assert (fits(4), fits(8)) == (True, False)
    plenty = cpu_fits(shape(), 1e15, **options)
    assert (plenty(32), plenty(64)) == (True, False)  # 8,192 tokens are enough for a CPU


class Hungry(GPT):
    """Runs out of memory above four rows, as a CUDA device would."""

    def forward(self, inputs, targets=None, **options):
        if len(inputs) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(inputs, targets, **options)


def test_a_trial_recovers_and_leaves_nothing_behind():
    model = Hungry(GPTConfig(sequence_len=16, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=32))
    model.init_weights()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert largest_that_fits([1, 2, 4, 8, 16], trial_fits(model, reserved_bytes=100)) == 4
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_trial_that_fails_otherwise_is_not_hidden():
    def broken(*_):
        raise RuntimeError("something else")

    model = GPT(GPTConfig(sequence_len=16, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=32))
    model.forward = broken
    with pytest.raises(RuntimeError, match="something else"):
        trial_fits(model, reserved_bytes=1)(1)


def test_available_memory(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\n", encoding="utf-8")
    assert available_memory_bytes(meminfo, tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert available_memory_bytes(meminfo, tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("10000\n", encoding="utf-8")
    assert available_memory_bytes(meminfo, tmp_path) == 20000
    assert available_memory_bytes(tmp_path / "none", tmp_path / "none") > 0


def test_a_run_with_auto_equals_the_run_with_that_number(write_recipe, capsys):
    """512 tokens a step are 8 rows of 64. Same seed, same steps: the same losses; and a resume keeps the size."""
    recipe = write_recipe(data={"micro_batch_size": "auto"})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert "512 = 8 sequences x 1 micro-batches x 1 ranks" in capsys.readouterr().err
    run = recipe.parent / "run"
    assert read_json(run / "plan.json")["micro_batch_size"] == 8
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8"))["data"]["init_args"]["micro_batch_size"] == "auto"
    fixed = write_recipe(data={"micro_batch_size": 8})
    assert cli.main(["fit", "--config", str(fixed)]) == 0
    losses = [path.parent / "run" / "metrics.csv" for path in (recipe, fixed)]
    columns = [[line.split(",")[:2] for line in path.read_text("utf-8").splitlines()] for path in losses]
    assert columns[0] == columns[1]


def test_a_resumed_run_keeps_its_size(write_recipe, capsys, monkeypatch):
    recipe = write_recipe(data={"micro_batch_size": "auto"})
    monkeypatch.setattr(execution, "CPU_ENOUGH_TOKENS", 128)
    assert cli.main(["fit", "--config", str(recipe), "--trainer.max_steps", "2"]) == 0
    assert "512 = 2 sequences x 4 micro-batches" in capsys.readouterr().err
    monkeypatch.undo()
    last = recipe.parent / "run/checkpoints/last.ckpt"
    assert cli.main(["fit", "--config", str(recipe), "--ckpt_path", str(last)]) == 0
    assert "512 = 2 sequences x 4 micro-batches" in capsys.readouterr().err


def test_a_machine_without_memory_is_told(write_recipe, capsys, monkeypatch):
    monkeypatch.setattr(execution, "available_memory_bytes", lambda: 1000)
    assert cli.main(["fit", "--config", str(write_recipe(data={"micro_batch_size": "auto"}))]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not even one sequence of 64 tokens" in error
    assert "activation_checkpointing" in error


@pytest.mark.parametrize("value", ["0", "-3", "most"])
def test_impossible_sizes(value, write_recipe, capsys):
    assert cli.main(["fit", "--config", str(write_recipe()), "--data.micro_batch_size", value]) == 2
    assert value in capsys.readouterr().err
