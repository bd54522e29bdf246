"""Sweeps: the recipe (a `fit` recipe, depths, compute budgets, a folder), its runs, and the page of their results."""

import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import expand_home, read_json, write_json
from nanochat_lit.common.recipes import find_recipe, read_recipe
from nanochat_lit.evaluation.statistics import (
    Parabola,
    PowerLaw,
    fit_parabola,
    fit_power_law,
    fit_saturating_power_law,
)
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.report.page import Curves, curves_png, fill
from nanochat_lit.report.run_folder import RunFolder, read_run

RECORD_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepRecipe:
    """Contents of a sweep's YAML file."""

    run_dir: str
    """Folder of the sweep; contains a folder per run."""
    fit: str
    """Recipe of each run."""
    depths: list[int]
    """Depths to train."""
    flops_budgets: list[float]
    """Compute budgets in FLOPs; every depth is trained with each. If empty, the recipe determines the horizon."""
    options: dict[str, Any]
    """Additional keys of `fit`, by full name."""

    def __post_init__(self) -> None:
        depths, budgets = self.depths, self.flops_budgets
        if not depths or any(not isinstance(depth, int) or depth < 1 for depth in depths):
            raise UserError(f"depths is {depths}; use integers of at least 1")
        if any(not isinstance(budget, int | float) or not 0 < budget < math.inf for budget in budgets):
            raise UserError(
                f"flops_budgets is {budgets}; use positive numbers such as 1e18 (in YAML 1.0e+18, with a decimal point)"
            )
        for name, values in (("depths", depths), ("flops_budgets", budgets)):
            if len(set(values)) != len(values):
                raise UserError(f"{name} contains a duplicate: {values}")
        for name in ("model.depth", "model.target_flops", "run_dir", "ckpt_path"):
            if name in self.options:
                raise UserError(f"options sets {name}, which the sweep sets itself; remove it")

    @property
    def runs(self) -> list["SweepRun"]:
        """Return the runs in training order: by budget, then by depth."""
        return [
            SweepRun(recipe=self, depth=depth, budget=budget)
            for budget in (sorted(self.flops_budgets) or [None])
            for depth in sorted(self.depths)
        ]

    def check_folder(self) -> None:
        """Raise UserError if the folder is not empty and was not created by a sweep."""
        folder = Path(self.run_dir)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"run_dir {folder} is a file; give a folder")
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
        if found and not any(folder.glob(f"*/{RECORD_FILE}")):
            raise UserError(
                f"{folder} contains {sorted(found)[0]} and was not created by a sweep; choose another run_dir"
            )


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    recipe: SweepRecipe
    """The sweep."""
    depth: int
    """Number of layers."""
    budget: float | None
    """Compute budget, FLOPs; None uses the recipe's horizon."""

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        name = f"d{self.depth:02d}" if self.budget is None else f"{self.budget:.3g}_d{self.depth:02d}".replace("+", "")
        return Path(self.recipe.run_dir) / name

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of `fit`, without those that resume it."""
        recipe = self.recipe
        words = ["fit", "--config", recipe.fit, "--run_dir", str(self.folder), "--model.depth", str(self.depth)]
        if self.budget is not None:
            words += ["--model.num_steps", "null", "--model.target_flops", repr(float(self.budget))]
        for name, value in recipe.options.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
            words += [f"--{name}", text.removesuffix("...\n").strip()]
        first = recipe.runs[0].folder
        if first != self.folder and "data.tokenizer" not in recipe.options:
            words += ["--data.tokenizer", str(first / "tokenizer")]  # identical for all runs, so it is trained once
        return words

    @property
    def command(self) -> list[str]:
        """Return the command that trains or resumes the run."""
        return [sys.executable, "-m", "nanochat_lit", *self.arguments, "--ckpt_path", "last"]

    def record(self) -> dict[str, Any]:
        """Return the identity of the run: everything that it depends on."""
        recipe = Path(find_recipe(self.recipe.fit))
        digest = hashlib.sha256(recipe.read_bytes()).hexdigest() if recipe.is_file() else None
        return {"arguments": self.arguments, "recipe_sha256": digest}

    def begin(self) -> None:
        """Create the folder and record the run's identity.

        Raises:
            UserError: If the folder has another run.
        """
        path = self.folder / RECORD_FILE
        if path.exists():
            if read_json(path) != self.record():
                raise UserError(
                    f"{self.folder} was started with other options or another recipe; delete it, or choose another run_dir"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not a run of this sweep; delete it, or choose another run_dir")
        write_json(path, self.record())

    def finished(self) -> RunFolder | None:
        """Return the run if it is finished, with an export and all steps in the metrics, else None."""
        if not (self.folder / "export" / "provenance.json").is_file():
            return None
        run = read_run(self.folder)
        num_steps = run.plan.get("num_steps")
        return run if isinstance(num_steps, int) and run.num_steps >= num_steps and run.curve("val_bpb")[0] else None


def read_sweep(path: str, changes: Mapping[str, Any]) -> SweepRecipe:
    """Read a sweep recipe.

    Args:
        path: YAML file; recipes/X.yaml also refers to a recipe of the package.
        changes: Fields to replace; None keeps a field, and options are added to those of the file.

    Raises:
        UserError: If the file is missing, is not YAML, or has unknown or missing keys.
    """
    content = read_recipe(Path(find_recipe(path)))
    names = [field.name for field in fields(SweepRecipe)]
    if sorted(map(str, content)) != sorted(names):
        raise UserError(f"{path} is not a sweep recipe; expected keys: {', '.join(names)}; see recipes/miniseries.yaml")
    content = expand_home(content)
    options = {**(content["options"] or {}), **(changes.get("options") or {})}
    given = {name: value for name, value in changes.items() if value is not None}
    return SweepRecipe(**{**content, **given, "options": options})


def sweep_results(finished: Sequence[tuple[SweepRun, RunFolder]], num_planned: int) -> dict[str, Any]:
    """Return the values of every run and the fitted laws as JSON-safe data.

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
    return [{"name": name, "text": _law_text(name, law), **asdict(law)} for name, law in laws if law is not None]


