"""The decode kernel against plain PyTorch, and a sequence in company against the same one alone."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from nanochat_lit import GPT, GPTConfig
from nanochat_lit.common.errors import UserError
from nanochat_lit.model import KVCache, SlotCache, decode_kernel
from nanochat_lit.model.decode_kernel import (
    GROUP,
    DecodeKernel,
    KernelLinear,
    kernel_library,
    kernel_obstacle,
    uncovered,
)
from nanochat_lit.model.packed import (
    describe_kernel,
    pack_linears,
    quantize_groups,
    quantize_rows,
)

pytestmark = pytest.mark.skipif(kernel_library() is None, reason="no C++ compiler found")


def has_tiles() -> bool:
    library = kernel_library()
    return library is not None and bool(library.use_tiles(1))


@pytest.fixture(params=["vectors", "tiles"] if has_tiles() else ["vectors"])
def units(request: pytest.FixtureRequest) -> Iterator[str]:
    """What bfloat16 and 8-bit products are computed with."""
    library = kernel_library()
    assert library is not None
    library.use_tiles(request.param == "tiles")
    yield request.param
    library.use_tiles(1)


def build(dtype: torch.dtype, seed: int = 0, **changes: object) -> GPT:
    fields = {"sequence_len": 300, "vocab_size": 100, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 128}
    model = GPT(GPTConfig(**{**fields, "window_pattern": "SL", **changes}))
    model.init_weights(torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.set_compute_dtype(dtype, cast_weights=True).eval()


def texts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 100, (1, length), generator=generator) for length in lengths]


@torch.inference_mode()
def decode(model: GPT, prompts: list[torch.Tensor], following: list[torch.Tensor]) -> torch.Tensor:
    """Logits (steps, B, V) of tokens that follow some prompts, read one by one in slots."""
    has_kernel = model.decode_kernel is not None
    slots = SlotCache(model.config, len(prompts), 300, dtype=model.compute_dtype, has_kernel=has_kernel)
    for prompt in prompts:
        reading = KVCache(model.config, 1, 300, dtype=model.compute_dtype)
        model(prompt, kv_cache=reading)
        slots.insert(reading)
    out = []
    for tokens in zip(*(list(text[0]) for text in following), strict=True):
        slots.begin_step()
        out.append(model(torch.stack(tokens)[:, None], kv_cache=slots)[:, 0])
    return torch.stack(out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_pattern": "S"},
        {"n_kv_head": 4},
        {"n_layer": 1},
        {"vocab_size": 67},
        {"vocab_size": 67, "bigram_factor": 3},
    ],
)
def test_logits_are_those_of_the_full_forward(changes: dict[str, object]) -> None:
    """Prompts shorter and longer than the window of 128, and sequences that run past it; float32."""
    model = build(torch.float32, **changes)
    prompts, following = texts(3, 120, 129, 250), texts(20, 20, 20, 20)
    prompts, following = [[t % model.config.vocab_size for t in some] for some in (prompts, following)]
    plain = copy.deepcopy(model)
    pack_linears(model)
    assert isinstance(model.decode_kernel, DecodeKernel)
    steps = decode(model, prompts, following)
    for row, (prompt, new) in enumerate(zip(prompts, following, strict=True)):
        with torch.inference_mode():
            expected = plain(torch.cat((prompt, new), dim=1))[0, -20:]
        torch.testing.assert_close(steps[:, row], expected, atol=5e-5, rtol=1e-4)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("changes", [{}, {"bigram_factor": 3}])
def test_bfloat16_is_as_near_to_float32_as_pytorchs(changes: dict[str, object]) -> None:
    model, exact = build(torch.bfloat16, **changes), build(torch.bfloat16, **changes)
    for parameter in exact.parameters():
        parameter.data = parameter.data.float()
    exact.set_compute_dtype(torch.float32)
    prompts, following = texts(3, 120, 250), texts(20, 20, 20)
    expected, plain = decode(exact, prompts, following), decode(model, prompts, following)
    pack_linears(model)
    ours = decode(model, prompts, following)
    assert (ours - expected).norm() < 1.1 * (plain - expected).norm()


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize(
    ("dtype", "quantize", "tolerance"),
    [
        (torch.bfloat16, None, 0.06),
        (torch.float32, "int8", 0.06),
        (torch.bfloat16, "int8", 0.06),
        (torch.float32, "int4", 0.4),
        (torch.bfloat16, "int4", 0.4),
    ],
)
def test_rounded_models_with_pairs_are_near_the_full_forward(
    dtype: torch.dtype, quantize: str | None, tolerance: float
) -> None:
    exact, model = build(torch.float32, bigram_factor=3), build(dtype, bigram_factor=3)
    pack_linears(model, quantize)
    prompts, following = texts(3, 120, 250), texts(20, 20, 20)
    steps = decode(model, prompts, following)
    with torch.inference_mode():
        whole = [exact(torch.cat(texts, dim=1))[0, -20:] for texts in zip(prompts, following, strict=True)]
    expected = torch.stack(whole, dim=1)
    assert (steps - expected).norm() < tolerance * expected.norm()


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_company_and_threads_do_not_matter(dtype: torch.dtype, quantize: str | None, threads: int) -> None:
    """Bit for bit: eight rows on some threads against each alone on one."""
    model = build(dtype, bigram_factor=3)
    pack_linears(model, quantize)
    lengths = (3, 120, 129, 250, 7, 8, 9, 10)
    prompts, following = texts(*lengths), texts(*[12] * len(lengths))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([decode(model, [p], [f]) for p, f in zip(prompts, following, strict=True)], dim=1)
        torch.set_num_threads(threads)
        together = decode(model, prompts, following)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


@torch.inference_mode()
def read(model: GPT, prompt: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, KVCache]:
    """Logits (V) after a prompt that is read in chunks of the given sizes and the rest."""
    cache = KVCache(model.config, 1, 300, dtype=model.compute_dtype)
    for chunk in prompt.split([*sizes, prompt.shape[1] - sum(sizes)], dim=1):
        logits = model(chunk, kv_cache=cache, last_only=True)
    return logits[0, 0], cache


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_pattern": "S"},
        {"n_kv_head": 4},
        {"n_head": 2, "n_kv_head": 1},
        {"n_layer": 1},
        {"bigram_factor": 3},
    ],
)
@pytest.mark.parametrize("length", [1, 2, 17, 128, 129, 290])
def test_a_prompt_read_by_the_kernel(changes: dict[str, object], length: int) -> None:
    """Logits, keys, values and what the next token's smear reads are those of plain PyTorch; float32."""
    model = build(torch.float32, **changes)
    (prompt,) = texts(length)
    plain = copy.deepcopy(model)
    pack_linears(model)
    logits, cache = read(model, prompt)
    expected, plain_cache = read(plain, prompt)
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-4)
    assert cache.position == length
    for ours, theirs in ((cache.keys, plain_cache.keys), (cache.values, plain_cache.values)):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(cache.previous_embedding, plain_cache.previous_embedding, atol=1e-6, rtol=1e-5)
    if model.config.bigram_factor:
        assert cache.previous_token is not None
        assert torch.equal(cache.previous_token, prompt[:, -1:])


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_and_threads_of_a_prompt_do_not_matter(dtype: torch.dtype, quantize: str | None) -> None:
    """Bit for bit, also where chunks end just before, in and after a window of 128 and the kernel's own chunks of 256."""
    model = build(dtype, bigram_factor=3)
    pack_linears(model, quantize)
    (prompt,) = texts(290)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        logits, cache = read(model, prompt)
        torch.set_num_threads(3)
        for sizes in [(), (1, 1), (127, 1, 1), (128, 130), (257,)]:
            other_logits, other = read(model, prompt, *sizes)
            assert torch.equal(other_logits, logits)
            assert torch.equal(other.keys, cache.keys)
            assert torch.equal(other.values, cache.values)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("changes", [{}, {"bigram_factor": 3}])
