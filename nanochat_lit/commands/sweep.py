"""`nanochat-lit sweep`: train several runs sequentially and compare their results."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError


def sweep(
    recipe: str,
    run_dir: str | None = None,
    fit: str | None = None,
    depths: list[int] | None = None,
    flops_budgets: list[float] | None = None,
    seeds: list[int] | None = None,
    options: dict[str, Any] | None = None,
    dry_run: bool = False,
    train: bool = True,
) -> None:
    """Train every combination of depths and compute budgets, and fit scaling laws; or compare variants over seeds.

    Variants get as many steps as the reference, the first of them, by equal time, tokens or FLOPs. Time is the
    process's CPU time, so that other programs do not decide; it is measured by turns before the variants are trained.

    Each run is a separate `nanochat-lit fit` process with its own folder. Repeating the command skips finished runs and
    resumes the interrupted one from its last checkpoint. Writes the table, curves and fits to
    RUN_DIR/report/report.html and report.md, and the values to RUN_DIR/sweep_results.json. Missing runs are listed.

    Args:
        recipe: YAML file of a sweep: run_dir, fit, options, and depths, flops_budgets or variants, seeds, equal.
        run_dir: Folder of the sweep; null uses the recipe's.
        fit: Recipe of each run; null uses the sweep recipe's.
        depths: For example '[8, 10, 12]'; null uses the recipe's.
        flops_budgets: For example '[1e18, 4e18]'; '[]' trains each depth for the horizon of its recipe; null uses the
            recipe's.
        seeds: Seeds of variants, for example '[1]'; null uses the recipe's.
        options: Additional `fit` keys, for example '{"model.warmup": 10}'.
        dry_run: Print the commands without running them.
        train: Train missing runs; false only evaluates the finished ones.
    """
    from nanochat_lit.common.paths import run_lock
    from nanochat_lit.report.sweep import read_sweep

    changes = {
        "run_dir": run_dir,
        "fit": fit,
        "depths": depths,
        "flops_budgets": flops_budgets,
        "seeds": seeds,
        "options": options,
    }
    plan = read_sweep(recipe, changes)
    if dry_run:
        for run in plan.runs:
            state = "finished" if run.finished() else "to do"
            print(f"# {run.folder}: {state}\n{shlex.join(['nanochat-lit', *run.command[3:]])}")
        return
    if train:
        plan.check_folder()
    with run_lock(Path(plan.run_dir), "nanochat-lit sweep"):
        for number, run in enumerate(plan.runs, start=1):
            if train:
                if number == 2 and plan.variants:
                    plan.set_horizons(_call)
                _train(run, f"[{number}/{len(plan.runs)}]")
        _conclude(plan)


def _conclude(plan: Any) -> None:
    from nanochat_lit.common.paths import write_json
    from nanochat_lit.report.page import write_page
    from nanochat_lit.report.sweep import sweep_page, sweep_results

    finished = [(run, result) for run in plan.runs if (result := run.finished()) is not None]
    if not finished:
        raise UserError(f"{plan.run_dir} has no finished run; omit --train false to train")
    results = sweep_results(finished, num_planned=len(plan.runs))
    folder = Path(plan.run_dir)
    write_json(folder / "sweep_results.json", results)
    write_page(folder / "report", f"nanochat-lit sweep: {plan.run_dir}", *sweep_page(plan.run_dir, results))
    for law in results["laws"]:
        print(law["text"])
    for one in results.get("variants", [])[1:]:
        print(f"{one['name']}: {_difference(one)}")
    print(f"{folder / 'report' / 'report.html'}\n{folder / 'report' / 'report.md'}")


def _train(run: Any, place: str) -> None:
    run.begin()
    if run.finished() is not None:
        print(f"{place} {run.folder}: finished", file=sys.stderr, flush=True)
        return
    print(f"{place} {run.folder}", file=sys.stderr, flush=True)
    _call(run.command)
    if run.finished() is None:
        raise UserError(
            f"{run.folder} ended without an error, but has no export with all steps and a val_bpb; "
            "remove options that stop it early or disable validation"
        )


def _call(command: list[str]) -> None:
    status = subprocess.run(command, check=False).returncode  # noqa: S603 - our own program with a list of words
    if status in (130, -2):
        raise KeyboardInterrupt
    if status:
        folder = command[command.index("--run_dir") + 1]
        raise UserError(f"{folder} exited with status {status}; repeat the sweep command to resume it")


def _difference(variant: dict[str, Any]) -> str:
    if variant["mean"] is None:
        return "no seed is finished"
    if variant["low"] is None:
        return f"{variant['mean']:+.4f} bits per byte (one seed)"
    return f"{variant['mean']:+.4f} bits per byte (95% interval {variant['low']:+.4f} to {variant['high']:+.4f})"
