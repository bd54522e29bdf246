"""Curves of a run, and shares of a corpus, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat_lit.common.paths import atomic_write


def plot_curves(
    path: str | Path,
    title: str,
    y_label: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> None:
    """Draw curves over training steps, on a logarithmic axis: the last tenth of a loss is where the work goes.

    Args:
        path: PNG file to write.
        title: Above the plot.
        y_label: Of the vertical axis, with its unit.
        curves: Name to (steps, values).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, marker="o" if len(steps) < 12 else None, label=name)
    axes.set(title=title, xlabel="step", ylabel=y_label)
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    if len(curves) > 1:
        axes.legend()
    figure.savefig(path, dpi=120)


def plot_bars(path: str | Path, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Draw shares as horizontal bars, a panel for each kind of share.

    Args:
        path: PNG or SVG file to write.
        panels: Title to name to share.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [max(2, len(shares)) for shares in panels.values()]
    figure = Figure(figsize=(7, 1 + 0.28 * sum(heights) + 0.5 * len(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, shares) in zip(rows, panels.items(), strict=True):
        axes.barh(list(shares), [100 * share for share in shares.values()])
        axes.invert_yaxis()
        axes.set(title=title, xlabel="%")
        axes.grid(alpha=0.3, axis="x")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="svg" if Path(path).suffix == ".svg" else "png")
