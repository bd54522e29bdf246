"""`nanochat-lit report`: a page on one run, or a comparison of several."""

from pathlib import Path

from nanochat_lit.common.errors import UserError


def report(runs: list[str], out: str | None = None, price_per_hour: float = 0.0) -> None:
    """Write a report on one or more runs: model, command, data, curves, scores, samples, time, cost and system.

    Writes report.html, a self-contained file without external resources, and report.md with its images in plots/. Also
    works for a run in progress.

    Args:
        runs: Run folders; several are compared in the first table.
        out: Output folder; null is `report` in the run folder, or in the current folder for several runs.
        price_per_hour: US dollars per device-hour; 0 omits the cost.
    """
    from nanochat_lit.report.page import write_page
    from nanochat_lit.report.run import runs_page
    from nanochat_lit.report.run_folder import read_runs

    if not runs:
        raise UserError("no run given; give one or more run folders, such as runs/quickstart")
    if price_per_hour < 0:
        raise UserError(f"price_per_hour is {price_per_hour}; it must be positive, or 0 to omit the cost")
    found = read_runs(runs)
    folder = Path(out) if out is not None else (Path(runs[0]) if len(runs) == 1 else Path()) / "report"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; give a folder")
    write_page(folder, f"nanochat-lit: {', '.join(run.name for run in found)}", *runs_page(found, price_per_hour))
    print(f"{folder / 'report.html'}\n{folder / 'report.md'}")
