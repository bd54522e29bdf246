"""Sequences in slots against the same sequences alone, bit for bit, and against the full forward pass."""

from collections.abc import Iterator

import pytest
import torch

from nanochat_lit import GPT, Engine, GPTConfig
from nanochat_lit.common.errors import UserError
from nanochat_lit.model import KVCache, SlotCache
from nanochat_lit.model.decode_kernel import kernel_obstacle
from nanochat_lit.model.packed import pack_linears
from nanochat_lit.model.slot_cache import check_room


def build(dtype: torch.dtype, **changes: object) -> GPT:
    fields = {"sequence_len": 300, "vocab_size": 100, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 128}
    model = GPT(GPTConfig(**{**fields, "window_pattern": "SL", **changes}))
    model.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # the real start has zero projections, which would hide mistakes
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.set_compute_dtype(dtype, cast_weights=True).eval()


def texts(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 100, (1, length), generator=generator) for length in lengths]


def insert(model: GPT, slots: SlotCache, text: torch.Tensor) -> None:
    reading = KVCache(model.config, 1, slots.max_len, dtype=model.compute_dtype)
    model(text, kv_cache=reading)
    slots.insert(reading)


@torch.inference_mode()
def decode(model: GPT, prompts: list[torch.Tensor], following: list[torch.Tensor], num_rows: int) -> torch.Tensor:
    """Logits (steps, B, V) of tokens that follow some prompts, read one by one in slots."""
    slots = SlotCache(model.config, 6, 300, dtype=model.compute_dtype)
    for prompt in prompts:
        insert(model, slots, prompt)
    out = []
    for tokens in zip(*(list(text[0]) for text in following), strict=True):
        slots.begin_step(num_rows)
        rows = torch.stack(tokens)[:, None]
        scratch = torch.zeros(max(0, num_rows - len(rows)), 1, dtype=torch.int64)
        out.append(model(torch.cat((rows, scratch)), kv_cache=slots)[: len(rows), 0])
    return torch.stack(out)


@pytest.mark.parametrize(
    "changes", [{}, {"window_pattern": "L"}, {"window_pattern": "S"}, {"bigram_factor": 3}], ids=str
)
def test_slots_give_what_the_full_forward_gives(changes: dict[str, object]) -> None:
    """Prompts shorter and longer than the window of 128, and sequences that run past it."""
    model = build(torch.float32, **changes)
    prompts, following = texts([3, 120, 129, 250]), texts([20] * 4)
    steps = decode(model, prompts, following, 4)
    for row, (prompt, new) in enumerate(zip(prompts, following, strict=True)):
        with torch.inference_mode():
            expected = model(torch.cat((prompt, new), dim=1))[0, -20:]
        torch.testing.assert_close(steps[:, row], expected, atol=5e-5, rtol=1e-4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several, torch's attention works in a buffer per thread, and their alignment shows in the last bit of a sum."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("dtype", "num_rows", "quantize"),
    [
        (torch.bfloat16, 1, "plain"),
        (torch.bfloat16, 1, None),
        (torch.bfloat16, 1, "int8"),
        (torch.float32, 4, None),  # plain float32 products depend on the number of rows when there are several threads
        (torch.float32, 4, "int8"),
        (torch.float32, 4, "int4"),
    ],
)
def test_neighbours_change_no_bit(dtype: torch.dtype, num_rows: int, quantize: str | None) -> None:
    model = build(dtype, bigram_factor=3)
    if quantize in ("int8", "int4") and kernel_obstacle(model):
        pytest.skip("needs a C++ compiler")
    if quantize != "plain":
        pack_linears(model, quantize)
    prompts, following = texts([3, 120, 129, 250, 40]), texts([12] * 5)
    together = decode(model, prompts, following, num_rows)
    for row in range(5):
        alone = decode(model, prompts[row : row + 1], following[row : row + 1], num_rows)
        assert torch.equal(alone[:, 0], together[:, row]), f"row {row}"


@torch.inference_mode()
def test_removing_moves_the_last_sequence() -> None:
    model = build(torch.float32, bigram_factor=3)
    slots = SlotCache(model.config, 3, 300)
    prompts = texts([140, 10, 200])
    for prompt in prompts:
        insert(model, slots, prompt)
    slots.remove(0)
    assert (slots.num_active, slots.length(0), slots.length(1), slots.length(2)) == (2, 200, 10, 0)
    slots.begin_step()
    new = torch.tensor([[7], [9]])
    logits = model(new, kv_cache=slots)[:, 0]
    for row, prompt in enumerate((prompts[2], prompts[1])):
        expected = model(torch.cat((prompt, new[row : row + 1]), dim=1))[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=5e-5, rtol=1e-4)


def test_a_window_layer_keeps_its_window_alone() -> None:
    slots = SlotCache(build(torch.float32).config, 2, 300)
    assert [keys.shape[2] for keys in slots.keys] == [192, 320, 320]  # multiples of 64
    assert slots.num_bytes == 2 * (192 + 320 + 320) * 2 * 2 * 32 * 4


@pytest.mark.parametrize("pattern", ["L", "SL"])
def test_room_is_refused_before_it_is_taken(pattern: str) -> None:
    config = GPTConfig(
        sequence_len=256, vocab_size=100, n_layer=2, n_head=2, n_kv_head=2, n_embd=64, window_pattern=pattern
    )
    cpu = torch.device("cpu")
    needed = SlotCache(config, 6, 256).num_bytes  # what is really allocated
    check_room(config, 6, 256, cpu, torch.bfloat16, free=needed)
    with pytest.raises(UserError, match=r"6 slots of 256 tokens need 0\.00 GiB .* is free on cpu; use at most 5 slots"):
        check_room(config, 6, 256, cpu, torch.bfloat16, free=needed - 1)
    with pytest.raises(UserError, match="free some memory, or use a smaller model"):
        check_room(config, 6, 256, cpu, torch.bfloat16, free=1)


def test_an_engine_asks_for_its_room(tokenizer) -> None:
    engine = Engine(build(torch.float32, vocab_size=tokenizer.vocab_size), tokenizer, num_slots=1_000_000)
    with pytest.raises(UserError, match=r"1000000 slots of 300 tokens need \d+\.\d\d GiB"):
        engine.generate([5], max_new_tokens=2)