def test_a_prompt_in_bfloat16_is_as_near_to_float32_as_pytorchs(changes: dict[str, object]) -> None:
    model, exact = build(torch.bfloat16, **changes), build(torch.bfloat16, **changes)
    for parameter in exact.parameters():
        parameter.data = parameter.data.float()
    exact.set_compute_dtype(torch.float32)
    prompts = texts(3, 50, 120, 180, 250)
    expected, plain = (torch.stack([read(m, prompt)[0] for prompt in prompts]) for m in (exact, model))
    pack_linears(model)
    ours = torch.stack([read(model, prompt)[0] for prompt in prompts])
    assert (ours - expected).norm() < 1.1 * (plain - expected).norm()


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("shape", [(96, 64), (100, 60), (16, 3), (257, 768), (64, 96)])
@pytest.mark.parametrize("rows", [1, 2, 7, 12, 40])
def test_a_layer_equals_the_plain_product(shape: tuple[int, int], rows: int) -> None:
    """float32 within 1e-5; bfloat16 within half a step of its last digit; int8 and int4 as the exact product of the rounded values."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(shape, generator=generator), torch.randn(rows, shape[1], generator=generator)
    torch.testing.assert_close(KernelLinear(weight)(inputs), nn.functional.linear(inputs, weight), atol=1e-4, rtol=1e-5)
    weight, inputs = weight.bfloat16(), inputs.bfloat16()
    exact = (inputs.double() @ weight.double().T).float()
    torch.testing.assert_close(KernelLinear(weight)(inputs).float(), exact, atol=1e-4, rtol=2**-8)
    rounded = KernelLinear(*quantize_rows(weight.float()))(inputs)
    rows_of_inputs, row_scales = quantize_rows(inputs.float())
    weight_rows, weight_scales = quantize_rows(weight.float())
    products = (rows_of_inputs.double() @ weight_rows.double().T * row_scales[:, None] * weight_scales).float()
    torch.testing.assert_close(rounded.float(), products, atol=1e-4, rtol=2**-8)
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()
    steps, scales = quantize_groups(weight.float())
    weight = (steps * scales.float().repeat_interleave(GROUP, dim=1)[:, : shape[1]]).double()
    grouped = (rows_of_inputs.double() @ weight.T * row_scales[:, None]).float()
    layer = KernelLinear(steps, scales)
    torch.testing.assert_close(layer(inputs.float()), grouped, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(layer(inputs).float(), grouped, atol=1e-4, rtol=2**-8)


def test_other_widths_and_types_are_left_to_pytorch() -> None:
    assert kernel_obstacle(build(torch.float32, n_embd=72, n_head=3, n_kv_head=3)) == (
        "n_embd 72 and head_dim 24 must be a multiple of 16"
    )
    assert "not in torch.float16" in kernel_obstacle(build(torch.float16))


def test_the_kernel_states_what_it_covers_and_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherConfig(GPTConfig):
        """An architecture that the kernel has never met."""

    assert uncovered(OtherConfig()) == "it does not know OtherConfig"
    assert uncovered(GPTConfig()) == ""
    model = build(torch.float32)
    pack_linears(model, weight_dtype=torch.bfloat16)
    assert describe_kernel(model).endswith(" (C++), weights in bfloat16")
    monkeypatch.setattr("nanochat_lit.model.decode_kernel.library_problem", lambda _: "no C++ compiler found")
    model = build(torch.float32)
    pack_linears(model)
    assert model.decode_kernel is None
    assert describe_kernel(model) == "PyTorch; not the C++ kernel: no C++ compiler found"
    for quantize in ("int8", "int4"):
        with pytest.raises(
            UserError, match=rf"{quantize} needs the C\+\+ kernel, which is not used: no C\+\+ compiler"
        ):
            pack_linears(model, quantize)


def test_a_kernel_that_is_slower_than_pytorch_steps_aside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is measured once and remembered; the next process reads the result."""
    calls: list[int] = []

    def slow(rows: int) -> float:
        calls.append(rows)
        return 5.0 if rows > 1 else 0.5

    monkeypatch.setattr("nanochat_lit.model.decode_kernel._times_of_pytorch", slow)
    monkeypatch.setattr(kernel_library(), "_name", str(tmp_path / "kernel.so"))
    for _ in range(2):
        assert decode_kernel._slowdown.__wrapped__() == "than PyTorch it is 5.0 times slower in prompts here"
    assert calls == [1, 128]


