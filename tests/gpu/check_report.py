"""What a part of the check has found: values, and failures that do not end it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Report:
    """Values and failures of one part, saved at every change, so that a crash loses none.

    Args:
        path: JSON file of the findings.
        is_dry_run: Kernels do nothing: shapes are tiny, and no number is compared.
        out: Folder for whatever else the part writes.
        peer: Checkout of nanochat.
    """

    def __init__(self, path: Path, *, is_dry_run: bool, out: Path, peer: Path | None = None) -> None:
        self.path, self.is_dry_run, self.out, self.peer = path, is_dry_run, out, peer
        self.values: dict[str, Any] = {}
        self.failures: list[str] = []
        self.save()

    def save(self) -> None:
        """Write what is known so far."""
        self.path.write_text(json.dumps({"values": self.values, "failures": self.failures}), "utf-8")

    def value(self, name: str, value: Any) -> None:
        """Record a value."""
        self.values[name] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        self.save()

    def must(self, is_right: bool, failure: str) -> None:
        """Record a failure unless something holds that does not depend on what kernels compute."""
        if not is_right:
            self.failures.append(failure)
            self.save()

    def number_must(self, is_right: bool, failure: str) -> None:
        """The same for what kernels compute: not asked in a dry run."""
        self.must(is_right or self.is_dry_run, failure)

    def near(self, name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        """Record the relative error, in the 2-norm, of a tensor, and a failure if it exceeds the tolerance."""
        found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
        error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
        self.value(name, error)
        self.number_must(error <= tolerance, f"{name}: relative error {error:.3g} exceeds {tolerance:.3g}")


def compilations() -> int:
    """Graphs that torch.compile has made in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
