"""Whole commands as a user types them: training that is killed and resumed, SFT, RL; what a step waits for."""

import signal
import time
from pathlib import Path

import torch
from check_numerics import small_model
from check_report import Report
from workbench import Workbench

from nanochat_lit.common.hardware import resolve_compute_dtype
from nanochat_lit.optim import MuonAdamW, param_groups
from nanochat_lit.training.run_records import read_metrics


def resume(report: Report) -> None:
    """No waiting for the GPU in a step; fit is killed and resumed; SFT takes over the optimizer's state."""
    silent_steps(report)
    bench = Workbench(report.out / "runs", depth=2 if report.is_dry_run else 4)
    start_s = time.monotonic()
    process = bench.start("fit", bench.pretrain())
    checkpoints = bench.run_dir("pretrain") / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step*.ckpt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    report.value("fit until it was killed, s", time.monotonic() - start_s)
    report.must(process.wait() == -signal.SIGKILL, f"fit ended by itself with {process.returncode}: {bench.log('fit')}")
    succeed(report, bench, "fit", bench.pretrain(), "--ckpt_path", "last")
    rows = read_metrics(bench.run_dir("pretrain") / "metrics.csv")
    report.value("steps after the resumed fit", max(rows))
    report.must(max(rows) == bench.num_steps, f"the resumed run ended at step {max(rows)} of {bench.num_steps}")
    losses = [row["train_loss"] for row in rows.values() if "train_loss" in row]
    report.value("train_loss, first and last", f"{losses[0]:.3f}, {losses[-1]:.3f}")
    report.number_must(losses[-1] < losses[0], "the loss did not fall")
    last = max(checkpoints.glob("step*.ckpt"))
    succeed(report, bench, "fit", bench.sft(optimizer_from=last))


def rl_and_float16(report: Report) -> None:
    """Two steps of RL, an automatic micro-batch, and float16 with its loss scaler."""
    bench = Workbench(report.out / "runs_of_rl", depth=2 if report.is_dry_run else 4)
    succeed(report, bench, "fit", bench.pretrain(), "--data.micro_batch_size", "auto", "--model.num_steps", "2")
    succeed(report, bench, "fit", bench.sft())
    succeed(report, bench, "fit", bench.rl())
    succeed(report, bench, "fit", bench.pretrain(), "--compute_dtype", "float16", "--overwrite", "true")


def succeed(report: Report, bench: Workbench, *arguments: str) -> None:
    """Run a command and record how long it took, and what it printed last if it failed."""
    start_s = time.monotonic()
    status = bench.run(*arguments)
    name = " ".join(Path(argument).name for argument in arguments)
    report.value(f"{name}, s", time.monotonic() - start_s)
    report.must(status == 0, f"`{name}` ended with status {status}: {bench.log(arguments[0])}")


def silent_steps(report: Report) -> None:
    """Training steps, eager and compiled, in which nothing waits for the GPU."""
    model = small_model(report, depth=2).to("cuda").set_compute_dtype(resolve_compute_dtype("auto", "cuda"))
    optimizer = MuonAdamW(param_groups(model), torch.bfloat16 if model.compute_dtype == torch.bfloat16 else None)
    tokens = torch.randint(model.config.vocab_size, (2, model.config.sequence_len), device="cuda")

    def step() -> None:
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for name in ("eager", "compiled"):
        if name == "compiled":
            model.compile_for_training()
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            report.must(False, f"a step ({name}) waits for the GPU: {str(error).splitlines()[0]}")
        finally:
            torch.cuda.set_sync_debug_mode("default")


def commands(report: Report) -> None:
    """Evaluation, chat and a server on an export that was trained here."""
    bench = Workbench(report.out / "runs_of_commands", depth=2 if report.is_dry_run else 4)
    succeed(report, bench, "fit", bench.pretrain(), "--model.num_steps", "2")
    succeed(report, bench, "fit", bench.sft())
    export = str(bench.run_dir("sft") / "export")
    succeed(report, bench, "evaluate", "core", "--model", export, "--bundle", str(bench.core_bundle()))
    succeed(report, bench, "chat", "--model", export, "-p", "say cat", "--max_new_tokens", "8")
    start_s = time.monotonic()
    answer = bench.serve_one(export, {"messages": [{"role": "user", "content": "say cat"}], "max_tokens": 8})
    report.value("serve and one answer, s", time.monotonic() - start_s)
    report.must("choices" in answer, f"the server's answer is {answer}: {bench.log('serve')}")
