"""Results of a sweep: values, fits, plots."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nanochat_lit.evaluation.plots import curves_png
from nanochat_lit.evaluation.scaling_fits import (
    Parabola,
    PowerLaw,
    fit_parabola,
    fit_power_law,
    fit_saturating_power_law,
)
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.report.page import fill
from nanochat_lit.report.run_folder import RunFolder
from nanochat_lit.report.sweep_recipe import SweepRun


def sweep_results(finished: Sequence[tuple[SweepRun, RunFolder]], num_planned: int) -> dict[str, Any]:
    """Return the values of every run and the fitted laws as JSON-safe data.

    Args:
        finished: Finished runs with their folders.
        num_planned: Number of runs in the whole sweep.

    Returns:
        runs: name, depth, budget, parameters, tokens, flops, val_bpb, hours; optima: one per budget whose parabola has
        a minimum; laws: name, text, exponent, factor, offset, exponent_error; num_planned.
    """
    rows = [_row(run, result) for run, result in finished]
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None})
    optima = [optimum for budget in budgets if (optimum := _optimum(rows, budget)) is not None]
    return {"num_planned": num_planned, "runs": rows, "optima": optima, "laws": _laws(rows, optima)}


def _row(run: SweepRun, result: RunFolder) -> dict[str, Any]:
    last = result.last
    assert result.shape is not None  # a finished run has an export
    return {
        "name": run.folder.name,
        "depth": run.depth,
        "budget": run.budget,
        "parameters": count_parameters(result.shape).scaling,
        "tokens": last["tokens"],
        "flops": last["total_flops"],
        "val_bpb": result.curve("val_bpb")[1][-1],
        "hours": result.training_s / 3600,
    }


def _optimum(rows: Sequence[dict[str, Any]], budget: float) -> dict[str, Any] | None:
    """Return the optimal size and number of tokens of a budget."""
    own = [row for row in rows if row["budget"] == budget]
    losses = [row["val_bpb"] for row in own]
    by_size = fit_parabola([row["parameters"] for row in own], losses)
    by_tokens = fit_parabola([row["tokens"] for row in own], losses)
    if by_size is None or by_tokens is None:
        return None
    return {
        "budget": budget,
        "parameters": by_size.best,
        "tokens": by_tokens.best,
        "val_bpb": by_size.lowest,
        "curvature": by_size.curvature,
        "error": by_size.error,
        "is_inside": by_size.is_inside and by_tokens.is_inside,
    }


def _laws(rows: Sequence[dict[str, Any]], optima: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    laws: list[tuple[str, PowerLaw | None]] = []
    inside = [optimum for optimum in optima if optimum["is_inside"]]
    budgets = [optimum["budget"] for optimum in inside]
    for name, symbol in (("parameters", "N"), ("tokens", "D")):
        laws.append((f"best {symbol}", fit_power_law(budgets, [optimum[name] for optimum in inside])))
    if all(row["budget"] is None for row in rows):
        law = fit_saturating_power_law([row["flops"] for row in rows], [row["val_bpb"] for row in rows])
        laws.append(("val_bpb", law))
    return [
        {
            "name": name,
            "text": _law_text(name, law),
            "exponent": law.exponent,
            "factor": law.factor,
            "offset": law.offset,
            "exponent_error": law.exponent_error,
        }
        for name, law in laws
        if law is not None
    ]


def _law_text(name: str, law: PowerLaw) -> str:
    error = " (two points only)" if law.exponent_error is None else f" (+- {law.exponent_error:.3f})"
    offset = f"{law.offset:.4f} + " if law.offset else ""
    return f"{name} = {offset}{law.factor:.4g} * FLOPs ** {law.exponent:.4f}{error}"


def sweep_page(title: str, results: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return the page of a sweep as Markdown, and its images.

    Args:
        title: Title of the page.
        results: Result of `sweep_results`.
    """
    rows, optima = results["runs"], results["optima"]
    is_budgeted = any(row["budget"] is not None for row in rows)
    images = _budget_plots(results) if is_budgeted else _series_plots(results)
    markdown = fill(
        "sweep.md",
        title=title,
        missing=results["num_planned"] - len(rows),
        num_planned=results["num_planned"],
        runs=[
            [
                row["name"], row["depth"], "" if row["budget"] is None else f"{row['budget']:.3g}",
                f"{row['flops']:.3g}", f"{row['parameters']:,}", f"{row['tokens']:,.0f}",
                f"{row['tokens'] / row['parameters']:.3g}", f"{row['val_bpb']:.4f}", f"{row['hours']:.2f}",
            ]
            for row in rows
        ],
        laws=results["laws"],
        optima=[
            [
                f"{best['budget']:.3g}", f"{best['parameters']:.4g}", f"{best['tokens']:.4g}",
                f"{best['tokens'] / best['parameters']:.1f}", f"{best['val_bpb']:.4f}", f"{best['error']:.4f}", "yes" if best["is_inside"] else "no",
            ]
            for best in optima
        ],
        is_budgeted=is_budgeted,
        images=list(images),
    )  # fmt: skip
    return markdown, images


def _budget_plots(results: dict[str, Any]) -> dict[str, bytes]:
    rows, optima = results["runs"], results["optima"]
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        places, values = points.setdefault(f"{row['budget']:.3g} FLOPs", ([], []))
        places.append(row["parameters"])
        values.append(row["val_bpb"])
    parabolas = {}
    for best in optima:
        name = f"{best['budget']:.3g} FLOPs"
        curve = Parabola(
            best=best["parameters"], lowest=best["val_bpb"], curvature=best["curvature"], is_inside=best["is_inside"]
        )
        places = np.geomspace(min(points[name][0]), max(points[name][0]), 60).tolist()
        parabolas[name] = (places, [curve(place) for place in places])
    title = "loss by size at equal compute"
    plots = {title: curves_png(title, "bits per byte", parabolas, "N", log_x=True, log_y=False, points=points)}
    for law, column, label in _pairs(results["laws"]):
        budgets = [best["budget"] for best in optima]
        line = PowerLaw(exponent=law["exponent"], factor=law["factor"])
        places = np.geomspace(min(budgets), max(budgets), 60).tolist()
        curves = {law["text"]: (places, [line(place) for place in places])}
        found = {law["text"]: (budgets, [best[column] for best in optima])}
        plots[label] = curves_png(label, column, curves, "FLOPs", log_x=True, points=found)
    return plots


def _pairs(laws: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str, str]]:
    kinds = {"best N": ("parameters", "best size by compute"), "best D": ("tokens", "best tokens by compute")}
    return [(law, *kinds[law["name"]]) for law in laws if law["name"] in kinds]


def _series_plots(results: dict[str, Any]) -> dict[str, bytes]:
    rows, title = results["runs"], "loss by compute"
    points = {"runs": ([row["flops"] for row in rows], [row["val_bpb"] for row in rows])}
    curves = {}
    for law in results["laws"]:
        line = PowerLaw(exponent=law["exponent"], factor=law["factor"], offset=law["offset"])
        places = np.geomspace(min(points["runs"][0]), max(points["runs"][0]), 60).tolist()
        curves[law["text"]] = (places, [line(place) for place in places])
    return {title: curves_png(title, "bits per byte", curves, "FLOPs", log_x=True, points=points)}
