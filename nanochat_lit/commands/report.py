"""`nanochat-lit report`: a page on one run, or several beside each other."""

from pathlib import Path

from nanochat_lit.common.errors import UserError


def report(runs: list[str], out: str | None = None, price_per_hour: float = 0.0) -> None:
    """Write a page on a run, or on several: model, command, data, curves, scores, samples, time and cost, system.

    report.html is one file that can be mailed or put on a web server: pictures and style are inside, nothing is loaded from
    elsewhere. report.md with the pictures in plots/ says the same where markdown is shown. A run that is under way can be
    looked at, too.

    Args:
        runs: Run folders; with several, the first table compares them.
        out: Folder to write into; null is `report` in the folder of the only run, or `report` here.
        price_per_hour: Dollars that one device costs an hour; 0 leaves money out.
    """
    from nanochat_lit.report.page import write_page
    from nanochat_lit.report.run import runs_page
    from nanochat_lit.report.run_folder import read_runs

    if not runs:
        raise UserError("no run was named; give one or more run folders, such as runs/quickstart")
    if price_per_hour < 0:
        raise UserError(f"price_per_hour is {price_per_hour}; it must be 0 (unknown) or positive")
    found = read_runs(runs)
    folder = Path(out) if out is not None else (Path(runs[0]) if len(runs) == 1 else Path()) / "report"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; give a folder")
    write_page(folder, f"nanochat-lit: {', '.join(run.name for run in found)}", *runs_page(found, price_per_hour))
    print(f"{folder / 'report.html'}\n{folder / 'report.md'}")
