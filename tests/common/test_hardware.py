import math
import platform
import types
from pathlib import Path

import pytest
import torch

from nanochat_lit.common import hardware
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import (
    default_device,
    find_card,
    find_device,
    gpu_peak_flops_per_s,
    peak_flops_per_s,
    resolve_compute_dtype,
    why_no_gpu,
)


@pytest.mark.parametrize("word", ["bfloat16", "float16", "float32"])
def test_named_dtypes(word, monkeypatch):
    assert resolve_compute_dtype(word, "cpu") == getattr(torch, word)
    monkeypatch.setenv("NANOCHAT_DTYPE", word)
    assert resolve_compute_dtype("float32", "cpu") == getattr(torch, word)


def test_unknown_dtypes_name_value_and_choices(monkeypatch):
    with pytest.raises(UserError, match=r"compute_dtype 'bf16' is unknown; choose one of auto, bfloat16"):
        resolve_compute_dtype("bf16")
    monkeypatch.setenv("NANOCHAT_DTYPE", "half")
    with pytest.raises(UserError, match=r"NANOCHAT_DTYPE 'half'"):
        resolve_compute_dtype("float32")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_vbmi2", torch.float32),
        ("flags\t\t: fpu avx512f avx512_bf16 clzero", torch.bfloat16),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", torch.bfloat16),
        ("Features\t: fp asimd bf16 i8mm", torch.bfloat16),
        ("Features\t: fp asimd sve svebf16", torch.bfloat16),
        ("Features\t: fp asimd", torch.float32),
    ],
)
def test_auto_on_cpu(monkeypatch, tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{flags}\nbugs\t: bf16\n", "utf-8")
    monkeypatch.setattr(hardware, "CPUINFO", cpuinfo)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert resolve_compute_dtype("auto", "cpu") == expected
    cpuinfo.unlink()
    assert resolve_compute_dtype("auto", "cpu") == torch.float32
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert resolve_compute_dtype("auto", "cpu") == torch.float32


@pytest.fixture
def card(monkeypatch):
    """card(NAME, MAJOR, MINOR, ARCHITECTURE): this machine has such a GPU, of AMD if an architecture is given."""

    def plug_in(name, major, minor, architecture=""):
        properties = types.SimpleNamespace(major=major, minor=minor, gcnArchName=architecture)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])
        monkeypatch.setattr(torch.version, "hip", "6.4" if architecture else None)
        accelerator = types.SimpleNamespace(current_accelerator=lambda check_available: torch.device("cuda"))
        monkeypatch.setattr(torch, "accelerator", accelerator)

    return plug_in


@pytest.mark.parametrize(
    ("major", "minor", "architecture", "expected"),
    [
        (6, 1, "", torch.float32),
        (7, 0, "", torch.float16),
        (7, 5, "", torch.float16),
        (8, 0, "", torch.bfloat16),
        (9, 0, "", torch.bfloat16),
        (12, 0, "", torch.bfloat16),
        (9, 4, "gfx942:sramecc+:xnack-", torch.bfloat16),
        (11, 0, "gfx1100", torch.bfloat16),
        (9, 0, "gfx906", torch.float16),
    ],
)
def test_auto_on_gpus(card, major, minor, architecture, expected):
    card("a GPU", major, minor, architecture)
    assert default_device() == torch.device("cuda")
    assert resolve_compute_dtype("auto") == resolve_compute_dtype("auto", "cuda") == expected


def test_bfloat16_is_refused_where_it_is_emulated(card, monkeypatch):
    card("Tesla T4", 7, 5)
    with pytest.raises(
        UserError, match=r"bfloat16, which Tesla T4 \(compute capability 7.5\) does not .* \(here float16\)"
    ):
        resolve_compute_dtype("bfloat16", "cuda")
    monkeypatch.setenv("NANOCHAT_DTYPE", "bfloat16")
    with pytest.raises(UserError, match="environment variable NANOCHAT_DTYPE is bfloat16, which Tesla T4"):
        resolve_compute_dtype("float32", "cuda")
    card("NVIDIA A10G", 8, 6)
    assert resolve_compute_dtype("float32", "cuda") == torch.bfloat16


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_on_apple_is_a_matter_of_the_system(monkeypatch, has_it):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: has_it and version == (14, 0))
    assert resolve_compute_dtype("auto", "mps") == torch.float32
    if has_it:
        assert resolve_compute_dtype("bfloat16", "mps") == torch.bfloat16
    else:
        with pytest.raises(UserError, match="macOS before 14"):
            resolve_compute_dtype("bfloat16", "mps")


