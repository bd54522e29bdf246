"""What a sweep is: a recipe of `fit`, the depths and budgets to run it with, and a folder."""

import hashlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import expand_home, read_json, write_json
from nanochat_lit.common.recipes import find_recipe
from nanochat_lit.report.run_folder import RunFolder, read_run

RECORD_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepRecipe:
    """The whole of a sweep, as its YAML file has it."""

    run_dir: str
    """Folder of the sweep; every run has its own in it."""
    fit: str
    """Recipe of the single run."""
    depths: list[int]
    """Depths to train."""
    flops_budgets: list[float]
    """Compute of a run; every depth is trained with each of them. Empty: every depth as long as the recipe says."""
    options: dict[str, Any]
    """Keys of `fit`, by their full names, for every run."""

    def __post_init__(self) -> None:
        depths, budgets = self.depths, self.flops_budgets
        if not depths or any(not isinstance(depth, int) or depth < 1 for depth in depths):
            raise UserError(f"depths is {depths}; give whole numbers of at least 1")
        if any(not isinstance(budget, int | float) or not 0 < budget < math.inf for budget in budgets):
            raise UserError(
                f"flops_budgets is {budgets}; give positive numbers such as 1e18 (with a point: 1.0e+18 in YAML)"
            )
        for name, values in (("depths", depths), ("flops_budgets", budgets)):
            if len(set(values)) != len(values):
                raise UserError(f"{name} names one twice: {values}")
        for name in ("model.depth", "model.target_flops", "run_dir", "ckpt_path"):
            if name in self.options:
                raise UserError(f"options sets {name}, which is the sweep's to set; leave it out")

    @property
    def runs(self) -> list["SweepRun"]:
        """In the order in which they are trained: by budget, then by depth."""
        return [
            SweepRun(recipe=self, depth=depth, budget=budget)
            for budget in (sorted(self.flops_budgets) or [None])
            for depth in sorted(self.depths)
        ]

    def check_folder(self) -> None:
        """Raise UserError if the folder holds something, and no sweep has made it."""
        folder = Path(self.run_dir)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"run_dir {folder} is a file; give a folder")
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
        if found and not any(folder.glob(f"*/{RECORD_FILE}")):
            raise UserError(f"{folder} holds {sorted(found)[0]} and was not made by a sweep; give another run_dir")


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    recipe: SweepRecipe
    """The sweep."""
    depth: int
    """Layers."""
    budget: float | None
    """FLOPs; None leaves the length to the recipe."""

    @property
    def folder(self) -> Path:
        """Of this run."""
        name = f"d{self.depth:02d}" if self.budget is None else f"{self.budget:.3g}_d{self.depth:02d}".replace("+", "")
        return Path(self.recipe.run_dir) / name

    @property
    def arguments(self) -> list[str]:
        """Of `fit`, without what continues it."""
        recipe = self.recipe
        words = ["fit", "--config", recipe.fit, "--run_dir", str(self.folder), "--model.depth", str(self.depth)]
        if self.budget is not None:
            words += ["--model.num_steps", "null", "--model.target_flops", repr(float(self.budget))]
        for name, value in recipe.options.items():
            words += [
                f"--{name}",
                yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip(),
            ]
        first = recipe.runs[0]
        if first.folder != self.folder and "data.tokenizer" not in recipe.options:
            words += ["--data.tokenizer", str(first.folder / "tokenizer")]  # the same for all, so it is made once
        return words

    @property
    def command(self) -> list[str]:
        """Of the process that trains it, or goes on with it."""
        return [sys.executable, "-m", "nanochat_lit", *self.arguments, "--ckpt_path", "last"]

    def record(self) -> dict[str, Any]:
        """What the run depends on."""
        recipe = Path(find_recipe(self.recipe.fit))
        digest = hashlib.sha256(recipe.read_bytes()).hexdigest() if recipe.is_file() else None
        return {"arguments": self.arguments, "recipe_sha256": digest}

    def begin(self) -> None:
        """Note in its folder what it is a run of.

        Raises:
            UserError: If the folder has a run of something else.
        """
        path = self.folder / RECORD_FILE
        if path.exists():
            if read_json(path) != self.record():
                raise UserError(
                    f"{self.folder} was begun with other options or another recipe; delete it, or give another run_dir"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not a run of this sweep; delete it, or give another run_dir")
        write_json(path, self.record())

    def finished(self) -> RunFolder | None:
        """The run if it is done: its export is there, and all of its steps are in the metrics."""
        if not (self.folder / "export" / "provenance.json").is_file():
            return None
        run = read_run(self.folder)
        num_steps = run.plan.get("num_steps")
        return run if isinstance(num_steps, int) and run.num_steps >= num_steps and run.curve("val_bpb")[0] else None


def read_sweep(path: str, changes: Mapping[str, Any]) -> SweepRecipe:
    """Read a recipe of a sweep.

    Args:
        path: YAML file; recipes/X.yaml is found in the package, too.
        changes: Fields to replace; None leaves one as it is, options are added to those of the file.

    Raises:
        UserError: If it is missing, not YAML, or has unknown keys or lacks some.
    """
    file = Path(find_recipe(path))
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a recipe of a sweep: {str(error).splitlines()[0]}") from None
    names = [field.name for field in fields(SweepRecipe)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise UserError(f"{path} is not a sweep recipe; expected keys: {', '.join(names)}; see recipes/miniseries.yaml")
    content = expand_home(content)
    options = {**(content["options"] or {}), **(changes.get("options") or {})}
    given = {name: value for name, value in changes.items() if value is not None}
    return SweepRecipe(**{**content, **given, "options": options})
