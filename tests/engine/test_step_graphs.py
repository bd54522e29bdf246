"""Decoding as on a GPU, on a CPU: steps are replayed from a recording, and the host is one step behind."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.model import slot_cache
from nanochat_lit.model.slot_cache import StepGraphs
from nanochat_lit.tokenizer.special_tokens import PYTHON_END, PYTHON_START


class RecordedSteps(StepGraphs):
    """As a CUDA graph does, a recording knows the tensors that the function worked on, and nothing of the host."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine._step, engine.model.device)
        self.engine, self.can_capture, self.num_replays = engine, True, 0

    def _capture(self, shape):
        slots = self.engine._cached()[1]
        state = [*slots.keys, *slots.values, slots.embeddings, slots.tokens, slots._all_positions, slots.next_tokens]
        before = [tensor.clone() for tensor in state]
        recording = make_fx(lambda *_: self.function())(*state)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
        result = torch.empty(shape[0], self.engine.model.config.vocab_size)

        def replay():
            self.num_replays += 1
            result.copy_(recording(*state))

        self._graphs[shape] = SimpleNamespace(replay=replay), result


def as_on_a_gpu(engine):
    engine._graphs, engine._lag = RecordedSteps(engine), 1
    return engine


def test_tokens_are_those_of_plain_steps(random_model, tokenizer):
    """Greedy and sampled, past the window of 128, to the end of the context, more requests than slots."""
    model = random_model(sequence_len=150, n_layer=2, n_head=4, n_kv_head=2, window_pattern="SL", bigram_factor=3)
    lengths = [(125, 26), (1, 9), (60, 1), (120, 15), (3, 2)]
    requests = [
        Request(
            prompt_ids=[10 + seed] * length, max_new_tokens=new, temperature=0.7 * (seed % 2), seed=seed, logprobs=True
        )
        for seed, (length, new) in enumerate(lengths)
    ]
    expected = Engine(model, tokenizer, num_slots=2).run(requests)
    engine = as_on_a_gpu(Engine(model, tokenizer, num_slots=2))
    found = engine.run(requests)
    for tokens, plain in zip(found, expected, strict=True):
        assert [token.token_id for token in tokens] == [token.token_id for token in plain]
        assert [token.finish_reason for token in tokens] == [token.finish_reason for token in plain]
        assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in plain], abs=1e-4)
    assert [len(tokens) for tokens in found] == [new for _, new in lengths]  # none ended by itself
    assert len(engine._graphs._graphs) == 3  # 64, 128 and 192 keys
    assert engine._graphs.num_replays >= 25
    assert engine.num_free == 2


def test_what_a_tool_forces_is_read_by_the_next_step(random_model, tokenizer, monkeypatch):
    """The model's choice is overruled before the step that reads it starts."""
    model, special = random_model(), tokenizer.special_ids
    call = [special[PYTHON_START], *tokenizer.encode("6*7"), special[PYTHON_END]]
    chosen = "nanochat_lit.engine.engine.sample_rows"
    completions = []
    for change in (lambda engine: engine, as_on_a_gpu):
        script = iter([*call, *[99] * 30])
        monkeypatch.setattr(chosen, lambda requests, *_, script=script: torch.tensor([next(script) for _ in requests]))
        read, engine = [], change(Engine(model, tokenizer, num_slots=1))
        forward = engine._forward

        def noted(inputs, cache, read=read, forward=forward):
            read.append(int(inputs[0, -1]))
            return forward(inputs, cache)

        monkeypatch.setattr(engine, "_forward", noted)
        engine._graphs.function, engine._graphs.can_capture = engine._step, False
        completions.append((engine.generate([tokenizer.bos_id], max_new_tokens=20)[0], read[:20]))
    (plain, plain_read), (tokens, read) = completions
    assert tokens == plain
    assert read == plain_read
    assert read[1:] == plain[:19]


def test_a_request_that_is_given_up_leaves_its_last_step_behind(random_model, tokenizer):
    engine = as_on_a_gpu(Engine(random_model(), tokenizer, num_slots=2))
    first, second = (engine.admit(Request(prompt_ids=[7, number], max_new_tokens=9)) for number in (1, 2))
    for _ in range(4):
        engine.step()
    engine.release(first)
    third = engine.admit(Request(prompt_ids=[8], max_new_tokens=9))
    assert third != first  # a late token of the first would be taken for one of the third
    tokens = [token for _ in range(15) for token in engine.step()]
    assert [sum(token.slot == slot for token in tokens) for slot in (first, second, third)] == [0, 9 - 2, 9]


class Graph:
    """A double of torch.cuda.CUDAGraph that counts."""

    replays = 0

    def replay(self):
        Graph.replays += 1

    def pool(self):
        return "pool"


class Capture:
    """A double of torch.cuda.graph."""

    pools: list[object] = []  # noqa: RUF012

    def __init__(self, _graph, pool):
        Capture.pools.append(pool)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(slot_cache, "free_memory_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(Graph, "replays", 0)
    monkeypatch.setattr(Capture, "pools", [])
    calls = []
    return StepGraphs(lambda: calls.append(1) or torch.tensor(len(calls)), torch.device("cuda")), calls


def test_a_shape_runs_once_is_captured_and_then_replayed(graphs):
    steps, calls = graphs
    assert [int(steps((1, 64))) for _ in range(4)] == [1, 2, 2, 2]
    assert (len(calls), Graph.replays) == (2, 3)
    steps((1, 128))
    assert Capture.pools == [None, "pool"]  # one pool for all


@pytest.mark.parametrize("fault", ["memory", "capture"])
def test_without_graphs_steps_run_as_they_are_and_it_is_said_once(graphs, fault, monkeypatch, caplog):
    steps, calls = graphs

    def fail(*_, **__):
        raise RuntimeError("operation not permitted\nwhen capturing")

    if fault == "memory":
        monkeypatch.setattr(slot_cache, "free_memory_bytes", lambda _: 1 << 20)
    else:
        monkeypatch.setattr(torch.cuda, "graph", fail)
    with caplog.at_level(logging.WARNING):
        for shape in (64, 64, 128):
            steps(shape)
    assert (len(calls), Graph.replays) == (3, 0)
    (record,) = caplog.records
    assert ("of GPU memory is free" if fault == "memory" else "operation not permitted") in record.message
