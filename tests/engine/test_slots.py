"""Requests that enter and leave a running batch, against the same requests alone."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Emitted, Engine
from nanochat_lit.engine.sampling import row_random
from nanochat_lit.engine.sampling_params import FAILED, Request
from nanochat_lit.model import GPT
from nanochat_lit.model.packed import can_pack, pack_linears
from nanochat_lit.tokenizer import Tokenizer

MakeModel = Callable[..., GPT]


RULES: list[dict[str, Any]] = [
    {},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"frequency_penalty": -0.4, "logit_bias": ((20, 2.0), (30, -100.0))},
    {},
]


def requests(count: int) -> list[Request]:
    """Greedy and sampled ones, prompts shorter and longer than a chunk and a window."""
    rng = random.Random(0)
    return [
        Request(
            prompt_ids=[rng.randrange(10, 320) for _ in range(rng.choice([1, 5, 40, 150]))],
            max_new_tokens=rng.choice([1, 3, 30]),
            temperature=rng.choice([0.0, 0.8, 1.2]),
            top_k=rng.choice([None, 20]),
            top_p=rng.choice([1.0, 0.9]),
            seed=number,
            logprobs=number % 2 == 0,
            top_logprobs=2 * (number % 4 == 0),
            **RULES[number % len(RULES)],
        )
        for number in range(count)
    ]


def run_alone(engine: Engine, request: Request) -> list[Emitted]:
    slot = engine.admit(request)
    tokens: list[Emitted] = []
    while not tokens or tokens[-1].finish_reason is None:
        tokens += engine.step()
        assert all(token.slot == slot for token in tokens)
    return tokens


def without_figures(token: Emitted) -> Emitted:
    return token._replace(slot=0, logprob=None, top=[token_id for token_id, _ in token.top])


def run_mixed(engine: Engine, wanted: Sequence[Request], seed: int) -> dict[int, list[Emitted]]:
    """All requests, admitted at random steps; some that nobody wants come and are released on the way."""
    rng = random.Random(seed)
    waiting, owners = list(range(len(wanted))), {}
    got: dict[int, list[Emitted]] = defaultdict(list)
    intruders: set[int] = set()
    while waiting or owners:
        while waiting and engine.num_free and rng.random() < 0.6:
            number = waiting.pop(0)
            owners[engine.admit(wanted[number])] = number
        if engine.num_free and rng.random() < 0.3:
            intruders.add(engine.admit(Request(prompt_ids=[5] * rng.randrange(1, 200), max_new_tokens=50)))
        if intruders and rng.random() < 0.3:
            engine.release(intruders.pop())
        for token in engine.step():
            if token.slot in owners:
                got[owners[token.slot]].append(token)
                if token.finish_reason:
                    del owners[token.slot]
            elif token.finish_reason:
                intruders.discard(token.slot)
    for slot in intruders:
        engine.release(slot)
    return got


@pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="needs oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_request_says_the_same_in_any_company(
    random_model: MakeModel, tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    model = random_model(sequence_len=200, n_layer=3, n_embd=128, window_pattern="SL")
    model.set_compute_dtype(dtype, cast_weights=True)
    pack_linears(model)
    wanted = requests(14)
    lonely = Engine(model, tokenizer, num_slots=1, prefill_chunk=64)
    expected = [run_alone(lonely, request) for request in wanted]
    engine = Engine(model, tokenizer, num_slots=5, prefill_chunk=64)
    for seed in range(2):
        got = run_mixed(engine, wanted, seed)
        for number, tokens in enumerate(expected):
            assert [without_figures(token) for token in got[number]] == [without_figures(token) for token in tokens]
            # several threads: the last bit of attention depends on the thread
            expected_logprobs = [token.logprob for token in tokens if token.logprob is not None]
            logprobs = [token.logprob for token in got[number] if token.logprob is not None]
            assert logprobs == pytest.approx(expected_logprobs, abs=1e-5 if dtype == torch.float32 else 0.05)
        assert engine.num_free == 5
    assert {tokens[-1].finish_reason for tokens in expected} >= {"length"}


def test_logprobs_are_those_of_the_full_forward(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    model = random_model(sequence_len=64)
    prompt = [11, 12, 13]
    tokens = run_alone(
        Engine(model, tokenizer),
        Request(prompt_ids=prompt, max_new_tokens=8, temperature=1.0, seed=3, logprobs=True),
    )
    said = [token.token_id for token in tokens]
    logprobs = model(torch.tensor([prompt + said]))[0].log_softmax(dim=-1)
    expected = [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(said)]
    assert [token.logprob for token in tokens] == pytest.approx(expected, abs=1e-4)


def test_a_stop_string_ends_the_answer_before_it(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(sequence_len=64), tokenizer)
    settings = Request(prompt_ids=[11, 12], max_new_tokens=40, temperature=1.5, seed=1)
    whole = "".join(piece.text for token in run_alone(engine, settings) for piece in token.pieces)
    stop = whole[10:13]
    tokens = run_alone(engine, Request(**{**vars(settings), "stop": (stop,)}))
    assert "".join(piece.text for token in tokens for piece in token.pieces) == whole[: whole.index(stop)]
    assert tokens[-1].finish_reason == "stop"


def test_a_prompt_is_read_in_chunks_between_the_steps_of_others(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(sequence_len=200), tokenizer, num_slots=2, prefill_chunk=50)
    first = engine.admit(Request(prompt_ids=[7], max_new_tokens=100))
    engine.step()
    second = engine.admit(Request(prompt_ids=[9] * 120, max_new_tokens=5))
    steps = [[token.slot for token in engine.step()] for _ in range(4)]
    assert [sorted(slots) for slots in steps] == [[first], [first], sorted([first, second]), sorted([first, second])]


def test_what_is_released_while_it_is_read_leaves_nothing_behind(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(sequence_len=200), tokenizer, num_slots=2, prefill_chunk=50)
    wanted = Request(prompt_ids=list(range(20, 90)), max_new_tokens=20)
    expected = run_alone(engine, wanted)
    half_read = engine.admit(Request(prompt_ids=[9] * 120))
    engine.step()
    engine.release(half_read)
    assert [token.token_id for token in run_alone(engine, wanted)] == [token.token_id for token in expected]
    engine.release(half_read)  # once more is no mistake
    assert engine.num_free == 2


def test_more_requests_than_slots_are_refused(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer, num_slots=1)
    engine.admit(Request(prompt_ids=[1]))
    with pytest.raises(UserError, match="all 1 slots are in use"):
        engine.admit(Request(prompt_ids=[1]))
    with pytest.raises(UserError, match="num_slots is 0"):
        Engine(random_model(), tokenizer, num_slots=0)
    with pytest.raises(UserError, match="stop must contain"):
        engine.check(Request(prompt_ids=[1], stop=("",)))


def _with_nan(model: GPT, token_id: int) -> GPT:
    """The model with an embedding that is not a number."""
    with torch.no_grad():
        model.transformer.wte.weight[token_id] = float("nan")
    return model


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_request_whose_logits_are_not_finite_fails_alone(
    random_model: MakeModel, tokenizer: Tokenizer, is_packed: bool
) -> None:
    """Its neighbours, and those that use its slot afterwards, emit what they emit alone."""
    model = _with_nan(random_model(sequence_len=128), 300)
    if is_packed and not can_pack(model):
        pytest.skip("nothing is packed here")
    if is_packed:
        pack_linears(model)
    good = [Request(prompt_ids=[20 + n] * 70, max_new_tokens=9, temperature=n % 2, seed=n) for n in range(6)]
    bad = [
        Request(prompt_ids=[30] * 90 + [300], max_new_tokens=9, temperature=t, top_p=p)
        for t, p in ((0, 1), (1, 1), (1, 0.9))
    ]
    alone = [[t.token_id for t in run_alone(Engine(model, tokenizer, num_slots=4), request)] for request in good]
    engine = Engine(model, tokenizer, num_slots=4)
    got: dict[int, list[int]] = defaultdict(list)
    owners: dict[int, tuple[bool, int]] = {}
    waiting = [entry for i in range(3) for entry in ((False, i), (True, i), (False, i + 3))]
    while waiting or owners:
        while waiting and engine.num_free:
            is_bad, number = waiting.pop(0)
            owners[engine.admit(bad[number] if is_bad else good[number])] = (is_bad, number)
        for token in engine.step():
            is_bad, number = owners[token.slot]
            if is_bad:
                assert (token.finish_reason, token.pieces) == (FAILED, [])
            else:
                got[number].append(token.token_id)
            if token.finish_reason is not None:
                del owners[token.slot]
    assert [got[number] for number in range(6)] == alone
    assert engine.num_free == 4


def test_a_failure_of_the_engine_leaves_it_as_new(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer, num_slots=2)
    request = Request(prompt_ids=[20] * 5, max_new_tokens=6)
    expected = [token.token_id for token in run_alone(engine, request)]
    engine.admit(request)
    engine.step()
    engine.admit(request)
    engine.reset()
    assert engine.num_free == 2
    assert [token.token_id for token in run_alone(engine, request)] == expected


@pytest.mark.parametrize("rules", [rules for rules in RULES if rules], ids=str)
def test_rules_of_the_logits(random_model: MakeModel, tokenizer: Tokenizer, rules: dict[str, Any]) -> None:
    """Greedy, and the most unlikely sample: tokens are those of the formulas of OpenAI, CTRL and min_p on the whole forward pass."""
    model = random_model(sequence_len=64)
    prompt = [11, 12, 13]
    for temperature in (0.0, 1.5):
        request = Request(
            prompt_ids=prompt,
            max_new_tokens=10,
            temperature=temperature,
            seed=5,
            logprobs=True,
            top_logprobs=4,
            **rules,
        )
        said: list[int] = []
        draw = row_random(5, 0)
        for token in run_alone(Engine(model, tokenizer), request):
            logits = model(torch.tensor([prompt + said]))[0, -1].double()
            raw = logits.log_softmax(dim=-1)
            assert [token_id for token_id, _ in token.top] == raw.topk(4).indices.tolist()
            assert token.logprob == pytest.approx(raw[token.token_id].item(), abs=1e-4)
            for token_id, amount in rules.get("logit_bias", ()):
                logits[token_id] += amount
            for token_id in set(prompt + said):
                factor = rules.get("repetition_penalty", 1.0)
                logits[token_id] = logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
            for token_id in set(said):
                logits[token_id] -= rules.get("presence_penalty", 0.0)
                logits[token_id] -= rules.get("frequency_penalty", 0.0) * said.count(token_id)
            if temperature:
                shares = (logits / temperature).softmax(dim=-1)
                shares = torch.where(shares >= rules.get("min_p", 0.0) * shares.max(), shares, 0.0)
                sums = shares.cumsum(dim=-1)
                expected = int(torch.searchsorted(sums, draw.random() * sums[-1], right=True))
            else:
                expected = int(logits.argmax())
            assert token.token_id == expected
            said.append(token.token_id)


def test_a_bias_needs_a_token_of_the_model(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer)
    with pytest.raises(UserError, match="logit_bias names the token 999999; the model's are from 0 to"):
        engine.admit(Request(prompt_ids=[1], logit_bias=((999999, 1.0),)))


def test_samples_admitted_one_by_one_share_a_prefill(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    """Also beside another prompt, and when one of them leaves; their tokens are those of separate prefills."""
    model = random_model(sequence_len=64)
    samples = [Request(prompt_ids=[11, 12, 13], max_new_tokens=6, temperature=1.0, sample=n) for n in range(3)]
    other = Request(prompt_ids=[11, 12, 14], max_new_tokens=6)
    expected = [[token.token_id for token in run_alone(Engine(model, tokenizer), one)] for one in [*samples, other]]
    engine = Engine(model, tokenizer, num_slots=5)
    owners = {engine.admit(one): number for number, one in enumerate([*samples[:2], other, samples[2], samples[0]])}
    assert [len(prefill.rows) for prefill in engine._prefills] == [4, 1]
    engine.release(list(owners)[4])
    got: dict[int, list[int]] = {number: [] for number in owners.values()}
    while engine.num_free < 5:
        for token in engine.step():
            got[owners[token.slot]].append(token.token_id)
    assert [got[0], got[1], got[3], got[2]] == expected
