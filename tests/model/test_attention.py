"""Every form of attention against the naive masked one, forward and backward."""

import contextlib
import time
import types

import pytest
import torch

from nanochat_lit.model import GPTConfig, attention, gpt
from nanochat_lit.model.attention import blocked_attention, causal_attention, choose_attention


def naive(q, k, v, window):
    """Dense scores, dense mask, float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    offset = k.shape[2] - q.shape[2]
    distance = torch.arange(q.shape[2])[:, None] + offset - torch.arange(k.shape[2])[None, :]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill((distance < 0) | (distance > window), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def tensors(num_queries, num_keys, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, num_queries, 4, 16, generator=generator, requires_grad=True)
    k = torch.randn(2, num_keys, kv_heads, 16, generator=generator, requires_grad=True)
    v = torch.randn(2, num_keys, kv_heads, 16, generator=generator, requires_grad=True)
    return q, k, v


@pytest.mark.parametrize("form", [causal_attention, blocked_attention])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "window"),
    [(300, 300, 128), (300, 300, 300), (129, 129, 1), (257, 257, 0), (5, 140, 100), (200, 333, 64), (7, 7, 1000)],
)
def test_equals_naive(form, kv_heads, num_queries, num_keys, window):
    inputs = tensors(num_queries, num_keys, kv_heads)
    out, expected = form(*inputs, window), naive(*inputs, window)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-4)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    for mine, theirs in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("num_keys", "window"), [(1, 10), (50, 10), (50, 50)])
def test_one_query_equals_naive(num_keys, window):
    inputs = tensors(1, num_keys)
    torch.testing.assert_close(causal_attention(*inputs, window), naive(*inputs, window).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called")  # compiling it takes longer than the rest of the file
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_flex_window_mask_is_the_same_mask(kv_heads, monkeypatch):
    """The CUDA form, run here by FlexAttention's own reference (forward only: it has no backward pass on CPU)."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention.flex_attention)
    inputs = [x.detach() for x in tensors(256, 256, kv_heads)]
    mask = attention.window_block_mask(256, 100, torch.device("cpu"))
    torch.testing.assert_close(causal_attention(*inputs, 100, mask), naive(*inputs, 100).float(), atol=1e-5, rtol=1e-4)
    attention.window_block_mask.cache_clear()


BOTH = ("FA3", "FA4")
HARDWARE = [
    # device, capability, dtype, windowed, compiling, can compile, installed -> form
    ("cpu", None, torch.bfloat16, False, False, True, (), "sdpa"),
    ("cpu", None, torch.bfloat16, False, True, True, (), "blocked"),
    ("cpu", None, torch.bfloat16, True, False, True, (), "blocked"),
    ("cpu", None, torch.float32, True, True, True, BOTH, "blocked"),
    ("mps", None, torch.float32, False, False, False, (), "sdpa"),
    ("mps", None, torch.float32, True, False, False, (), "blocked"),
    ("cuda", (7, 0), torch.float32, False, True, True, BOTH, "sdpa"),
    ("cuda", (7, 5), torch.float16, True, True, True, BOTH, "blocked"),
    ("cuda", (8, 0), torch.bfloat16, True, True, True, (), "flex"),
    ("cuda", (8, 0), torch.bfloat16, True, False, True, (), "flex"),
    ("cuda", (8, 9), torch.bfloat16, True, False, False, (), "blocked"),
    ("cuda", (8, 9), torch.bfloat16, False, True, True, BOTH, "sdpa"),
    ("cuda", (9, 0), torch.bfloat16, False, True, True, (), "sdpa"),
    ("cuda", (9, 0), torch.bfloat16, False, True, True, ("FA3",), "FA3"),
    ("cuda", (9, 0), torch.bfloat16, False, True, True, ("FA4",), "FA4"),
    ("cuda", (9, 0), torch.bfloat16, False, True, True, BOTH, "FA3"),
    ("cuda", (9, 0), torch.float32, False, True, True, BOTH, "sdpa"),
    ("cuda", (9, 0), torch.bfloat16, True, True, True, (), "flex"),
    ("cuda", (9, 0), torch.bfloat16, True, True, True, ("FA3",), "FA3"),
    ("cuda", (9, 0), torch.bfloat16, True, True, False, ("FA4",), "FA4"),
    ("cuda", (9, 0), torch.float32, True, True, True, BOTH, "flex"),
    ("cuda", (12, 0), torch.bfloat16, True, True, True, BOTH, "flex"),
    ("cuda", (10, 0), torch.bfloat16, True, True, True, BOTH, "FA4"),
    ("cuda", (10, 0), torch.bfloat16, False, True, True, ("FA3",), "sdpa"),
    ("cuda", (10, 0), torch.bfloat16, False, True, True, BOTH, "FA4"),
    ("cuda", (12, 0), torch.bfloat16, False, True, True, BOTH, "sdpa"),
]


@pytest.mark.parametrize("row", HARDWARE, ids=lambda row: "-".join(map(str, row)).replace("torch.", ""))
def test_which_hardware_gets_which_form(row):
    device, capability, dtype, is_windowed, is_compiling, can_compile, installed, form = row
    facts = {
        "capability": capability,
        "dtype": dtype,
        "can_compile": can_compile,
        "installed": installed,
        "num_tokens": 512,
    }
    assert choose_attention(device, is_windowed=is_windowed, is_compiling=is_compiling, **facts) == form


def test_long_full_attention_on_cpu_is_fused():
    assert choose_attention("cpu", is_windowed=False, num_tokens=1024, is_compiling=True) == "blocked"
    assert choose_attention("cpu", is_windowed=False, num_tokens=1025, is_compiling=True) == "sdpa"


