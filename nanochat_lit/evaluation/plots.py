"""Plots of training curves and corpus statistics."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat_lit.common.paths import atomic_write

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def plot_curves(path: str | Path, title: str, y_label: str, curves: Curves) -> None:
    """Plot curves over training steps with a logarithmic value axis, which resolves the last part of a loss curve.

    Args:
        path: PNG file to write.
        title: Title of the plot.
        y_label: Label of the vertical axis, with its unit.
        curves: Name to (steps, values).
    """
    with atomic_write(path) as file:
        file.write(curves_png(title, y_label, curves))


def curves_png(
    title: str,
    y_label: str,
    curves: Curves,
    x_label: str = "step",
    *,
    log_x: bool = False,
    log_y: bool = True,
    points: Curves | None = None,
) -> bytes:
    """Plot curves as a PNG image.

    Args:
        title: Title of the plot.
        y_label: Label of the vertical axis, with its unit.
        curves: Name to (x, y) values.
        x_label: Label of the horizontal axis.
        log_x: Use a logarithmic horizontal axis.
        log_y: Use a logarithmic vertical axis, unless a value is not positive.
        points: Series drawn as dots; a series with the name of a curve has its color.

    Returns:
        Contents of a PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = points or {}
    names = list(dict.fromkeys([*curves, *points]))
    for number, name in enumerate(names):
        color = f"C{number % 10}"
        if name in curves:
            places, values = curves[name]
            axes.plot(places, values, marker="o" if len(places) < 12 and not points else None, color=color, label=name)
        if name in points:
            places, values = points[name]
            axes.plot(places, values, "o", color=color, label=None if name in curves else name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    heights = [value for _, values in [*curves.values(), *points.values()] for value in values]
    if log_y and all(value > 0 for value in heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # 4 instead of 4 x 10^0
        if heights and max(heights) < 20 * min(heights):  # label some values between the powers of ten
            axes.yaxis.set_minor_formatter("{x:g}")
    if log_x:
        axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    if len(names) > 5:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif len(names) > 1:
        axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def plot_bars(path: str | Path, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Plot shares as horizontal bars, one panel per kind of share.

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
