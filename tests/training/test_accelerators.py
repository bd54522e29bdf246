"""Devices that this machine does not have, by doubles: which one a run gets, and Intel's from the command line."""

import types

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import free_memory_bytes, peak_memory_bytes, total_memory_bytes
from nanochat_lit.training import PretrainModule, TextDataModule, launch
from nanochat_lit.training import module as training_module
from nanochat_lit.training.callbacks.checkpoint import random_state, set_random_state
from nanochat_lit.training.launch import XPUAccelerator, choose_accelerator


def test_which_accelerator(monkeypatch):
    monkeypatch.setattr(torch, "accelerator", types.SimpleNamespace(is_available=lambda: True))
    for found, expected in (("cuda", ["gpu", "auto", "cpu", "mps"]), ("xpu", ["xpu", "xpu", "cpu", "mps"])):
        monkeypatch.setattr(launch, "default_device", lambda found=found: torch.device(found))
        assert [choose_accelerator(word, 1) for word in ("gpu", "auto", "cpu", "mps")] == expected


def test_a_missing_gpu_and_an_old_driver_are_told_apart(monkeypatch):
    monkeypatch.setattr(torch, "accelerator", types.SimpleNamespace(is_available=lambda: False))
    for reason in ("PyTorch finds no GPU on this machine", "the NVIDIA driver is too old for this PyTorch"):
        monkeypatch.setattr(launch, "why_no_gpu", lambda reason=reason: reason)
        with pytest.raises(UserError, match=rf"requests 8 GPU\(s\), but {reason}; .* --trainer.accelerator cpu"):
            choose_accelerator("gpu", 8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(2, [0, 1]), ("2", [0, 1]), ([1, 3], [1, 3]), ("1,3", [1, 3]), ("auto", [0, 1, 2, 3]), (-1, [0, 1, 2, 3])],
)
def test_devices_of_intel(given, expected, monkeypatch):
    monkeypatch.setattr(XPUAccelerator, "auto_device_count", staticmethod(lambda: 4))
    assert XPUAccelerator.parse_devices(given) == expected
    assert XPUAccelerator.get_parallel_devices(expected)[0] == torch.device("xpu", expected[0])


def test_a_run_on_an_intel_gpu(write_recipe, pretrained, monkeypatch):
    """The Trainer takes our accelerator by its name; the double's device is the CPU."""
    used = []
    for name, double in {
        "is_available": lambda: True,
        "auto_device_count": lambda: 1,
        "get_parallel_devices": lambda devices: [torch.device("cpu") for _ in devices],
        "setup_device": lambda self, device: used.append(device.type),
        "teardown": lambda self: used.append("teardown"),
    }.items():
        is_method = name in ("setup_device", "teardown")
        monkeypatch.setattr(XPUAccelerator, name, double if is_method else staticmethod(double))
    recipe = write_recipe({"num_steps": 1}, {"tokenizer": str(pretrained / "tokenizer")})
    assert cli.main(["fit", "--config", str(recipe), "--trainer.accelerator", "xpu"]) == 0
    assert used == ["cpu", "teardown"]


@pytest.fixture
def device_module(monkeypatch):
    """Torch's module of a device with 10 GiB, 4 of them free, and a random generator."""
    gib, states = 2**30, [torch.tensor([1])]
    module = types.SimpleNamespace(
        mem_get_info=lambda device: (4 * gib, 10 * gib),
        memory_reserved=lambda device: 3 * gib,
        memory_allocated=lambda device: 2 * gib,
        max_memory_allocated=lambda device: 6 * gib,
        get_device_properties=lambda device: types.SimpleNamespace(total_memory=10 * gib),
        get_rng_state=lambda: states[-1],
        set_rng_state=states.append,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module if kind == "xpu" else None)
    return module


def test_memory_of_any_accelerator(device_module):
    xpu = torch.device("xpu", 0)
    values = [measure(xpu) / 2**30 for measure in (free_memory_bytes, total_memory_bytes, peak_memory_bytes)]
    assert values == [5.0, 10.0, 6.0]


def test_random_numbers_of_any_accelerator_resume(device_module):
    state = random_state(torch.device("xpu"))
    assert state["device"].tolist() == [1]
    device_module.set_rng_state(torch.tensor([2]))
    set_random_state(state, torch.device("xpu"))
    assert device_module.get_rng_state().tolist() == [1]
    assert random_state(torch.device("cpu"))["device"] is None
    set_random_state(random_state(torch.device("cpu")), torch.device("xpu"))


@pytest.mark.parametrize(
    ("depth", "gib", "capability", "dtype", "sequences", "fp8", "words"),
    [
        (24, 79.1, (9, 0), torch.bfloat16, 16, False, None),
        (24, 79.1, (9, 0), torch.bfloat16, "auto", False, None),
        (
            24,
            47.5,
            (8, 9),
            torch.bfloat16,
            16,
            False,
            "micro_batch_size 16 of this 24-layer model needs about .*; use .*size 8",
        ),
        (14, 15.8, (8, 9), torch.bfloat16, 8, False, None),
        (24, 47.5, (8, 9), torch.bfloat16, 16, "auto", None),  # in float8 it is 12 GiB less
        (14, 15.8, (7, 5), torch.float16, 8, "auto", "use --data.micro_batch_size 4"),
        (24, 15.8, (9, 0), torch.bfloat16, "auto", False, "recipes one_gpu_8gb to one_gpu_24gb"),
        (12, 3.6, (8, 9), torch.bfloat16, 4, False, "--data.micro_batch_size 1 --model.activation_checkpointing true"),
    ],
)
def test_a_card_too_small_for_a_recipe(depth, gib, capability, dtype, sequences, fp8, words, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "total_memory_bytes", lambda device: gib * 2**30)
    monkeypatch.setattr(launch, "cuda_facts", lambda device: {"capability": capability})
    monkeypatch.setattr(training_module, "nvidia_capability", lambda device: capability)
    trainer = types.SimpleNamespace(
        strategy=types.SimpleNamespace(root_device=torch.device("cuda")),
        precision_plugin=types.SimpleNamespace(compute_dtype=dtype),
        num_devices=1,
        num_nodes=1,
    )
    data = TextDataModule(path=str(tmp_path), micro_batch_size=sequences)
    module = PretrainModule(depth=depth, fp8=fp8)
    if words is None:
        launch.check_memory(trainer, module, data)
        return
    with pytest.raises(UserError, match=words) as error:
        launch.check_memory(trainer, module, data)
    assert f"the GPU has {gib:.2f} GiB" in str(error.value)
