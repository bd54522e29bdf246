import math
import platform
from pathlib import Path

import pytest
import torch

from nanochat_lit.common import hardware
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import (
    default_device,
    gpu_peak_flops_per_s,
    peak_flops_per_s,
    resolve_compute_dtype,
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
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "amx_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "neon": True}, torch.float32),
    ],
)
def test_auto_on_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert resolve_compute_dtype("auto", "cpu") == expected
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert resolve_compute_dtype("auto", "cpu") == torch.float32


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_auto_on_cuda(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_compute_dtype("auto", "cuda") == expected
    assert default_device() == torch.device("cuda")


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
