"""CORE while a base model trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.distributed import world_size
from nanochat_lit.evaluation.bundle_download import fetch_bundle
from nanochat_lit.evaluation.core_bundle import BASELINES, CORE_LABELS, CoreTask, load_bundle
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
        tasks: Only these tasks; None takes all that the bundle has.
        max_per_task: Most examples of a task, drawn from all; None takes all.
        every: Steps between evaluations; 0 evaluates after the last step only.
        bundle_sha256: Checksum that a downloaded bundle must have; None trusts the address.
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
        """Read the bundle, from its folder or the internet."""
        folder = Path(self.bundle) if self.bundle is not None else fetch_bundle(sha256=self.bundle_sha256)
        self.core_tasks = load_bundle(folder, self.max_per_task, self.tasks)

    def evaluate(self, module: "LanguageModule") -> dict[str, Any]:
        """Score every task with the model in training."""
        model = module.model
        results = evaluate_core(GPTScorer(model), module.tokenizer, self.core_tasks, device=model.device)
        baselines = {version: {t.label: t.baselines()[version] for t in self.core_tasks} for version in BASELINES}
        about = {"bundle": self.bundle, "max_per_task": self.max_per_task, "world_size": world_size()}
        return summarize("core", CORE_LABELS, results, baselines, about)
