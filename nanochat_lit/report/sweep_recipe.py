"""Recipe of a sweep: a `fit` recipe, depths, compute budgets and a folder."""

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
            words += [
                f"--{name}",
                yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip(),
            ]
        first = recipe.runs[0]
        if first.folder != self.folder and "data.tokenizer" not in recipe.options:
            words += [
                "--data.tokenizer",
                str(first.folder / "tokenizer"),
            ]  # identical for all runs, so it is trained once
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
    file = Path(find_recipe(path))
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a sweep recipe: {str(error).splitlines()[0]}") from None
    names = [field.name for field in fields(SweepRecipe)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise UserError(f"{path} is not a sweep recipe; expected keys: {', '.join(names)}; see recipes/miniseries.yaml")
    content = expand_home(content)
    options = {**(content["options"] or {}), **(changes.get("options") or {})}
    given = {name: value for name, value in changes.items() if value is not None}
    return SweepRecipe(**{**content, **given, "options": options})