def test_float32_models_may_keep_their_matrices_in_bfloat16() -> None:
    """Sums stay in float32: only the weights are rounded, to 8 bits."""
    (prompt,) = texts(40)
    exact, rounded, model = (build(torch.float32) for _ in range(3))
    for module in rounded.modules():
        if isinstance(module, nn.Linear) and module.weight.shape[0] > 1 and module.weight.shape[1] > 12:
            module.weight.data = module.weight.data.bfloat16().float()
    pack_linears(model, weight_dtype=torch.bfloat16)
    ours = read(model, prompt)[0]
    torch.testing.assert_close(ours, read(rounded, prompt)[0], atol=5e-5, rtol=1e-4)
    assert not torch.allclose(ours, read(exact, prompt)[0], atol=5e-5, rtol=1e-4)


def test_what_lies_beside_the_tables_and_the_cache_is_not_touched() -> None:
    model = build(torch.float32)
    pack_linears(model)
    kernel, rows, cache = model.decode_kernel, model.config.padded_vocab_size, KVCache(model.config, 1, 6)
    assert kernel is not None
    for wrong in (-1, rows):
        with pytest.raises(IndexError, match=f"run from .*{wrong}.* 0 to {rows - 1}"):
            kernel(torch.tensor([[5, wrong]]), cache)
    kernel(torch.ones((1, 4), dtype=torch.int64), cache)
    cache.advance(4)
    with pytest.raises(IndexError, match="4 tokens and 3 more do not fit a cache of 6"):
        kernel(torch.ones((1, 3), dtype=torch.int64), cache)


def test_others_may_use_the_same_registers() -> None:
    """Products of torch between calls of the kernel are as before: libraries think that tiles keep the shapes they gave them."""
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(70, 96, generator=generator).bfloat16() for _ in range(2))
    layer = KernelLinear(torch.randn(64, 64, generator=generator).bfloat16())
    inputs = [torch.randn(rows, 64, generator=generator).bfloat16() for rows in (1, 16, 5)]
    product, outputs = left @ right.T, [layer(x) for x in inputs]
    for x, output in zip(inputs, outputs, strict=True):
        assert torch.equal(left @ right.T, product)
        assert torch.equal(layer(x), output)
