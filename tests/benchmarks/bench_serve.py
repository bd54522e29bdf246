"""bench.py serve: what clients of a server wait, and what the server costs beside its engine."""

import asyncio
import contextlib
import json as json_format
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.serve.request_fields import MAX_NEW_TOKENS

_PROMPTS = (
    "Tell me a story about a fox.",
    "Who are you?",
    "What is 12 + 30?",
    "Tell me a story about a river and a bridge.",
    "How many letters are in the word garden?",
    "Which is larger, 17 or 71?",
)


def bench_serve(
    model: str,
    concurrency: list[int] | None = None,
    requests_per_client: int = 8,
    max_tokens: int = 64,
    temperature: float = 0.0,
    slots: int = 16,
    newcomers: int = 30,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Literal["int8", "int4"] | None = None,
    json: bool = False,
) -> None:
    """Start a server on an export, send it the same requests that the engine alone answers, compare.

    Per concurrency: tokens per second of the server and of the engine alone, which answers the same requests in this process
    just before; time to first token; time per token of an answer; the gaps that a reader sees between two pieces of text. The
    clients run on the same cores, so the processor time of everyone involved is told too (Linux), per token: of the engine
    alone, of the server's workers, of its HTTP process, of the clients. Overhead is told twice: of the rate, which holds what
    the clients take, and of processor time, which is the server's own: what workers and HTTP take beyond the engine alone, as
    a share of it.

    Last, a newcomer's time to first token when all slots but one are busy with long answers, against an idle server.

    Args:
        model: Export, run folder, or .ckpt file.
        concurrency: Numbers of clients, as in '[1, 16]'; null is 1, 2, 4, 8, 16, 32. Each asks again at once.
        requests_per_client: Requests per client.
        max_tokens: Maximum length of an answer, tokens.
        temperature: 0 is greedy; then server and engine say the same.
        slots: Of the server and of the engine.
        newcomers: Requests that come one by one while all slots but one are busy; 0 leaves this out.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 stores and multiplies the matrices in 8 bits (CPU); null does not.
        json: Print only JSON.
    """
    from newcomers import run_newcomers

    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export

    counts = [1, 2, 4, 8, 16, 32] if concurrency is None else concurrency
    if not counts or min(counts) < 1 or requests_per_client < 1:
        raise UserError(f"concurrency is {counts}, requests_per_client {requests_per_client}; both must be at least 1")
    if newcomers < 0 or (newcomers and slots < 2):
        raise UserError(f"newcomers is {newcomers} with {slots} slots; use 0, or 1 or more with at least 2 slots")
    gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, quantize=quantize)
    engine = Engine(gpt, tokenizer, num_slots=slots)
    options = [f"--slots={slots}", f"--compute_dtype={compute_dtype}", f"--max_queue={max(counts)}"]
    options += [f"--device={device}"] if device else []
    options += [f"--quantize={quantize}"] if quantize else []
    with _server(model, options) as (url, pid):
        rows = []
        for count in [counts[0], *counts]:  # the first warms up
            bodies = [_body(i, max_tokens, temperature) for i in range(count * requests_per_client)]
            rows.append(_row(engine, url, pid, bodies, count))
        newcomer = None
        if newcomers:
            long = [_body(i, min(gpt.config.sequence_len, MAX_NEW_TOKENS), 2.0) for i in range(slots - 1)]
            short = [_body(i, 2, temperature) for i in range(newcomers)]
            newcomer = asyncio.run(run_newcomers(url, long, short, None)).row()
    report = {"model": model, "slots": slots, "max_tokens": max_tokens, "rows": rows[1:], "newcomer": newcomer}
    print(json_format.dumps(report, indent=2) if json else _table(rows[1:]) + _newcomer_line(newcomer, slots))


