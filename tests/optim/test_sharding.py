"""Dividing optimizer state, as far as one process can see it; `tests/equivalence/test_ranks.py` has several."""

import copy

import pytest
import torch

from nanochat_lit import MuonAdamW
from nanochat_lit.common.distributed import collective
from nanochat_lit.optim import clip_grad_norm, global_grad_norm, sharding
from nanochat_lit.optim.sharding import Shards


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_spans_cover_every_row_once(count, world_size):
    rows = [row for rank in range(world_size) for row in range(count)[Shards(rank, world_size).span(count)]]
    assert rows == list(range(count))
    sizes = [len(range(count)[Shards(rank, world_size).span(count)]) for rank in range(world_size)]
    assert max(sizes) == -(-count // world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
def test_matrices_of_all_shapes_are_dealt_out_together(world_size):
    """d24's 156 matrices: no rank has much more arithmetic than the mean, and buckets are padded by less than N elements."""
    shapes = {(1536, 1536): 96, (6144, 1536): 24, (1536, 6144): 24, (12, 12): 12}
    stacks = [
        [torch.nn.Parameter(torch.empty(shape, device="meta")) for _ in range(count)] for shape, count in shapes.items()
    ]
    dealt = sharding.Exchange(stacks, [], Shards(0, world_size))
    flops = [0] * world_size
    for matrix in (matrix for stack in stacks for matrix in stack):
        flops[dealt.owner(matrix)] += sharding.muon_flops(*matrix.shape)
    assert max(flops) < 1.07 * sum(flops) / world_size
    elements = sum(matrix.numel() for stack in stacks for matrix in stack)
    assert sum(len(bucket.parameters) for bucket in dealt.buckets) == 156
    assert 0 <= sum(bucket.piece for bucket in dealt.buckets) * world_size - elements < len(dealt.buckets) * world_size


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
        # the last three matrices are a round of one for each rank, last first; the other two go to the first ranks
        dealt = torch.cat([parts[rank][0][name] for rank in range(3)])[[2, 0, 4, 3, 1]]
        assert torch.equal(dealt, whole[0][name])
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


@pytest.fixture
def sent(monkeypatch):
    """Numbers of elements that two ranks' reduce-scatters were given; the other rank's gradients are equal."""
    sizes = []

    def reduce_scatter(piece, whole, **_):
        sizes.append(whole.numel())
        piece.copy_(whole[: len(piece)])

    def gather(whole, own, **_):
        whole.copy_(torch.cat([own, own]))

    for name, function in (
        (collective("reduce_scatter_single").__name__, reduce_scatter),
        (collective("all_gather_single").__name__, gather),
    ):
        monkeypatch.setattr(torch.distributed, name, function)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
    monkeypatch.setattr(sharding, "BUCKET_ELEMENTS", 48)
    return sizes


def test_the_last_backward_pass_of_a_step_sends_what_is_complete(sent):
    """Buckets of two and two matrices of 24 elements, one matrix and its padding, a table of 301 rows of 4."""
    optimizer = stepped_optimizer()
    optimizer.shard(0, 2)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def backward():
        sum((p * p).sum() for p in parameters).backward()

    optimizer.zero_grad()
    backward()
    assert sent == []
    optimizer.expect_step()
    backward()
    everything = [48, 48, 24, 302 * 4]
    assert sorted(sent) == sorted(everything)
    optimizer._exchange.start()
    assert len(sent) == 4, "nothing has changed, so nothing is sent again"
    parameters[0].grad.mul_(0.5)  # as clipping does
    optimizer._exchange.start()
    assert len(sent) == 5
    optimizer._exchange.expect_step()
    parameters[5].grad = None
    (parameters[5] ** 2).sum().backward()
    optimizer._exchange.start()
    assert sent[5:] == [302 * 4]