def _law_text(name: str, law: PowerLaw) -> str:
    error = " (two points only)" if law.exponent_error is None else f" (+- {law.exponent_error:.3f})"
    offset = f"{law.offset:.4f} + " if law.offset else ""
    return f"{name} = {offset}{law.factor:.4g} * FLOPs ** {law.exponent:.4f}{error}"


def sweep_page(title: str, results: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return the page of a sweep as Markdown, and its images."""
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
        shape = {key: best[key] for key in ("curvature", "is_inside")}
        parabola = Parabola(best=best["parameters"], lowest=best["val_bpb"], **shape)
        parabolas[name] = _curve(parabola, points[name][0])
    title = "loss by size at equal compute"
    plots = {title: curves_png(title, "bits per byte", parabolas, "N", log_x=True, log_y=False, points=points)}
    kinds = {"best N": ("parameters", "best size by compute"), "best D": ("tokens", "best tokens by compute")}
    for law in (law for law in results["laws"] if law["name"] in kinds):
        column, label = kinds[law["name"]]
        budgets = [best["budget"] for best in optima]
        found = {law["text"]: (budgets, [best[column] for best in optima])}
        plots[label] = curves_png(label, column, _fits([law], budgets), "FLOPs", log_x=True, points=found)
    return plots


def _series_plots(results: dict[str, Any]) -> dict[str, bytes]:
    rows, title = results["runs"], "loss by compute"
    flops = [row["flops"] for row in rows]
    points = {"runs": (flops, [row["val_bpb"] for row in rows])}
    fits = _fits(results["laws"], flops)
    return {title: curves_png(title, "bits per byte", fits, "FLOPs", log_x=True, points=points)}


def _fits(laws: Sequence[dict[str, Any]], xs: Sequence[float]) -> Curves:
    """Return the curves of laws over the range of the values."""
    lines = {law["text"]: PowerLaw(**{key: law[key] for key in ("exponent", "factor", "offset")}) for law in laws}
    return {text: _curve(line, xs) for text, line in lines.items()}


def _curve(line: Callable[[float], float], xs: Sequence[float]) -> tuple[list[float], list[float]]:
    places = np.geomspace(min(xs), max(xs), 60).tolist()
    return places, [line(place) for place in places]