def test_auto_on_intel_gpus():
    assert resolve_compute_dtype("auto", "xpu") == torch.bfloat16


DRIVER = "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by ..."


def test_an_old_driver_is_told_apart_from_no_gpu(monkeypatch):
    def fail(error):
        def init():
            raise error

        monkeypatch.setattr(torch.cuda, "init", init)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "accelerator", types.SimpleNamespace(current_accelerator=lambda check_available: None))
    fail(RuntimeError(DRIVER))
    assert "supports CUDA 12.8, PyTorch is built for CUDA 13.0; update the driver, or" in why_no_gpu()
    with pytest.raises(UserError, match="device cuda cannot be used: the NVIDIA driver is too old"):
        find_device("cuda")
    with pytest.warns(UserWarning, match="using the CPU: the NVIDIA driver is too old"):
        assert default_device() == torch.device("cpu")
    fail(RuntimeError("Found no NVIDIA driver on your system."))
    assert why_no_gpu() == "PyTorch finds no GPU on this machine"
    assert find_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    fail(AssertionError("Torch not compiled with CUDA enabled"))
    assert "built without CUDA" in why_no_gpu()


def test_devices_that_are_not_there(card):
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device 'gpu' is unknown; use cpu, cuda, mps or xpu"):
        find_device("gpu")
    with pytest.raises(UserError, match="device mps cannot be used: PyTorch finds no mps device"):
        find_device("mps")
    card("NVIDIA H100 80GB HBM3", 9, 0)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(UserError, match="device cuda:3 does not exist; this machine has cuda:0 to cuda:0"):
        find_device("cuda:3")


def test_a_card_older_than_the_kernels_of_this_torch(card):
    card("Tesla V100-SXM2-16GB", 7, 0)
    with pytest.raises(UserError, match=r"has no kernels for Tesla V100-SXM2-16GB \(compute capability 7.0\)"):
        find_device("cuda")


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="reads /proc/cpuinfo of x86")
def test_auto_agrees_with_the_kernel():
    """Independent source: the flags that the Linux kernel lists."""
    flags = Path("/proc/cpuinfo").read_text("utf-8").split("flags", 1)[1].split("\n", 1)[0].split()
    native = bool({"avx512_bf16", "amx_bf16"} & set(flags))
    assert resolve_compute_dtype("auto", "cpu") == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("AMD Instinct MI300X", 1307e12),
    ],
)
def test_gpu_table(name, expected):
    assert gpu_peak_flops_per_s(name, torch.bfloat16) == expected


def test_the_table_knows_memory_and_capability():
    known = {name: find_card(name) for name in ("Tesla T4", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "H100")}
    assert {name: (card.gib, card.capability) for name, card in known.items()} == {
        "Tesla T4": (16, (7, 5)),
        "NVIDIA A100-SXM4-40GB": (40, (8, 0)),
        "NVIDIA A100-SXM4-80GB": (80, (8, 0)),
        "H100": (80, (9, 0)),
    }
    assert find_card("AMD Instinct MI300X").capability is None
    assert find_card("a card of next year") is None


def test_what_the_table_does_not_know_is_nan():
    assert math.isnan(gpu_peak_flops_per_s("NVIDIA RTX A4000", torch.bfloat16))
    assert math.isnan(gpu_peak_flops_per_s("NVIDIA T400", torch.float16))
    assert math.isnan(gpu_peak_flops_per_s("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16))
    assert math.isnan(gpu_peak_flops_per_s("Tesla T4", torch.bfloat16))
    assert gpu_peak_flops_per_s("Tesla T4", torch.float16) == 65e12
    assert math.isnan(peak_flops_per_s("mps", torch.float32))


def test_cpu_peak_is_measured_once_and_leaves_the_random_state(monkeypatch):
    hardware._measure_cpu_flops_per_s.cache_clear()
    before = torch.get_rng_state()
    first = peak_flops_per_s("cpu", torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    assert 1e8 < first < 1e15
    monkeypatch.setattr(torch, "mm", None)  # a second measurement would call it
    assert peak_flops_per_s("cpu", torch.float32) == first
