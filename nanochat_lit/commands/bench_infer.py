"""nanochat-lit bench infer: prefill and decoding speed of an export or of a randomly initialized model."""

import json as json_format
import statistics
import time
from dataclasses import asdict
from typing import Any, Literal

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import (
    ReadBandwidth,
    find_device,
    is_free_choice,
    memory_text,
    peak_memory_bytes,
    resolve_compute_dtype,
)
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export
from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.model.decode_kernel import KernelLinear
from nanochat_lit.model.packed import Quantization, describe_kernel, pack_linears
from nanochat_lit.model.slot_cache import stored_dtype


def bench_infer(  # noqa: PLR0913 - every option of the command is a parameter
    model: str | None = None,
    depth: int = 4,
    vocab_size: int = 8192,
    sequence_len: int = 512,
    streams: list[int] | None = None,
    prompt_len: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Literal["int8", "int4"] | None = None,
    packed: bool = True,
    json: bool = False,
) -> None:
    """Measure prefill latency and decoding throughput.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME; null benchmarks a randomly initialized model of the given depth.
        depth: Number of layers of the random model.
        vocab_size: Vocabulary size of the random model.
        sequence_len: Context length of the random model, tokens.
        streams: Numbers of concurrent sequences, for example '[1, 16]'; null is 1, 4, 16.
        prompt_len: Prompt length, tokens.
        new_tokens: Tokens to generate per sequence.
        repeats: Number of runs; medians are reported.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 stores and multiplies the matrices in 8 bits, int4 stores them in 4.5 (CPU only); null disables it.
        packed: Repack the weights for this CPU, as chat and serve do; false is for comparison.
        json: Print only JSON.
    """
    counts = [1, 4, 16] if streams is None else streams
    target = find_device(device)
    gpt = _model(model, depth, vocab_size, sequence_len, target, compute_dtype)
    if not counts or min(counts) < 1 or repeats < 1:
        raise UserError(f"streams {counts} and repeats {repeats} must be at least 1")
    context = gpt.config.sequence_len
    if prompt_len < 1 or new_tokens < 2 or prompt_len + new_tokens > context + 1:
        raise UserError(
            f"prompt_len {prompt_len} must be at least 1, new_tokens {new_tokens} at least 2, and their sum within the context "
            f"of {context} tokens"
        )
    if quantize or packed:
        pack_linears(gpt, quantize, torch.bfloat16 if is_free_choice(compute_dtype) else None)
    weight_bytes = _weight_bytes(gpt, quantize)
    report = {
        "config": asdict(gpt.config),
        "compute_dtype": str(gpt.compute_dtype).removeprefix("torch."),
        "quantize": quantize,
        "packed": quantize is not None or packed,
        "kernel": describe_kernel(gpt),
        "weight_bytes": weight_bytes,
        **_measure(gpt, weight_bytes, counts, prompt_len, new_tokens, repeats),
    }
    print(json_format.dumps(report) if json else _table(report, prompt_len))


