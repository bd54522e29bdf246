"""Sweeps over sizes and compute budgets, or over variants and seeds: their recipe, their runs and their page."""

import hashlib
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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
    mean_interval,
)
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.report.page import Curves, curves_png, fill
from nanochat_lit.report.run_folder import RunFolder, read_run

RECORD_FILE = "sweep.json"
HORIZONS_FILE = "horizons.json"
GRID_KEYS, VARIANT_KEYS = ("depths", "flops_budgets"), ("variants", "seeds", "equal")
MEASURED_STEPS, WARM_STEPS, ROUNDS = 8, 2, 3
MEASUREMENT = {"model.num_steps": MEASURED_STEPS, "log_every": 1, "trainer.limit_val_batches": 0, "overwrite": True}
"""Steps per measurement of a variant's cost, how many of them are left out, and measurements per variant."""


@dataclass(frozen=True, kw_only=True)
class SweepRecipe:
    """Contents of a sweep's YAML file: either depths and flops_budgets, or variants, seeds and equal."""

    run_dir: str
    """Folder of the sweep; contains a folder per run."""
    fit: str
    """Recipe of each run."""
    options: dict[str, Any]
    """Additional keys of `fit`, by full name."""
    depths: list[int] = field(default_factory=list)
    """Depths to train."""
    flops_budgets: list[float] = field(default_factory=list)
    """Compute budgets in FLOPs; every depth is trained with each. If empty, the recipe determines the horizon."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys of `fit` by the variant's name; the first is the reference, which the others are compared with."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of weights and data; every variant is trained with each."""
    equal: str = "time"
    """The same for all variants: time (CPU time; wall-clock time on a GPU), tokens or flops."""

    def __post_init__(self) -> None:
        if self.variants:
            self._check_variants()
        else:
            self._check_grid()
        for key, values in (("depths", self.depths), ("flops_budgets", self.flops_budgets), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise UserError(f"{key} contains a duplicate: {values}")
        own = ("seed_everything", "data.seed") if self.variants else ("model.depth", "model.target_flops")
        for options in (self.options, *self.variants.values()):
            if found := [name for name in (*own, "run_dir", "ckpt_path") if name in options]:
                raise UserError(f"options sets {found[0]}, which the sweep sets itself; remove it")

    def _check_variants(self) -> None:
        for name, options in self.variants.items():
            if not re.fullmatch(r"[\w.+-]+", str(name)) or not isinstance(options, dict):
                raise UserError(f"variant {name!r} needs a name of letters, digits and _ . + -, and a dict of options")
            if "model.num_steps" in options:
                raise UserError(f"variant {name} sets model.num_steps, which `equal` determines; set it in options")
        if not self.seeds or any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise UserError(f"seeds is {self.seeds}; use integers of at least 0, such as [1, 2, 3]")
        if self.equal not in ("time", "tokens", "flops"):
            raise UserError(f"equal is {self.equal!r}; use time, tokens or flops")

    def _check_grid(self) -> None:
        depths, budgets = self.depths, self.flops_budgets
        if not depths or any(not isinstance(depth, int) or depth < 1 for depth in depths):
            raise UserError(f"depths is {depths}; use integers of at least 1")
        if any(not isinstance(budget, int | float) or not 0 < budget < math.inf for budget in budgets):
            raise UserError(
                f"flops_budgets is {budgets}; use positive numbers such as 1e18 (in YAML 1.0e+18, with a decimal point)"
            )

    @property
    def runs(self) -> list["SweepRun"]:
        """Return the runs in training order: by budget, then by depth; or by seed, then by variant."""
        if self.variants:
            return [SweepRun(recipe=self, variant=name, seed=seed) for seed in self.seeds for name in self.variants]
        return [
            SweepRun(recipe=self, depth=depth, budget=budget)
            for budget in (sorted(self.flops_budgets) or [None])
            for depth in sorted(self.depths)
        ]

    @property
    def horizons(self) -> dict[str, int]:
        """Number of steps of each variant except the reference; empty until they are measured."""
        return read_json(path) if (path := Path(self.run_dir) / HORIZONS_FILE).exists() else {}

    def set_horizons(self, measure: Callable[[list[str]], None]) -> None:
        """Determine once how many steps of the variants equal the reference's first run, which must be finished.

        `measure` runs a command of `fit`. Variants take turns, so that a machine that others use treats them alike.
        """
        known, (reference, *_) = self.horizons, self.variants
        per_step: dict[str, list[float]] = {name: [] for name in self.variants if name not in known}
        if len(per_step) == 1:  # only the reference
            return
        for _ in range(ROUNDS if self.equal == "time" else 1):
            for name, costs in per_step.items():
                folder = Path(self.run_dir) / "measured" / name
                words = SweepRun(recipe=self, variant=name, seed=self.seeds[0]).words(folder, MEASUREMENT)
                measure([sys.executable, "-m", "nanochat_lit", *words])
                costs += _per_step(read_run(folder), self.equal)
        whole = read_run(self.runs[0].folder).plan["num_steps"] * statistics.median(per_step.pop(reference))
        found = {name: max(1, round(whole / statistics.median(costs))) for name, costs in per_step.items()}
        write_json(Path(self.run_dir) / HORIZONS_FILE, {**known, **found})

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
    depth: int | None = None
    """Number of layers; None in a sweep of variants."""
    budget: float | None = None
    """Compute budget, FLOPs; None uses the recipe's horizon."""
    variant: str | None = None
    """Name of the variant; None in a sweep of depths."""
    seed: int | None = None
    """Seed of weights and data; None uses the recipe's."""

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        if self.variant is not None:
            return Path(self.recipe.run_dir) / f"{self.variant}_seed{self.seed}"
        name = f"d{self.depth:02d}" if self.budget is None else f"{self.budget:.3g}_d{self.depth:02d}".replace("+", "")
        return Path(self.recipe.run_dir) / name

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of `fit`, without those that resume it."""
        return self.words(self.folder, {})

    def words(self, folder: Path, changes: Mapping[str, Any]) -> list[str]:
        """Return the arguments of `fit` in a folder, with changed options."""
        recipe, first = self.recipe, self.recipe.runs[0].folder
        if self.variant is None:
            options: dict[str, Any] = {"model.depth": self.depth}
            if self.budget is not None:
                options |= {"model.num_steps": None, "model.target_flops": float(self.budget)}
            options |= recipe.options
        else:
            options = recipe.options | recipe.variants[self.variant]
            options |= {"seed_everything": self.seed, "data.seed": self.seed}
            if self.variant in recipe.horizons:
                options["model.num_steps"] = recipe.horizons[self.variant]
        if first != folder:
            options.setdefault("data.tokenizer", str(first / "tokenizer"))  # the same for all, so it is trained once
        words = ["fit", "--config", recipe.fit, "--run_dir", str(folder)]
        for name, value in (options | {**changes}).items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
            words += [f"--{name}", text.removesuffix("...\n").strip()]
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
        """Create the folder and record the run's identity; UserError if the folder has another run."""
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
    """Read a sweep recipe, a YAML file (recipes/X.yaml may be in the package), with some fields replaced by `changes`.

    A change of None keeps a field; options are added to those of the file.

    Raises:
        UserError: If the file is missing, is not YAML, or has unknown or missing keys.
    """
    content = read_recipe(Path(find_recipe(path)))
    keys = ("run_dir", "fit", "options", *(VARIANT_KEYS if "variants" in content else GRID_KEYS))
    given = {name: value for name, value in changes.items() if value is not None}
    for name in content | given:
        if name not in keys:
            raise UserError(f"{path} is a sweep of {', '.join(keys[3:])}; it has no {name}")
    if missing := [name for name in keys if name not in content]:
        raise UserError(f"{path} is not a sweep recipe: {missing[0]} is missing; see recipes/miniseries.yaml")
    content = expand_home(content)
    options = {**(content["options"] or {}), **(changes.get("options") or {})}
    return SweepRecipe(**{**content, **given, "options": options})


def _clock(run: RunFolder) -> str:
    return "cpu_seconds" if run.sessions and run.sessions[-1]["device"] == "cpu" else "seconds"


def _per_step(run: RunFolder, equal: str) -> list[float]:
    """Return what steps of a measurement cost: seconds of each, or their tokens or FLOPs."""
    if equal == "time":
        times = run.curve(_clock(run))[1]
        return [after - before for before, after in pairwise(times[WARM_STEPS - 1 :])]
    return [run.plan[{"tokens": "total_tokens", "flops": "total_flops"}[equal]] / MEASURED_STEPS]


def sweep_results(finished: Sequence[tuple[SweepRun, RunFolder]], num_planned: int) -> dict[str, Any]:
    """Return the values of every run and the fitted laws as JSON-safe data.

    runs have name, depth, budget, parameters, tokens, flops, val_bpb, hours; optima are one per budget whose parabola
    has a minimum. In a sweep of variants, runs have variant, seed, steps and seconds, and `variants` replaces optima
    and laws; see `_comparison`.
    """
    rows = [_row(run, result) for run, result in finished]
    if variants := finished[0][0].recipe.variants:
        return {"num_planned": num_planned, "runs": rows, "variants": _comparison([*variants], rows), "laws": []}
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
        "variant": run.variant,
        "seed": run.seed,
        "steps": result.num_steps,
        "seconds": result.total(_clock(result)),
        "parameters": count_parameters(result.shape).scaling,
        "tokens": last["tokens"],
        "flops": last["total_flops"],
        "val_bpb": result.curve("val_bpb")[1][-1],
        "hours": result.total("seconds") / 3600,
    }


