"""What one GPU says about this package, in minutes: correctness, speed and memory, with nanochat measured beside it.

    python tests/gpu/check.py --minutes 8 --out DIR [--peer NANOCHAT] [--parts NAME ...] [--together]

Run it from a checkout; the package need not be installed. Each part runs in a process of its own with a time limit, so a
crash or a hang of one leaves the others alone. DIR receives results.json, table.md and one log per part. No network is used.
The exit status is 0 if every part passed, 1 if one did not, 2 without a CUDA device.

--peer is a checkout of nanochat: its training step, its engine and its CORE evaluation are measured in the same run.
On tests/gpu's stand-in for a GPU (a process that believes it has one, whose kernels do nothing) the parts run with tiny shapes
and compare no numbers: a dry run.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from exempt import EXEMPTED, exempt_numbers

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """One check: a function that takes a `check_report.Report`."""

    name: str
    seconds: int
    """Share of the time: its limit is this share of what is left when it starts."""
    function: str
    """module:function, in this folder."""
    of_peer: bool = False
    """Whether it measures the peer; left out without --peer."""

    @property
    def is_timed(self) -> bool:
        """Whether it measures speed, and so has the machine to itself."""
        return self.name.startswith(("train", "evaluation", "generation"))


PARTS = (
    Part("environment", 20, "check_numerics:environment"),
    Part("attention", 55, "check_numerics:attention"),
    Part("loss_and_optimizer", 30, "check_numerics:loss_and_optimizer"),
    Part("train_d12", 55, "check_training:d12"),
    Part("train_d12_fp8", 50, "check_training:d12_fp8"),
    Part("train_d12_peer", 50, "check_training:d12_peer", of_peer=True),
    Part("resume", 60, "check_stages:resume"),
    Part("evaluation", 45, "check_inference:evaluation"),
    Part("evaluation_peer", 20, "check_inference:evaluation_peer", of_peer=True),
    Part("generation", 45, "check_inference:generation"),
    Part("generation_peer", 20, "check_inference:generation_peer", of_peer=True),
    Part("rl_and_float16", 45, "check_stages:rl_and_float16"),
    Part("commands", 60, "check_stages:commands"),
    # last, as they are the longest: their time limit ends nothing else
    Part("train_d24", 90, "check_training:d24"),
    Part("train_d24_fp8", 80, "check_training:d24_fp8"),
    Part("train_d24_peer", 80, "check_training:d24_peer", of_peer=True),
)

# (figure, part, value, part of the peer, value, target for ours / its, from the project's goals on one H100)
COMPARED = (
    ("d12 training, tokens/s", "train_d12", "tokens_per_s", "train_d12_peer", "tokens_per_s", 1.0),
    ("d12 training, MFU", "train_d12", "mfu", "train_d12_peer", "mfu", None),
    ("d12 training, peak GiB", "train_d12", "peak_gib", "train_d12_peer", "peak_gib", None),
    ("d24 training, tokens/s", "train_d24", "tokens_per_s", "train_d24_peer", "tokens_per_s", 1.0),
    ("d24 training, MFU", "train_d24", "mfu", "train_d24_peer", "mfu", None),
    ("d24 training, peak GiB", "train_d24", "peak_gib", "train_d24_peer", "peak_gib", None),
    ("d12 fp8, tokens/s (beside bf16)", "train_d12_fp8", "tokens_per_s", "train_d12", "tokens_per_s", 1.15),
    ("d24 fp8, tokens/s (beside bf16)", "train_d24_fp8", "tokens_per_s", "train_d24", "tokens_per_s", 1.15),
    ("CORE, examples/s", "evaluation", "examples_per_s", "evaluation_peer", "examples_per_s", 5.0),
    ("decode, 1 sequence, tokens/s", "generation", "tokens_per_s_1", "generation_peer", "tokens_per_s_1", 5.0),
    ("decode, 32 against 1, tokens/s", "generation", "tokens_per_s_32", "generation_peer", "tokens_per_s_1", 20.0),
    ("decode, 32 sequences, tokens/s", "generation", "tokens_per_s_32", "generation_peer", "tokens_per_s_32", None),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, or, as a child of itself, one of them."""
    options = parse(argv)
    if options.run:
        run_here(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    options.is_dry_run = is_stand_in()
    if not has_gpu():
        print("check.py needs a CUDA device, and torch finds none here", file=sys.stderr)
        return 2
    parts = [part for part in PARTS if not options.parts or part.name in options.parts]
    results = run_parts(parts, options)
    print((options.out / "table.md").read_text("utf-8"))
    return int(any(result["status"] not in ("passed", "not run") for result in results))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; --run and --limit are for the script's own children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=8.0, help="Time for all parts together. Default 8.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of results.json, table.md and the logs.")
    parser.add_argument("--peer", type=Path, default=None, help="Checkout of nanochat to measure in the same run.")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="Run these only.")
    parser.add_argument(
        "--together", action="store_true", help="Run the parts that measure no speed at once, before the others."
    )
    parser.add_argument("--run", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--is_dry_run", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def is_stand_in() -> bool:
    """Whether the CUDA runtime of this process is the stand-in whose kernels do nothing."""
    return hasattr(ctypes.CDLL(None), "fake_launches") if sys.platform == "linux" else False


def has_gpu() -> bool:
    """Asked in a child, so that this process takes no memory of the GPU."""
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0


def run_parts(parts: Sequence[Part], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one part after the other; results.json and table.md are written anew after each.

    A part's limit is its share of the time left, so time that a part leaves over goes to those after it.
    """
    end_s = time.monotonic() + 60 * options.minutes
    results: list[dict[str, Any]] = []

    def record(result: dict[str, Any]) -> None:
        results.append(result)
        print(f"{result['part']}: {result['status']} after {result['seconds']:.0f} s", file=sys.stderr, flush=True)
        whole: dict[str, Any] = {"is_dry_run": options.is_dry_run, "minutes": options.minutes, "parts": results}
        whole |= {"exempted": EXEMPTED} if options.is_dry_run else {}
        (options.out / "results.json").write_text(json.dumps(whole, indent=2), "utf-8")
        (options.out / "table.md").write_text(table(results, is_dry_run=options.is_dry_run), "utf-8")

    together = [part for part in parts if not part.is_timed] if options.together else []
    if together:
        longest = max(together, key=lambda part: part.seconds)
        rest = [part for part in parts if part.is_timed]
        limit_s = time_limit([longest, *rest], end_s - time.monotonic(), has_peer=options.peer is not None)
        with ThreadPoolExecutor(len(together)) as pool:
            for done in as_completed([pool.submit(run_part, part, limit_s, options) for part in together]):
                record(done.result())
        parts = rest
    for index, part in enumerate(parts):
        limit_s = time_limit(parts[index:], end_s - time.monotonic(), has_peer=options.peer is not None)
        if part.of_peer and options.peer is None:
            record({"part": part.name, "status": "not run", "seconds": 0.0, "reason": "no --peer"})
        elif limit_s <= 0:
            record({"part": part.name, "status": "not run", "seconds": 0.0, "reason": "no time was left"})
        else:
            record(run_part(part, limit_s, options))
    return results


def time_limit(waiting: Sequence[Part], left_s: float, *, has_peer: bool) -> float:
    """Seconds for the first of the parts that are waiting."""
    shares = [part.seconds for part in waiting if has_peer or not part.of_peer]
    return left_s * waiting[0].seconds / sum(shares) if shares else 0.0


def run_part(part: Part, limit_s: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own, and end it and all that it started at its limit."""
    values_path, log_path = options.out / f"{part.name}.json", options.out / f"{part.name}.log"
    values_path.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--run", part.name, "--out", str(options.out.resolve())]
    command += ["--peer", str(options.peer.resolve())] if options.peer else []
    command += ["--is_dry_run"] if options.is_dry_run else []
    return {"part": part.name, **supervise(command, limit_s, log_path, values_path)}


def supervise(command: Sequence[str], limit_s: float, log_path: Path, values_path: Path) -> dict[str, Any]:
    """Run a command that writes its findings to values_path.

    Returns:
        status ("passed", "failed", "crashed" or "time limit"), seconds, limit_s, and what the command found so far.
    """
    places = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    start_s = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            process.wait(limit_s)
            status = "passed" if process.returncode == 0 else "crashed"
        except subprocess.TimeoutExpired:
            status = "time limit"
        finally:
            end_group(process)
    found = json.loads(values_path.read_text("utf-8")) if values_path.exists() else {"values": {}, "failures": []}
    if status == "passed" and found["failures"]:
        status = "failed"
    if status == "crashed":
        found["failures"].append(last_line(log_path) or f"exit status {process.returncode}")
    return {"status": status, "seconds": time.monotonic() - start_s, "limit_s": limit_s, **found}


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def last_line(log_path: Path) -> str:
    """The last line that a part has printed: of a crash, the error."""
    lines = log_path.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def run_here(options: argparse.Namespace) -> None:
    """A part, in this process."""
    from check_report import Report

    if options.is_dry_run:
        exempt_numbers()
    (part,) = [part for part in PARTS if part.name == options.run]
    module, _, function = part.function.partition(":")
    report = Report(
        options.out / f"{part.name}.json", is_dry_run=options.is_dry_run, out=options.out, peer=options.peer
    )
    getattr(import_module(module), function)(report)
    report.save()


def table(results: Sequence[dict[str, Any]], *, is_dry_run: bool) -> str:
    """The results as markdown: parts, figures beside the peer's, and every value found."""
    lines = ["# GPU check", ""]
    if is_dry_run:
        lines += ["Dry run on a stand-in for a GPU: kernels do nothing, so no number below means anything.", ""]
        lines += [*(f"- exempted: {what} ({how})" for what, how in EXEMPTED.items()), ""]
    lines += ["| part | result | seconds | limit |", "|---|---|---|---|"]
    for result in results:
        limit = f"{result['limit_s']:.0f}" if "limit_s" in result else ""
        lines.append(f"| {result['part']} | {result['status']} | {result['seconds']:.0f} | {limit} |")
    failures = [f"- {result['part']}: {failure}" for result in results for failure in result.get("failures", ())]
    lines += ["", "## Failures", "", *failures] if failures else []
    lines += ["", "## Compared in this run", "", "| figure | ours | other | ratio | target |", "|---|---|---|---|---|"]
    lines += compared(results)
    lines += ["", "## Values", "", "| part | value | found |", "|---|---|---|"]
    for result in results:
        lines += [f"| {result['part']} | {name} | {text(value)} |" for name, value in result.get("values", {}).items()]
    return "\n".join(lines) + "\n"


def compared(results: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of the figures that both sides have."""
    values = {result["part"]: result.get("values", {}) for result in results}
    rows = []
    for name, part, value, other_part, other_value, target in COMPARED:
        ours, other = values.get(part, {}).get(value), values.get(other_part, {}).get(other_value)
        if ours and other:
            goal = "" if target is None else f">= {target}"
            rows.append(f"| {name} | {text(ours)} | {text(other)} | {ours / other:.2f} | {goal} |")
    return rows


def text(value: Any) -> str:
    """A value in a cell."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "/").replace("\n", "<br>")


if __name__ == "__main__":
    sys.exit(main())
