"""Bytes and arithmetic of an optimizer step on paper, against those of a step whose messages and products are counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat_lit import GPT, GPTConfig, MuonAdamW, param_groups
from nanochat_lit.common import distributed
from nanochat_lit.optim import sharding
from nanochat_lit.optim.step_costs import step_costs

SCATTER, GATHER = (distributed.collective(f"{name}_single").__name__ for name in ("reduce_scatter", "all_gather"))
CONFIG = GPTConfig(n_layer=3, n_head=2, n_kv_head=1, n_embd=64, vocab_size=1000, sequence_len=64, bigram_factor=2)


class Arrived:
    def wait(self):
        pass


@pytest.fixture
def sent(monkeypatch):
    """Bytes that a ring of ranks would send from each, of the collectives that are called; nothing arrives but zeros."""
    total = [0.0, 0]  # and the rank

    def count(tensor, share):
        total[0] += tensor.numel() * tensor.element_size() * share
        return Arrived()

    def collective(ways, world_size):
        def call(*tensors, **options):
            tensors[0].zero_()
            largest = max(tensors, key=lambda tensor: tensor.numel())
            return count(largest, ways * (world_size - 1) / world_size)

        return call

    def move(output, source, received, sent):
        output.zero_()
        total[0] += (source.numel() - sent[total[1]]) * source.element_size()

    def of(rank, world_size):
        total[:] = [0.0, rank]
        monkeypatch.setattr(sharding.dist, "all_to_all_single", move)
        for name, ways in ((SCATTER, 1), (GATHER, 1), ("all_reduce", 2)):
            monkeypatch.setattr(sharding.dist, name, collective(ways, world_size))
        return total

    return of


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_zero_sends_and_multiplies_so_much(world_size, sent, monkeypatch):
    """Of the ranks, the one that has most to do counts."""
    monkeypatch.setattr(sharding, "BUCKET_ELEMENTS", 20_000)
    torch.manual_seed(0)
    model = GPT(CONFIG, torch.bfloat16)
    model.init_weights()
    messages, flops = [], []
    for rank in range(world_size):
        optimizer = MuonAdamW(param_groups(model))
        optimizer.shard(rank, world_size)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        total = sent(rank, world_size)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        messages.append(total[0])
        flops.append(counter.get_total_flops())
    costs = step_costs(CONFIG, strategy="zero", world_size=world_size)
    assert costs.sent_bytes == pytest.approx(max(messages), abs=1)
    assert costs.muon_flops == max(flops) > 0


def test_ddp_sends_every_gradient_and_multiplies_everything():
    model = GPT(CONFIG, torch.bfloat16)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    one, four = (step_costs(CONFIG, strategy="ddp", world_size=size) for size in (1, 4))
    assert (one.sent_bytes, four.sent_bytes) == (0, 2 * gradients * 3 // 4)
    assert four.muon_flops == one.muon_flops == step_costs(CONFIG, strategy="zero", world_size=1).muon_flops
