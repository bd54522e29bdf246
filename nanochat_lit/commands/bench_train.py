"""nanochat-lit bench train: training speed of a randomly initialized model, next to the machine's limits."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from json import dumps
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.compilers import missing_compiler, use_configured_compiler
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import (
    ReadBandwidth,
    find_device,
    memory_text,
    peak_memory_bytes,
    resolve_compute_dtype,
)
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.accounting import flops_per_token
from nanochat_lit.optim import MuonAdamW, param_groups

SQUARE = 2048
"""Side of the square matmul that measures peak FLOP/s; halved while one matmul takes too long."""

PROFILED_OPERATIONS = 15
"""Number of lines in the profile table."""


def bench_train(  # noqa: PLR0913 - every option of the command is a parameter
    depth: int = 4,
    vocab_size: int = 8192,
    sequence_len: int = 512,
    head_dim: int = 64,
    micro_batch_size: int = 8,
    tokens_per_step: int = 8192,
    repeats: int = 8,
    device: str | None = None,
    compute_dtype: str = "auto",
    compile: bool = True,  # noqa: A002 - the key of recipes
    profile: bool = False,
    json: bool = False,
) -> None:
    """Time training steps on random tokens, and matrix multiplications as an upper bound.

    Args:
        depth: Number of layers.
        vocab_size: Vocabulary size.
        sequence_len: Context length, tokens.
        head_dim: Channels per attention head.
        micro_batch_size: Sequences per forward pass.
        tokens_per_step: Tokens per optimizer step; a multiple of the micro-batch.
        repeats: Timed steps; medians are reported.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        compile: Compile the model with torch.compile; takes about a minute the first time.
        profile: Also profile one more step and print the most expensive operators.
        json: Print only JSON.
    """
    target = find_device(device)
    tokens = micro_batch_size * sequence_len
    if micro_batch_size < 1 or repeats < 1:
        raise UserError(f"micro_batch_size {micro_batch_size} and repeats {repeats} must be at least 1")
    if tokens_per_step < 1 or tokens_per_step % tokens:
        nearest = max(1, round(tokens_per_step / tokens)) * tokens
        raise UserError(
            f"tokens_per_step {tokens_per_step} is not a multiple of the micro-batch ({tokens} tokens); try {nearest}"
        )
    if compile and (missing := missing_compiler(target.type)):
        raise UserError(f"cannot compile: {missing}; use --compile false")
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len, head_dim=head_dim)
    dtype = resolve_compute_dtype(compute_dtype, target)
    steps = _steps(config, dtype, target, compile, micro_batch_size, tokens_per_step // tokens)
    report = {
        "config": asdict(config),
        "compute_dtype": str(dtype).removeprefix("torch."),
        "compiled": compile,
        "threads": torch.get_num_threads(),
        **_measure(steps, config, dtype, target, tokens, tokens_per_step, repeats),
    }
    operations = _profile(steps) if profile else ""
    print(dumps(report) if json else _table(report) + operations)


def _steps(
    config: GPTConfig,
    dtype: torch.dtype,
    device: torch.device,
    compile: bool,  # noqa: A002
    rows: int,
    micro_batches: int,
) -> Iterator[tuple[float, float, float]]:
    """Yield the seconds of forward, backward and optimizer of successive steps, in the Trainer's order of events.

    The fused loss computes the gradient of the unembedding in the forward pass.
    """
    model = GPT(config, dtype).to(device)
    model.init_weights(torch.Generator(device=device).manual_seed(0))
    if compile:
        use_configured_compiler()
        model.compile_for_training()
    optimizer = MuonAdamW(param_groups(model), dtype if dtype == torch.bfloat16 else None)
    generator = torch.Generator().manual_seed(1)
    while True:
        batches = torch.randint(config.vocab_size, (micro_batches, rows, config.sequence_len + 1), generator=generator)
        forward_s = backward_s = 0.0
        for number, batch in enumerate(batches.to(device)):
            start_s = _now(device)
            loss = model(batch[:, :-1], batch[:, 1:])
            middle_s = _now(device)
            if number == 0:
                optimizer.zero_grad()
            (loss / micro_batches).backward()
            forward_s += middle_s - start_s
            backward_s += _now(device) - middle_s
        start_s = _now(device)
        optimizer.step()
        yield forward_s, backward_s, _now(device) - start_s


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _measure(
    steps: Iterator[tuple[float, float, float]],
    config: GPTConfig,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    tokens_per_step: int,
    repeats: int,
) -> dict[str, Any]:
    """Return medians; the limits are measured between the steps because clock speed and load vary."""
    for _ in range(2):  # compile and allocate the optimizer state
        next(steps)
    peak = peak_memory_bytes(device)  # before the limit measurements allocate their buffers
    square, own = _square_product(dtype, device), _own_products(config, tokens, dtype, device)
    timed, square_flops, own_flops = [], [], []
    for _ in range(repeats):
        timed.append(next(steps))
        square_flops.append(square())
        own_flops.append(own())
    step_s = statistics.median(map(sum, timed))
    forward_s, backward_s, optimizer_s = map(statistics.median, zip(*timed, strict=True))
    flops_per_s = tokens_per_step / step_s * flops_per_token(config)
    limit = statistics.median(square_flops)
    return {
        "micro_batch_tokens": tokens,
        "tokens_per_step": tokens_per_step,
        "tokens_per_s": tokens_per_step / step_s,
        "step_s": step_s,
        "forward_s": forward_s,
        "backward_s": backward_s,
        "optimizer_s": optimizer_s,
        "optimizer_share": optimizer_s / step_s,
        "flops_per_s": flops_per_s,
        "square_product_flops_per_s": limit,
        "own_products_flops_per_s": statistics.median(own_flops),
        "share_of_limit": flops_per_s / limit,
        "read_bandwidth_bytes_per_s": ReadBandwidth(device).bytes_per_s(),
        "peak_memory_bytes": peak,
    }


def _square_product(dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    side = SQUARE
    while True:
        flops_per_s = _products([(side, side, side)], dtype, device)
        if side <= 256 or 2 * side**3 / flops_per_s() < 0.5:
            return flops_per_s
        side //= 2


def _own_products(config: GPTConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """Return a callable that measures FLOP/s of a micro-batch's linear layers alone, forward and backward."""
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    outputs_and_inputs = [(width, width), (kv_width, width), (kv_width, width), (width, width)]
    outputs_and_inputs += [(4 * width, width), (width, 4 * width)]
    layers = config.n_layer * outputs_and_inputs + [(config.vocab_size, width)]
    shapes = []
    for outputs, inputs in layers:
        shapes += [(tokens, inputs, outputs), (tokens, outputs, inputs), (outputs, tokens, inputs)]
    return _products(shapes, dtype, device)


