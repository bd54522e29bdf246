"""CORE evaluation during training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.distributed import world_size
from nanochat_lit.evaluation.core_bundle import BASELINES, CORE_LABELS, CoreTask, fetch_bundle, load_bundle
from nanochat_lit.evaluation.core_metric import evaluate_core
from nanochat_lit.evaluation.score_report import summarize
from nanochat_lit.evaluation.scoring import GPTScorer
from nanochat_lit.training.callbacks.task_evaluator import TaskEvaluator

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class CoreEvaluator(TaskEvaluator):
    """Evaluates CORE, few-shot, as `nanochat-lit evaluate core` does.

    Args:
        bundle: Folder of an evaluation bundle; None downloads it once.
        tasks: Tasks to run; None runs all tasks of the bundle.
        max_per_task: Maximum number of examples per task, sampled at random; None uses all.
        every: Steps between evaluations; 0 evaluates only after the last step.
        bundle_sha256: Expected checksum of the downloaded bundle; None skips the check.
    """

    def __init__(
        self,
        bundle: str | None = None,
        tasks: list[str] | None = None,
        max_per_task: int | None = 500,
        every: int = 0,
        bundle_sha256: str | None = None,
    ) -> None:
        super().__init__(every)
        self.bundle, self.tasks, self.max_per_task, self.bundle_sha256 = bundle, tasks, max_per_task, bundle_sha256
        self.core_tasks: list[CoreTask] = []

    def load(self) -> None:
        """Read the bundle, downloading it if necessary."""
        folder = Path(self.bundle) if self.bundle is not None else fetch_bundle(sha256=self.bundle_sha256)
        self.core_tasks = load_bundle(folder, self.max_per_task, self.tasks)

    def evaluate(self, module: "LanguageModule") -> dict[str, Any]:
        """Evaluate every task with the model in training."""
        model = module.model
        results = evaluate_core(GPTScorer(model), module.tokenizer, self.core_tasks, device=model.device)
        baselines = {version: {t.label: t.baselines()[version] for t in self.core_tasks} for version in BASELINES}
        about = {"bundle": self.bundle, "max_per_task": self.max_per_task, "world_size": world_size()}
        return summarize("core", CORE_LABELS, results, baselines, about)
