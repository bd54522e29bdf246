from collections.abc import Callable, Sequence

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.model import GPT, KVCache, SlotCache
from nanochat_lit.tokenizer import Tokenizer

MakeModel = Callable[..., GPT]


def naive(model: GPT, prompt: Sequence[int], max_new_tokens: int, end_ids: frozenset[int]) -> list[int]:
    """Greedy completion by a full forward pass per token: no cache, no engine."""
    token_ids = list(prompt)
    with torch.no_grad():
        for _ in range(min(max_new_tokens, model.config.sequence_len - len(prompt) + 1)):
            best = int(model(torch.tensor([token_ids]))[0, -1].argmax())
            if best in end_ids:
                break
            token_ids.append(best)
    return token_ids[len(prompt) :]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(10, 320, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class Scripted(torch.nn.Module):
    """A 'model' that says a fixed list of tokens, whatever it reads; it counts the positions it has computed."""

    decode_kernel = None

    def __init__(self, like: GPT, script: Sequence[int]) -> None:
        super().__init__()
        self.config, self.device, self.compute_dtype = like.config, like.device, like.compute_dtype
        self.script, self.start, self.num_positions = list(script), 0, 0

    def forward(self, inputs: torch.Tensor, kv_cache: KVCache | SlotCache, last_only: bool) -> torch.Tensor:
        if not self.num_positions:
            self.start = inputs.shape[1]
        self.num_positions += inputs.shape[1]
        kv_cache.previous_embedding = torch.zeros(len(inputs), 1, self.config.n_embd)
        kv_cache.advance(inputs.shape[1])
        logits = torch.zeros(inputs.shape[0], 1, self.config.vocab_size)
        logits[:, :, self.script[min(self.num_positions - self.start, len(self.script) - 1)]] = 10
        return logits


@pytest.mark.parametrize("prompt_length", [1, 5, 140, 250])
@pytest.mark.parametrize(
    "fields",
    [
        {"n_layer": 1, "window_pattern": "L"},
        {"n_layer": 3, "window_pattern": "SSSL"},  # odd depth
        {"n_layer": 4, "window_pattern": "SL"},
        {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "window_pattern": "S"},  # GQA
        {"n_layer": 5, "n_head": 4, "n_kv_head": 1, "window_pattern": "SSL"},  # MQA, odd
        {"n_layer": 2, "bigram_factor": 3},
    ],
    ids=str,
)
def test_cached_decode_equals_the_full_forward(
    random_model: MakeModel, tokenizer: Tokenizer, fields: dict[str, object], prompt_length: int
) -> None:
    # the short window is 128 tokens: prompts are shorter and longer than it, and sequences run past it
    model = random_model(seed=prompt_length, sequence_len=300, **fields)
    engine = Engine(model, tokenizer)
    prompt = prompt_of(prompt_length)
    new = 140 if prompt_length == 5 else 12
    logits = model(torch.tensor([prompt]))[0, -1].topk(2).values
    assert logits[0] > logits[1]
    expected = naive(model, prompt, new, engine.end_ids)
    assert engine.generate(prompt, max_new_tokens=new) == [expected]


def test_random_models_say_different_things(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    """Guards the comparison above: a model that repeats one token would pass with a broken cache."""
    completions = Engine(random_model(seed=5, sequence_len=300), tokenizer).generate(prompt_of(5), max_new_tokens=50)
    assert len(set(completions[0])) > 5


def test_batches_equal_one_by_one(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer)
    prompts = [prompt_of(length, seed) for seed, length in enumerate([3, 7, 3, 1, 7, 3, 20])]
    one_by_one = [engine.generate(prompt, max_new_tokens=30)[0] for prompt in prompts]
    assert engine.generate_batch(prompts, max_new_tokens=30) == one_by_one
    assert engine.generate_batch([], max_new_tokens=30) == []


def test_rows_that_end_do_not_disturb_the_others(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    model = random_model(seed=1)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.bos_id] += 0.5 * model.lm_head.weight.std()  # ends come at different steps
    engine = Engine(model, tokenizer)
    samples = engine.generate(prompt_of(4), num_samples=32, max_new_tokens=40, temperature=1.5, seed=1)
    assert len({len(sample) for sample in samples}) > 3, [len(sample) for sample in samples]
    assert samples[:5] == engine.generate(prompt_of(4), num_samples=5, max_new_tokens=40, temperature=1.5, seed=1)
    assert not {token for sample in samples for token in sample} & engine.end_ids


def test_seeds(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer)
    torch.manual_seed(0)
    first = engine.generate(prompt_of(4), 3, max_new_tokens=20, temperature=1.0, top_k=50, seed=7)
    torch.manual_seed(1)
    assert engine.generate(prompt_of(4), 3, max_new_tokens=20, temperature=1.0, top_k=50, seed=7) == first
    assert engine.generate(prompt_of(4), 3, max_new_tokens=20, temperature=1.0, top_k=50, seed=8) != first
    assert first[0] != first[1]
    prompts = [prompt_of(4), prompt_of(6), prompt_of(4, 1)]
    batch = engine.generate_batch(prompts, max_new_tokens=20, temperature=1.0, top_k=50, seed=7)
    assert batch[0] == first[0]
    assert engine.generate_batch(prompts, max_new_tokens=20, temperature=1.0, top_k=50, seed=7) == batch


def test_stream_gives_what_generate_gives(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    """Also of iterators that take turns, with more requests than slots, and beside one that is closed early."""
    engine = Engine(random_model(), tokenizer, num_slots=2)
    settings = {"max_new_tokens": 15, "temperature": 1.0, "seed": 2}
    samples = [Request(prompt_ids=prompt_of(4), sample=number, **settings) for number in range(3)]
    closed = engine.stream([Request(prompt_ids=prompt_of(3), max_new_tokens=2)])
    next(closed)
    streams = {name: engine.stream(samples) for name in ("first", "second")}
    got: dict[str, list[list[int]]] = {name: [[], [], []] for name in streams}
    while streams:
        for name in list(streams):
            if (found := next(streams[name], None)) is None:
                del streams[name]
            else:
                got[name][found[0]].append(found[1].token_id)
        closed.close()  # its request has ended, and its slot is used by another
    generated = engine.generate(prompt_of(4), 3, **settings)
    for name in got:
        assert [[token for token in one if token not in engine.end_ids] for one in got[name]] == generated
    assert engine.num_free == 2
    assert not torch.is_inference_mode_enabled()


def test_tool_call_in_the_stream(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    special, encode = tokenizer.special_ids, tokenizer.encode
    call = [special["<|python_start|>"], *encode("2+3"), special["<|python_end|>"]]
    result = [special["<|output_start|>"], *encode("5"), special["<|output_end|>"]]
    # while the result is forced, what the model would have said at those steps is thrown away
    script = [*call, *[40] * len(result), *encode("ok"), special["<|assistant_end|>"]]
    model = Scripted(random_model(), script)
    prompt = prompt_of(6)
    (emitted,) = Engine(model, tokenizer).run([Request(prompt_ids=prompt, max_new_tokens=50)])  # type: ignore[arg-type]
    tokens, masks = [token.token_id for token in emitted], [1 - token.is_forced for token in emitted]
    assert tokens == [*call, *result, *encode("ok"), special["<|assistant_end|>"]]
    assert masks == [1] * len(call) + [0] * len(result) + [1] * (len(encode("ok")) + 1)
    assert model.num_positions == len(prompt) + len(tokens) - 1  # each position was computed once
    limited = Scripted(random_model(), script)
    assert Engine(limited, tokenizer).generate(prompt, max_new_tokens=len(call) + 1) == [  # type: ignore[arg-type]
        [*call, result[0]]
    ]


def test_the_context_ends_generation(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    model = Scripted(random_model(), [50])
    for length in (60, 63, 64):
        model.num_positions = 0
        completion = Engine(model, tokenizer).generate(prompt_of(length), max_new_tokens=99)[0]  # type: ignore[arg-type]
        assert len(completion) == 64 - length + 1
        assert model.num_positions == 64
    real = Engine(random_model(), tokenizer)
    assert (
        real.generate(prompt_of(64), num_samples=2, max_new_tokens=9)
        == [naive(real.model, prompt_of(64), 9, real.end_ids)] * 2
    )


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([1] * 65, {}, "65 tokens.*context is 64"),
        ([], {}, "empty"),
        ([320], {}, "0 to 319"),
        ([-1], {}, "0 to 319"),
        ([1], {"temperature": -1.0}, "temperature is -1.0"),
        ([1], {"top_k": -5}, "top_k is -5"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([1], {"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_bad_requests(
    random_model: MakeModel, tokenizer: Tokenizer, prompt: list[int], arguments: dict[str, float], message: str
) -> None:
    engine = Engine(random_model(), tokenizer)
    with pytest.raises(UserError, match=message):
        engine.generate(prompt, **arguments)


def test_a_bad_request_is_refused_at_the_call(random_model: MakeModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        Engine(random_model(), tokenizer).stream([Request(prompt_ids=[])])