def _products(shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """Return a callable that measures FLOP/s of a sequence of matmuls (m, k) x (k, n)."""
    pairs: list[tuple[Tensor, Tensor]] = []
    made: dict[tuple[int, int], Tensor] = {}
    for m, k, n in shapes:
        for shape in ((m, k), (k, n)):
            if shape not in made:
                made[shape] = torch.randn(shape, device=device).to(dtype)
        pairs.append((made[m, k], made[k, n]))
    flops = sum(2 * m * k * n for m, k, n in shapes)

    def flops_per_s() -> float:
        start_s = _now(device)
        for left, right in pairs:
            torch.mm(left, right)
        return flops / (_now(device) - start_s)

    flops_per_s()
    return flops_per_s


def _profile(steps: Iterator[tuple[float, float, float]]) -> str:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, acc_events=True) as profiler:  # torch 2.9 to 2.11 warn without
        next(steps)
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    averages = profiler.key_averages()
    return "\n\n" + averages.table(sort_by=key, row_limit=PROFILED_OPERATIONS, max_name_column_width=60)


def _table(report: dict[str, Any]) -> str:
    giga = 1e9
    parts = ", ".join(f"{1e3 * report[name]:,.0f}" for name in ("forward_s", "backward_s", "optimizer_s"))
    limit = f"{report['square_product_flops_per_s'] / giga:,.0f} GFLOP/s"
    rows = {
        "tokens/s": f"{report['tokens_per_s']:,.0f}",
        "step": f"{1e3 * report['step_s']:,.0f} ms",
        "forward, backward, optimizer": f"{parts} ms; the optimizer takes {report['optimizer_share']:.1%}",
        "model arithmetic": f"{report['flops_per_s'] / giga:,.0f} GFLOP/s",
        "limit: a large matmul": f"{limit}, of which training reaches {report['share_of_limit']:.0%}",
        "the linear layers alone": f"{report['own_products_flops_per_s'] / giga:,.0f} GFLOP/s",
        "memory read": f"{report['read_bandwidth_bytes_per_s'] / giga:.1f} GB/s",
        "peak memory of the process": memory_text(report["peak_memory_bytes"]),
    }
    heading = (
        f"{report['compute_dtype']}, compiled {report['compiled']}, {report['threads']} threads; micro-batches of "
        f"{report['micro_batch_tokens']:,} tokens, {report['tokens_per_step']:,} tokens per step\n"
    )
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([heading, "| measured | median |", "|---|---|", *lines])
