"""Curves of a run as a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path


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