def _measure(
    gpt: GPT, weight_bytes: int, counts: list[int], prompt_len: int, new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Return medians over the repeats after one warm-up run; the bandwidth is measured between runs."""
    for count in counts:
        _run(gpt, count, prompt_len, new_tokens, 0)
    peak_bytes = peak_memory_bytes(gpt.device)  # before the bandwidth measurement allocates its buffers
    bandwidth = ReadBandwidth(gpt.device)
    prefill_s, rows = [], []
    for count in counts:
        first_s, steps_s, reads = [], [], [bandwidth.bytes_per_s()]
        for repeat in range(repeats):
            first, steps = _run(gpt, count, prompt_len, new_tokens, repeat + 1)
            first_s.append(first)
            steps_s += steps
            reads.append(bandwidth.bytes_per_s())
        prefill_s += first_s
        step_s, read = statistics.median(steps_s), max(reads)
        read_bytes = weight_bytes + count * _key_bytes(gpt, prompt_len + new_tokens // 2)
        row = {"streams": count, "step_ms": step_s * 1e3, "tokens_per_s": count / step_s}
        # the bytes that a step reads per second; exceeds 1 for models that fit the CPU caches
        rows.append(row | {"mbu": read_bytes / step_s / read, "bandwidth_gb_per_s": read / 1e9})
    first_token_s = statistics.median(prefill_s)
    return {
        "first_token_ms": first_token_s * 1e3,
        "prefill_tokens_per_s": prompt_len / first_token_s,
        "decode": rows,
        "peak_memory_bytes": peak_bytes,
    }


def _model(
    folder: str | None, depth: int, vocab_size: int, sequence_len: int, device: torch.device, compute_dtype: str
) -> GPT:
    if folder is not None:
        return load_export(folder, device, compute_dtype, cast_weights=True, packed=False)[0]
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len)
    gpt = GPT(config).to(device)
    generator = torch.Generator(device=device).manual_seed(0)
    gpt.init_weights(generator)
    for parameter in gpt.parameters():  # the zero-initialized projections could be cheaper to compute with
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return gpt.set_compute_dtype(resolve_compute_dtype(compute_dtype, device), cast_weights=True).eval()


def _run(gpt: GPT, streams: int, prompt_len: int, new_tokens: int, seed: int) -> tuple[float, list[float]]:
    """Return the seconds from admitting the first request to its first token, and those of each full decode step."""
    engine = Engine(gpt, _NoText(), num_slots=streams)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(gpt.config.vocab_size, (streams, prompt_len), generator=generator).tolist()
    first_s = []
    for number, prompt in enumerate(prompts):
        # sequences prefilled early decode while later ones are prefilled, so each needs spare tokens to last to the end
        start_s = time.perf_counter()
        engine.admit(Request(prompt_ids=prompt, max_new_tokens=new_tokens + streams))
        while not any(token.slot == number for token in engine.step()):
            pass
        first_s.append(time.perf_counter() - start_s)
    steps_s = []
    for _ in range(new_tokens - 1):
        start_s = time.perf_counter()
        engine.step()
        steps_s.append(time.perf_counter() - start_s)
    return first_s[0], steps_s


class _NoText:
    """Tokenizer stub: no stop tokens, no tool calls, no text."""

    bos_id = -1
    special_ids = dict.fromkeys(
        ("<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"), -1
    )

    def stream_decoder(self) -> "_NoText":
        return self

    def push(self, _token_id: int) -> str:
        return ""


def _weight_bytes(gpt: GPT, quantize: Quantization | None) -> int:
    """Return the bytes of matrices that a decode step reads; excludes embeddings, of which it reads single rows."""
    if isinstance(gpt.lm_head, KernelLinear):
        return sum(module.num_bytes for module in gpt.modules() if isinstance(module, KernelLinear))
    counts = count_parameters(gpt.config)
    return (counts.transformer_matrices + counts.lm_head) * (1 if quantize else gpt.compute_dtype.itemsize)


def _key_bytes(gpt: GPT, position: int) -> int:
    """Return the bytes of keys and values that a decode step of one sequence reads at a position."""
    visible = sum(min(position, window + 1) for window in gpt.config.windows)
    dtype = stored_dtype(gpt.device, gpt.compute_dtype, gpt.decode_kernel is not None)
    return 2 * visible * gpt.config.n_kv_head * gpt.config.head_dim * dtype.itemsize


def _table(report: dict[str, Any], prompt_len: int) -> str:
    heading = (
        f"{report['compute_dtype']}, quantize {report['quantize']}, packed {report['packed']}; {report['kernel']}; "
        f"weights {report['weight_bytes'] / 1e6:.1f} MB, peak memory {memory_text(report['peak_memory_bytes'])}\n"
        f"prefill of {prompt_len} tokens: {report['first_token_ms']:.1f} ms to the first token, "
        f"{report['prefill_tokens_per_s']:,.0f} tokens/s\n"
    )
    lines = [heading, "| streams | step ms | tokens/s | MBU | memory GB/s |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['streams']} | {row['step_ms']:.2f} | {row['tokens_per_s']:,.0f} | {row['mbu']:.0%} | {row['bandwidth_gb_per_s']:.1f} |"
        for row in report["decode"]
    ]
    return "\n".join(lines)
