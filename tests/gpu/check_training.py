"""Training steps of the shapes that matter, ours and nanochat's, timed by the same clock."""

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from check_report import Report
from torch import Tensor

from nanochat_lit.common.hardware import peak_flops_per_s, resolve_compute_dtype
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.accounting import flops_per_token
from nanochat_lit.model.attention import activate_flash_attention, fused_kernel
from nanochat_lit.model.memory import training_memory
from nanochat_lit.optim import MuonAdamW, param_groups
from nanochat_lit.training.execution import convert_to_float8

WARM_UP_STEPS = 3
TIMED_STEPS = 8
GIB = 2**30


def d12(report: Report) -> None:
    """Depth 12, 16 sequences, bf16."""
    ours(report, depth=12, sequences=16)


def d12_fp8(report: Report) -> None:
    """The same with matrix multiplications in float8."""
    ours(report, depth=12, sequences=16, fp8=True)


def d12_peer(report: Report) -> None:
    """The same by nanochat."""
    peer(report, depth=12, sequences=16)


def d24(report: Report) -> None:
    """Depth 24, 32 sequences, which nanochat fits into 80 GB; fewer if they do not fit."""
    ours(report, depth=24, sequences=32)


def d24_fp8(report: Report) -> None:
    """The same with matrix multiplications in float8."""
    ours(report, depth=24, sequences=32, fp8=True)


def d24_peer(report: Report) -> None:
    """The same by nanochat."""
    peer(report, depth=24, sequences=32)


def shape(report: Report, depth: int, sequences: int) -> tuple[GPTConfig, int]:
    """The model and the sequences of a step; tiny ones in a dry run."""
    if report.is_dry_run:
        return GPTConfig.from_depth(depth // 12, vocab_size=2048, sequence_len=256), 2
    return GPTConfig.from_depth(depth, vocab_size=32768, sequence_len=2048), sequences


def ours(report: Report, depth: int, sequences: int, *, fp8: bool = False) -> None:
    """Time our step, halving the number of sequences until they fit."""
    if fp8 and torch.cuda.get_device_capability() < (8, 9):
        report.value("float8", "the card has none")
        return
    config, sequences = shape(report, depth, sequences)
    while True:
        try:
            _ours(report, config, sequences, fp8=fp8)
        except torch.OutOfMemoryError as error:
            report.must(sequences > 1, f"not one sequence fits: {str(error).splitlines()[0]}")
            report.value("sequences that do not fit", sequences)
            if sequences == 1:
                return
        else:
            return
        sequences //= 2
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _ours(report: Report, config: GPTConfig, sequences: int, *, fp8: bool) -> None:
    device = torch.device("cuda")
    dtype = resolve_compute_dtype("auto", device)
    model = GPT(config).to(device)
    model.init_weights()
    model.set_compute_dtype(dtype).train()
    flash = activate_flash_attention(torch.cuda.get_device_capability(), dtype)
    full = flash or fused_kernel(config, device, dtype)
    report.value("attention", f"{full} (full), {model.attention_backends()[1]} (windows)")
    if fp8:
        converted, layers = convert_to_float8(model)
        report.value("layers in float8", f"{converted} of {layers}")
    model.compile_for_training()
    optimizer = MuonAdamW(param_groups(model), dtype if dtype == torch.bfloat16 else None)
    plan = training_memory(config, micro_batch_size=sequences, compute_dtype=dtype)
    report.value("dtype", str(dtype))
    report.value("plan_gib", plan.total / GIB)
    measure(report, model, optimizer, config, sequences, flops_per_token(config), dtype)
    peak = torch.cuda.max_memory_reserved() / GIB
    report.value("plan / reserved", plan.total / GIB / peak)
    if not report.is_dry_run:
        (report.out / f"{report.path.stem}.profile.txt").write_text(profile(model, optimizer, config, sequences))


def peer(report: Report, depth: int, sequences: int) -> None:
    """Time nanochat's step as its script makes it: compiled whole, its optimizer, its attention where it has one."""
    config, sequences = shape(report, depth, sequences)
    os.environ["NANOCHAT_DTYPE"] = str(resolve_compute_dtype("auto", "cuda")).removeprefix("torch.")
    sys.path.insert(0, str(report.peer))
    from nanochat import gpt as theirs
    from nanochat.flash_attention import USE_FA3

    pattern = "SSSL" if USE_FA3 else "L"  # its script advises against windows without FlashAttention 3
    report.value("attention", f"{'FA3' if USE_FA3 else 'SDPA'}, windows {pattern}")
    fields = {
        name: getattr(config, name)
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    }
    with torch.device("meta"):
        model = theirs.GPT(theirs.GPTConfig(**fields, window_pattern=pattern))
    model.to_empty(device="cuda")
    model.init_weights()
    optimizer = model.setup_optimizer()
    flops = model.estimate_flops()
    dtype = resolve_compute_dtype("auto", "cuda")
    measure(report, torch.compile(model, dynamic=False), optimizer, config, sequences, flops, dtype)


def measure(
    report: Report,
    model: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    config: GPTConfig,
    sequences: int,
    flops: float,
    dtype: torch.dtype,
) -> None:
    """Median seconds of forward, backward and optimizer on random tokens, and the peak of memory."""
    start_s = time.monotonic()
    seconds = []
    for number in range(WARM_UP_STEPS + (2 if report.is_dry_run else TIMED_STEPS)):
        if number == WARM_UP_STEPS:
            report.value("first_steps_s", time.monotonic() - start_s)
            torch.cuda.reset_peak_memory_stats()
        tokens = torch.randint(config.vocab_size, (sequences, config.sequence_len + 1), device="cuda")
        torch.cuda.synchronize()
        step_start_s = time.perf_counter()
        loss = step(model, optimizer, tokens)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - step_start_s)
    step_s = statistics.median(seconds[WARM_UP_STEPS:])
    tokens_per_s = sequences * config.sequence_len / step_s
    report.value("sequences", sequences)
    report.value("loss", float(loss))
    report.number_must(bool(loss.isfinite()), f"the loss is {float(loss)}")
    report.value("step_ms", 1e3 * step_s)
    report.value("tokens_per_s", tokens_per_s)
    report.value("mfu", tokens_per_s * flops / peak_flops_per_s("cuda", dtype))
    report.value("peak_gib", torch.cuda.max_memory_allocated() / GIB)
    report.value("reserved_gib", torch.cuda.max_memory_reserved() / GIB)


def step(model: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, tokens: Tensor) -> Tensor:
    """One optimizer step on one micro-batch."""
    loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def profile(model: GPT, optimizer: MuonAdamW, config: GPTConfig, sequences: int) -> str:
    """The operations of one more step that take the most time of the GPU."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    tokens = torch.randint(config.vocab_size, (sequences, config.sequence_len + 1), device="cuda")
    with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(model, optimizer, tokens)
        torch.cuda.synchronize()
    return profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)
