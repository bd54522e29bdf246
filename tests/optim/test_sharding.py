"""Dividing optimizer state, as far as one process can see it; `tests/equivalence/test_ranks.py` has several."""

import copy

import pytest
import torch

from nanochat_lit import MuonAdamW
from nanochat_lit.optim import clip_grad_norm, global_grad_norm
from nanochat_lit.optim.sharding import Shards


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_spans_cover_every_row_once(count, world_size):
    rows = [row for rank in range(world_size) for row in range(count)[Shards(rank, world_size).span(count)]]
    assert rows == list(range(count))
    sizes = [len(range(count)[Shards(rank, world_size).span(count)]) for rank in range(world_size)]
    assert max(sizes) == -(-count // world_size)


def stepped_optimizer():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(4, 6, generator=generator)) for _ in range(5)]
    table, small = torch.nn.Parameter(torch.randn(301, 4, generator=generator)), torch.nn.Parameter(torch.ones(3))
    adamw = {"kind": "adamw", "lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
    muon = {"kind": "muon", "lr": 0.1, "momentum": 0.9, "beta2": 0.9, "weight_decay": 0.0}
    optimizer = MuonAdamW([{**muon, "params": matrices}, {**adamw, "params": [table, small]}])
    for parameter in (*matrices, table, small):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return optimizer


def test_a_state_that_was_loaded_before_is_divided():
    """As fine-tuning does, which takes over the pretraining's moments before the strategy divides the optimizer."""
    whole = copy.deepcopy(stepped_optimizer().state_dict())["state"]
    parts = []
    for rank in range(3):
        optimizer = stepped_optimizer()
        optimizer.shard(rank, 3)
        parts.append([optimizer.state[p] for group in optimizer.param_groups for p in group["params"]])
    for name in ("momentum_buffer", "second_moment"):
        assert [len(part[0][name]) for part in parts] == [2, 2, 1]
        assert torch.equal(torch.cat([part[0][name] for part in parts]), whole[0][name])
    for name in ("exp_avg", "exp_avg_sq"):
        assert [len(part[5][name]) for part in parts] == [101, 101, 99]
        assert torch.equal(torch.cat([part[5][name] for part in parts]), whole[5][name])
        assert all(torch.equal(part[6][name], whole[6][name]) for part in parts), "three numbers are not divided"


def test_norm_and_clipping_are_torchs_on_one_rank():
    ours, theirs = stepped_optimizer(), stepped_optimizer()
    parameters = [p for group in theirs.param_groups for p in group["params"]]
    wanted = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    torch.testing.assert_close(global_grad_norm(ours), wanted)
    torch.testing.assert_close(clip_grad_norm(ours, 0.5), wanted)
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for mine, reference in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(mine.grad, reference.grad)