def _comparison(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare each variant with the first one by the seeds that both have finished.

    Returns:
        Per variant name, steps, seconds (the mean of its runs), val_bpb (by seed), differences (by seed), mean, low, high.
    """
    found = []
    base = {row["seed"]: row["val_bpb"] for row in rows if row["variant"] == names[0]}
    for name in names:
        own = [row for row in rows if row["variant"] == name]
        pairs = {row["seed"]: row["val_bpb"] - base[row["seed"]] for row in own if row["seed"] in base}
        one = {"name": name, "val_bpb": {row["seed"]: row["val_bpb"] for row in own}, "differences": pairs}
        one |= {key: statistics.mean([row[key] for row in own] or [0]) for key in ("steps", "seconds")}
        found.append(one | dict(zip(("mean", "low", "high"), mean_interval(list(pairs.values())), strict=True)))
    return found


def _optimum(rows: Sequence[dict[str, Any]], budget: float) -> dict[str, Any] | None:
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
    return [{"name": name, "text": _law_text(name, law), **law._asdict()} for name, law in laws if law is not None]


def _law_text(name: str, law: PowerLaw) -> str:
    error = " (two points only)" if law.exponent_error is None else f" (+- {law.exponent_error:.3f})"
    offset = f"{law.offset:.4f} + " if law.offset else ""
    return f"{name} = {offset}{law.factor:.4g} * FLOPs ** {law.exponent:.4f}{error}"


def sweep_page(title: str, results: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return the page of a sweep as Markdown, and its images."""
    if "variants" in results:
        return _variants_page(title, results)
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


def _variants_page(title: str, results: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    variants, image = results["variants"], "difference to the first variant"
    others = [(at, one) for at, one in enumerate(variants) if at and one["differences"]]
    points = {one["name"]: ([at] * len(one["differences"]), list(one["differences"].values())) for at, one in others}
    bars = {one["name"]: ([at, at], [one["low"], one["high"]]) for at, one in others if one["low"] is not None}
    images = {image: curves_png(image, "bits per byte", bars, "variant", log_y=False, points=points)} if others else {}
    markdown = fill(
        "variants.md",
        title=title,
        missing=results["num_planned"] - len(results["runs"]),
        num_planned=results["num_planned"],
        rows=[
            [
                one["name"], one["steps"], f"{one['seconds']:.0f}", ", ".join(f"{value:.4f}" for value in one["val_bpb"].values()),
                "" if one["mean"] is None else f"{one['mean']:+.4f}", "" if one["low"] is None else f"{one['low']:+.4f} to {one['high']:+.4f}",
            ]
            for one in variants
        ],
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
    lines = {law["text"]: PowerLaw(**{key: law[key] for key in ("exponent", "factor", "offset")}) for law in laws}
    return {text: _curve(line, xs) for text, line in lines.items()}


def _curve(line: Callable[[float], float], xs: Sequence[float]) -> tuple[list[float], list[float]]:
    places = np.geomspace(min(xs), max(xs), 60).tolist()
    return places, [line(place) for place in places]