def _row(engine: Any, url: str, pid: int, bodies: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Figures of the engine alone and of `count` clients at the server, with the same requests."""
    from serve_load import run_load

    times = [_cpu_s(pid)]
    alone = _engine_tokens_per_s(engine, bodies, count)
    times.append(_cpu_s(pid))
    row = asyncio.run(run_load(url, bodies, count, None)).row()
    times.append(_cpu_s(pid))
    spent = _cpu_us(times, row["num_tokens"])
    row |= {"engine_tokens_per_s": alone, "overhead": 1 - row["tokens_per_s"] / alone}
    return {**row, "cpu_us_per_token": spent, "cpu_overhead": _cpu_overhead(spent)}


def _body(index: int, max_tokens: int, temperature: float) -> dict[str, Any]:
    messages = [{"role": "user", "content": _PROMPTS[index % len(_PROMPTS)]}]
    return {"messages": messages, "max_tokens": max_tokens, "temperature": temperature, "seed": index}


def _engine_tokens_per_s(engine: Any, bodies: list[dict[str, Any]], count: int) -> float:
    """The engine alone, `count` requests at a time at most."""
    from nanochat_lit.engine.sampling_params import Request
    from nanochat_lit.tokenizer import render_for_completion

    requests = [
        Request(
            prompt_ids=render_for_completion(engine.tokenizer, {"messages": body["messages"]}),
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seed=body["seed"],
        )
        for body in bodies
    ][::-1]
    num_tokens = num_running = 0
    start_s = time.perf_counter()
    while requests or num_running:
        while requests and num_running < count and engine.num_free:
            engine.admit(requests.pop())
            num_running += 1
        for emitted in engine.step():
            num_tokens += emitted.token_id not in engine.end_ids
            num_running -= emitted.finish_reason is not None
    return num_tokens / (time.perf_counter() - start_s)


def _cpu_s(pid: int) -> tuple[float, float, float] | None:
    """Processor seconds so far of this process, of a server's HTTP process, and of its workers; None where it is not told."""
    try:
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        http_s, *workers_s = [_process_s(process) for process in (str(pid), *workers)]
    except OSError:
        return None
    return time.process_time(), http_s, sum(workers_s)


def _process_s(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def _cpu_us(times: list[tuple[float, float, float] | None], num_tokens: int) -> dict[str, float] | None:
    """Processor time per token, from what was spent before the engine ran alone, before the clients came, and at the end."""
    start, middle, end = times
    if start is None or middle is None or end is None or num_tokens == 0:
        return None
    spent_s = {
        "engine": middle[0] - start[0],
        "workers": end[2] - middle[2],
        "http": end[1] - middle[1],
        "clients": end[0] - middle[0],
    }
    return {name: 1e6 * seconds / num_tokens for name, seconds in spent_s.items()}


def _cpu_overhead(spent: dict[str, float] | None) -> float | None:
    """What the server takes of the processor beyond the engine, as a share of the engine's."""
    if spent is None or spent["engine"] == 0:
        return None
    return (spent["workers"] + spent["http"]) / spent["engine"] - 1


@contextlib.contextmanager
def _server(model: str, options: list[str]) -> Iterator[tuple[str, int]]:
    """The address and the process of a server of its own."""
    command = [sys.executable, "-m", "nanochat_lit", "serve", "--model", model, "--port=0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"ready at (http://\S+)/v1", line):
                    yield found[1], process.pid
                    return
            raise UserError(f"the server did not start: {''.join(lines[-3:]).strip()}")
        finally:
            process.terminate()


def _table(rows: list[dict[str, Any]]) -> str:
    head = (
        "clients  tokens/s  engine  overhead of rate / CPU  first token ms p50/p99  per token ms p50/p99  gap ms p99  errors  "
        "CPU us/token engine / workers + http + clients"
    )
    lines = [head]
    for row in rows:
        first, token, gap = row["first_token_ms"], row["inter_token_ms"], row["gap_ms"]
        cpu = row["cpu_us_per_token"] or dict.fromkeys(("engine", "workers", "http", "clients"))
        lines.append(
            f"{row['concurrency']:7d}  {row['tokens_per_s']:8.0f}  {row['engine_tokens_per_s']:6.0f}  {row['overhead']:16.1%} / {_share(row['cpu_overhead']):<6} "
            f"{_shown(first['p50']):>11} / {_shown(first['p99']):<9} {_shown(token['p50']):>10} / {_shown(token['p99']):<8} "
            f"{_shown(gap['p99']):>10}  {row['errors']:6d}  "
            f"{_shown(cpu['engine']):>19} / {_shown(cpu['workers'])} + {_shown(cpu['http'])} + {_shown(cpu['clients'])}"
        )
    return "\n".join(lines)


def _newcomer_line(newcomer: dict[str, Any] | None, slots: int) -> str:
    if newcomer is None:
        return ""
    busy, idle = newcomer["busy_first_token_ms"], newcomer["idle_first_token_ms"]
    ratio = "-" if newcomer["ratio"] is None else f"{newcomer['ratio']:.1f}"
    return (
        f"\na newcomer at {newcomer['busy_slots']} busy slots of {slots}, {newcomer['requests']} times: first token after "
        f"{_shown(busy['p50'])} ms (p99 {_shown(busy['p99'])}), idle {_shown(idle['p50'])} ms (p99 {_shown(idle['p99'])}): "
        f"{ratio} times as long (below 4 is the aim); {newcomer['errors']} errors"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
