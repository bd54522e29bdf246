"""Derived numbers against recorded ones."""

import json

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.optim import derive_plan, micro_batches


def test_the_recorded_runs_come_out_exactly(reference):
    rows = json.loads((reference / "hyperparameters.json").read_text())
    assert [row["depth"] for row in rows] == [12, 20, 24]
    for row in rows:
        config = GPTConfig.from_depth(row["depth"])
        counts = count_parameters(config)
        plan = derive_plan(config, target_param_data_ratio=row["target_param_data_ratio"])
        assert {name: getattr(counts, name) for name in row["params"]} == row["params"]
        assert counts.scaling == row["scaling_params"]
        assert list(config.windows) == row["windows"]
        assert (config.n_embd, config.n_head) == (row["n_embd"], row["n_head"])
        assert plan.flops_per_token == row["flops_per_token"]
        assert plan.target_tokens == row["target_tokens"]
        assert plan.tokens_per_step == row["total_batch_size"]
        assert plan.num_steps == row["num_iterations"]
        assert plan.total_tokens == row["total_tokens"]
        assert plan.total_flops == row["total_flops"]
        assert plan.lr_scale == row["batch_lr_scale"]
        assert plan.weight_decay == pytest.approx(row["weight_decay"], rel=1e-15)
        assert (config.n_embd / 768) ** -0.5 == row["adamw_lr_scale"]


def test_the_length_comes_from_steps_then_flops_then_ratio():
    config = GPTConfig.from_depth(4, head_dim=64, sequence_len=512, vocab_size=8192)
    by_ratio = derive_plan(config, target_param_data_ratio=20)
    by_flops = derive_plan(config, target_flops=2 * by_ratio.total_flops)
    by_steps = derive_plan(config, target_flops=1e18, num_steps=7)
    assert by_flops.num_steps == pytest.approx(2 * by_ratio.num_steps, rel=2.0)
    assert by_flops.total_flops == pytest.approx(2 * by_ratio.total_flops, rel=0.01)
    assert by_steps.num_steps == 7


@pytest.mark.parametrize("name", ["target_param_data_ratio", "tokens_per_step", "num_steps", "target_flops"])
def test_numbers_that_are_not_positive_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is -1"):
        derive_plan(GPTConfig(), **{name: -1})


def test_less_than_a_step_is_refused():
    with pytest.raises(UserError, match="less than one step"):
        derive_plan(GPTConfig(), tokens_per_step=2**40)


def test_accumulation_must_come_out_whole():
    assert micro_batches(2**19, 32, 2048, 8) == 1
    assert micro_batches(8192, 4, 512, 1) == 4
    with pytest.raises(UserError, match="use 8,000 or 10,000"):
        micro_batches(8192, 4, 500)
    with pytest.raises(UserError, match=r"3 rank\(s\) = 12,288; use 12,288"):
        micro_batches(8192, 8, 512, 3)
