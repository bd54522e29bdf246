"""Versions and kernels of the machine; attention, loss and optimizer against float64 and the CPU."""

import copy
import shutil
import subprocess
from collections.abc import Callable

import torch
from check_report import Report, compilations
from torch import Tensor

from nanochat_lit.common.hardware import resolve_compute_dtype
from nanochat_lit.common.torch_internals import flash_window_attention
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.attention import (
    activate_flash_attention,
    blocked_attention,
    choose_attention,
    cuda_facts,
    flex_attention,
    fused_attention,
    fused_kernel,
    window_block_mask,
)
from nanochat_lit.model.loss import softcapped_cross_entropy
from nanochat_lit.optim import MuonAdamW, param_groups
from nanochat_lit.training.run_records import describe_machine

KERNEL_WORDS = {"cuDNN": "cudnn", "flash": "flash", "memory-efficient": "fmha", "FA3": "flash", "FA4": "flash"}
"""What the name of a kernel holds, by the name that the run's table gives."""

EVALUATED_LENGTHS = ((700, 1111, 2040), (690, 1100, 2000, 701, 1040))
"""Lengths met first, and lengths after which nothing may be compiled anew."""


def environment(report: Report) -> None:
    """Driver, versions, and which attention kernel runs in training, in prefill and in decoding."""
    for name, value in describe_machine().items():
        report.value(name, value)
    report.value("compute capability", ".".join(map(str, torch.cuda.get_device_capability())))
    report.value("driver", driver())
    report.value("cuDNN", torch.backends.cudnn.version())
    report.value("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    report.value("C compiler", shutil.which("cc") or shutil.which("gcc") or "none")
    report.value("GPU memory GiB", torch.cuda.get_device_properties(0).total_memory / 2**30)
    dtype = resolve_compute_dtype("auto", "cuda")
    report.value("auto dtype", str(dtype))
    model = small_model(report).to("cuda").set_compute_dtype(dtype)
    activated = activate_flash_attention(torch.cuda.get_device_capability(), dtype)
    names = activated or fused_kernel(model.config, model.device, dtype), model.attention_backends()[1]
    report.value("attention in the run's table", f"{names[0]} (full), {names[1]} (windows)")
    tokens = torch.randint(model.config.vocab_size, (2, model.config.sequence_len), device="cuda")
    if report.is_dry_run:
        model(tokens, tokens).backward()
        return
    training = kernels(lambda: model(tokens, tokens).backward())
    report.value("attention kernels in training", ", ".join(training))
    word = KERNEL_WORDS.get(names[0], "")
    report.must(any(word in kernel.lower() for kernel in training), f"{names[0]} does not run: {training}")
    with torch.no_grad():
        inference = kernels(lambda: model(tokens[:1]))
    report.value("attention kernels without gradients", ", ".join(inference))
    report.must(not any("cudnn" in kernel.lower() for kernel in inference), "cuDNN plans every new shape in inference")


def driver() -> str:
    """The driver's version as nvidia-smi gives it."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def kernels(call: Callable[[], object]) -> list[str]:
    """Names of the attention kernels that a call launches."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    words = ("cudnn", "flash", "fmha", "attention", "flex")
    names = {event.key for event in profiler.key_averages()}
    return sorted(name[:80] for name in names if any(word in name.lower() for word in words))


def small_model(report: Report, depth: int = 4) -> GPT:
    """A model of two head widths' width, every matrix random."""
    length = 256 if report.is_dry_run else 2048
    model = GPT(GPTConfig.from_depth(depth, vocab_size=2048, sequence_len=length, window_pattern="SL"))
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def attention(report: Report) -> None:
    """Every form of attention against float64, and evaluation in many lengths without compiling anew."""
    device = torch.device("cuda")
    dtype = resolve_compute_dtype("auto", device)
    length, window = (256, 100) if report.is_dry_run else (2048, 512)
    mask = window_block_mask(length, window, device)
    has_flex = choose_attention("cuda", is_windowed=True, **cuda_facts(device)) == "flex"
    forms: dict[str, tuple[int, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
        "fused": (length, lambda q, k, v: fused_attention(q, k, v, is_causal=True)),
        "blocked": (window, lambda q, k, v: blocked_attention(q, k, v, window)),
    }
    if has_flex:
        forms["flex"] = (window, lambda q, k, v: flex_attention(q, k, v, mask))
    if flash := activate_flash_attention(torch.cuda.get_device_capability(), dtype):
        forms |= {
            flash: (length, lambda q, k, v: fused_attention(q, k, v, is_causal=True)),
            f"{flash}, window": (window, lambda q, k, v: flash_window_attention(q, k, v, window)),
        }
    for kv_heads in (8, 2):
        inputs = [
            torch.randn(2, length, heads, 128, device=device, dtype=dtype, requires_grad=True)
            for heads in (8, kv_heads, kv_heads)
        ]
        weight = torch.randn(2, length, 8, 128, device=device, dtype=dtype)
        for name, (visible, form) in forms.items():
            out = form(*inputs)
            gradients = torch.autograd.grad((out * weight).sum(), inputs)
            expected = naive(*inputs, visible)
            wanted = torch.autograd.grad((expected * weight.double()).sum(), inputs)
            report.near(f"{name}, {kv_heads} kv heads, forward", out, expected, 1e-2)
            for tensor, found, right in zip("qkv", gradients, wanted, strict=True):
                report.near(f"{name}, {kv_heads} kv heads, gradient of {tensor}", found, right, 2e-2)
    evaluated_lengths(report)


def naive(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Dense masked attention in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (queries, keys, values))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    places = torch.arange(q.shape[2], device=q.device)
    distance = places[:, None] - places[None, :]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill((distance < 0) | (distance > window), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@torch.no_grad()
def evaluated_lengths(report: Report) -> None:
    """Losses of sequences of many lengths: after the first few lengths nothing is compiled."""
    model = small_model(report).to("cuda").set_compute_dtype(resolve_compute_dtype("auto", "cuda")).eval()
    longest = model.config.sequence_len
    counts = []
    for lengths in EVALUATED_LENGTHS:
        for length in (min(length, longest - length % 7) for length in lengths):
            tokens = torch.randint(model.config.vocab_size, (4, length), device="cuda")
            losses = model(tokens, tokens, reduction="none")
        counts.append(compilations())
    report.value("graphs compiled for the first lengths", counts[0])
    report.value("graphs compiled for further lengths", counts[1] - counts[0])
    report.must(counts[1] == counts[0], f"{counts[1] - counts[0]} graphs were compiled for further lengths")
    report.number_must(bool(losses.isfinite().all()), "the losses of an evaluation are not finite")


def loss_and_optimizer(report: Report) -> None:
    """The chunked loss and its gradients, and the optimizer, on the GPU against the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rows, width, vocabulary = (256, 64, 512) if report.is_dry_run else (4096, 768, 32768)
    hidden, weight = torch.randn(1, rows, width), torch.randn(vocabulary, width) / width**0.5
    targets = torch.randint(vocabulary, (1, rows))
    targets[0, ::7] = -1
    expected, expected_gradients = loss_and_gradients(hidden.double(), weight.double(), targets)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)):
        if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
            continue
        name = str(dtype).removeprefix("torch.")
        loss, gradients = loss_and_gradients(hidden.cuda().to(dtype), weight.cuda(), targets.cuda())
        report.near(f"loss, {name}", loss, expected, tolerance)
        for what, found, right in zip(("states", "weights"), gradients, expected_gradients, strict=True):
            report.near(f"gradient of {what}, {name}", found, right, tolerance)
    optimizer_steps(report)


def loss_and_gradients(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Our loss with its gradients; in float64 torch's own formula, which ours is compared to."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    if hidden.dtype == torch.float64:
        logits = 15.0 * torch.tanh(hidden @ weight.T / 15.0)
        loss = torch.nn.functional.cross_entropy(logits[0], targets[0], ignore_index=-1)
    else:
        loss = softcapped_cross_entropy(hidden, weight, targets)
    return loss, torch.autograd.grad(loss, (hidden, weight))


def optimizer_steps(report: Report) -> None:
    """Three steps on both devices; then the state goes through a checkpoint and one more step is taken."""
    models = {"cpu": small_model(report, depth=2), "cuda": small_model(report, depth=2).to("cuda")}
    optimizers = {name: MuonAdamW(param_groups(model)) for name, model in models.items()}
    for number in range(4):
        if number == 3:
            for name, optimizer in optimizers.items():
                state = copy.deepcopy(optimizer.state_dict())
                optimizers[name] = MuonAdamW(param_groups(models[name]))
                optimizers[name].load_state_dict(state)
        generator = torch.Generator().manual_seed(number)
        for mine, theirs in zip(models["cpu"].parameters(), models["cuda"].parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            theirs.grad = mine.grad.to("cuda")
        for optimizer in optimizers.values():
            optimizer.step()
    for (name, mine), theirs in zip(models["cpu"].named_parameters(), models["cuda"].parameters(), strict=True):
        error = float((theirs.detach().cpu() - mine.detach()).norm() / mine.detach().norm().clamp(min=1e-12))
        report.number_must(error < 1e-3, f"four optimizer steps: {name} differs by {error:.3g}")