@pytest.fixture
def fake_flash(monkeypatch):
    """Torch's registry with an FA3 that records whether it was activated, and find_spec finding its module."""
    import torch.nn.attention as registry

    activated = []
    monkeypatch.setattr(registry, "activate_flash_attention_impl", activated.append, raising=False)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda is_on: activated.append(f"cuDNN {is_on}"))
    monkeypatch.setattr(attention, "find_spec", lambda module: object() if module == "flash_attn_interface" else None)
    return activated


def test_an_installed_flash_attention_is_activated_where_it_runs(fake_flash):
    assert attention.installed_flash_attention() == ("FA3",)
    assert attention.activate_flash_attention((8, 0), torch.bfloat16) is None
    assert attention.activate_flash_attention((9, 0), torch.float32) is None
    assert fake_flash == []
    assert attention.activate_flash_attention((9, 0), torch.bfloat16) == "FA3"
    assert fake_flash == ["FA3", "cuDNN False"]


def test_cudnn_plans_no_kernels_without_gradients(random_model, monkeypatch):
    """Prompts, decoding and evaluation come in many lengths, for each of which cuDNN would plan."""
    gpu = torch.device("cuda")
    with torch.no_grad(), attention.steady_kernels(gpu):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    with attention.steady_kernels(gpu):
        assert torch.backends.cuda.cudnn_sdp_enabled()
    asked = []
    monkeypatch.setattr(gpt, "steady_kernels", lambda device: asked.append(device.type) or contextlib.nullcontext())
    random_model()(torch.zeros(1, 4, dtype=torch.int64))
    assert asked == ["cpu"]


@pytest.mark.parametrize(
    ("chosen", "name"), [(0, "math"), (1, "flash"), (2, "memory-efficient"), (3, "cuDNN"), (9, "sdpa")]
)
def test_the_kernel_of_the_run_table_is_the_one_torch_chooses(chosen, name, monkeypatch):
    config = GPTConfig(n_layer=1, n_head=4, n_kv_head=2, n_embd=64, sequence_len=32, vocab_size=64)
    asked = []
    monkeypatch.setattr(
        torch, "_fused_sdp_choice", lambda *tensors, **options: asked.append((tensors, options)) or chosen
    )
    assert attention.fused_kernel(config, torch.device("cpu"), torch.bfloat16) == name
    (queries, keys, *_), options = asked[0]
    assert (queries.shape, keys.shape, queries.requires_grad) == ((1, 4, 32, 16), (1, 2, 32, 16), True)
    assert options == {"is_causal": True, "enable_gqa": True}
    monkeypatch.undo()
    assert attention.fused_kernel(config, torch.device("cpu"), torch.float32) in {"math", "flash"}  # torch's own answer


def test_windows_are_not_left_to_a_compiler_that_is_missing(monkeypatch):
    properties = types.SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    for missing, form in (("", "flex"), ("Triton needs a C compiler (gcc or clang)", "blocked")):
        monkeypatch.setattr(attention, "missing_compiler", lambda _, missing=missing: missing)
        facts = attention.cuda_facts(torch.device("cuda"))
        assert choose_attention("cuda", is_windowed=True, **facts) == form


@pytest.fixture
def flash_on_cpu(monkeypatch):
    """A CPU that believes it is a Hopper GPU with FlashAttention 3 active; its operator notes the windows it is asked for."""
    windows = []

    def forward(q, k, v, _cum_q, _cum_k, max_q, max_k, dropout, is_causal, debug, **options):
        assert (max_q, max_k, dropout, is_causal, debug) == (q.shape[1], k.shape[1], 0.0, True, False)
        assert options["window_size_right"] == 0
        windows.append(options["window_size_left"])
        return blocked_attention(q, k, v, options["window_size_left"]), *(q.new_empty(0) for _ in range(4))

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    facts = {"capability": (9, 0), "can_compile": True, "installed": ("FA3",)}
    monkeypatch.setattr(attention, "cuda_facts", lambda _: facts)
    choose = attention.choose_attention
    monkeypatch.setattr(attention, "choose_attention", lambda _, **options: choose("cuda", **options))
    yield windows
    library._destroy()


def test_an_active_flash_attention_computes_windows(flash_on_cpu):
    inputs = [x.detach().bfloat16() for x in tensors(256, 256, 2)]
    out = causal_attention(*inputs, 100)
    assert flash_on_cpu == [100]
    torch.testing.assert_close(out.float(), naive(*(x.float() for x in inputs), 100).float(), atol=0.02, rtol=0.02)


def test_the_active_flash_attention_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA4", raising=False)
    assert attention.active_flash_attention() == "FA4"
    monkeypatch.delattr(torch.nn.attention, "current_flash_attention_impl")
    assert attention.active_flash_attention() is None


def test_a_flash_attention_that_does_not_load_is_told(monkeypatch):
    """Torch's real registry: the module it wants is not here."""
    monkeypatch.setattr(attention, "find_spec", lambda module: object() if module == "flash_attn_interface" else None)
    has_registry = hasattr(torch.nn.attention, "activate_flash_attention_impl")
    says_so = (
        pytest.warns(UserWarning, match="FA3 is installed but does not load")
        if has_registry
        else contextlib.nullcontext()
    )
    with says_so:
        assert attention.activate_flash_attention((9, 0), torch.bfloat16) is None


def test_a_narrow_window_costs_less_than_full_attention():
    """T = 4096, window 512: forward and backward, processor time, best of three each, at the dispatch that users get."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4096, 2, 64, generator=generator, requires_grad=True) for _ in range(3))

    def seconds(window):
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            causal_attention(q, k, v, window).sum().backward()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(512) < seconds(4096)
