"""Base class of benchmark evaluations during training."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.errors import UserError
from nanochat_lit.evaluation.score_report import headline, write_report

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class TaskEvaluator(Callback):
    """Evaluates every N steps and after the last one, before the checkpoint of that step is written.

    A run killed during an evaluation therefore repeats it when resumed. Data are loaded and checked before the first
    step. The examples are distributed over the ranks. Scores are logged in the row of the step; the full report is
    written to evaluation/ in the run folder.

    Args:
        every: Steps between evaluations; 0 evaluates only after the last step.
    """

    def __init__(self, every: int = 0) -> None:
        if every < 0:
            raise UserError(f"every is {every}; use 0 (only at the end) or a positive number of steps")
        self.every = every
        self._step_seen = 0

    def load(self) -> None:
        """Load and check the tasks."""
        raise NotImplementedError

    def check(self, module: "LanguageModule") -> None:
        """Raise UserError if the tasks do not suit the model and its tokenizer; called just before the first step."""

    def evaluate(self, module: "LanguageModule") -> dict[str, Any]:
        """Return the report of `score_report.summarize` for the current model; call it on every rank."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.load()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_seen = trainer.global_step
        self.check(cast("LanguageModule", pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module, step = cast("LanguageModule", pl_module), trainer.global_step
        if step == self._step_seen:
            return  # this micro-batch only accumulated
        self._step_seen = step
        if step != module.plan.num_steps and (self.every == 0 or step % self.every):
            return
        module.model.eval()
        report = self.evaluate(module)
        module.model.train()
        module.log_figures(figures_of(report))
        if trainer.is_global_zero:
            write_report(Path(trainer.default_root_dir) / "evaluation" / f"step{step:06d}", report)
            print(f"step {step}: {headline(report)[0]}", file=sys.stderr)


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a report for a row of metrics.

    Args:
        report: Result of `score_report.summarize`.

    Returns:
        METRIC (METRIC_partial if tasks are missing, since it is not comparable); METRIC_v2 if there is a second version
        of the baselines; METRIC/TASK, the accuracy of each task; METRIC/TASK_format, the fraction of answers in the
        task's format.
    """
    metric = report["metric"]
    name = f"{metric}_partial" if report["is_partial"] else metric
    figures = {
        (name if number == 0 else f"{name}_{version}"): score["value"]
        for number, (version, score) in enumerate(report["scores"].items())
        if score["value"] is not None
    }
    figures |= {f"{metric}/{task['label']}": task["accuracy"] for task in report["tasks"]}
    formed = [task for task in report["tasks"] if "format_rate" in task]
    return figures | {f"{metric}/{task['label']}_format": task["format_rate"] for task in formed}
