"""Evaluations of benchmarks during training."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.answerer import Answering, EngineAnswerer
from nanochat_lit.evaluation.chat_core import (
    ChatTask,
    check_tasks,
    code_runner,
    evaluate_chat,
    load_chat_tasks,
    summarize_chat,
)
from nanochat_lit.evaluation.core import CoreTask, evaluate_core, fetch_bundle, load_bundle, summarize_core
from nanochat_lit.evaluation.score_report import headline, write_report
from nanochat_lit.evaluation.scoring import GPTScorer
from nanochat_lit.training.callbacks import StepCallback
from nanochat_lit.training.module import LanguageModule


class TaskEvaluator(StepCallback):
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

    def load(self) -> None:
        """Load and check the tasks."""
        raise NotImplementedError

    def check(self, module: LanguageModule) -> None:
        """Raise UserError if the tasks do not suit the model and its tokenizer; called just before the first step."""

    def evaluate(self, module: LanguageModule) -> dict[str, Any]:
        """Return the report of `score_report.summarize` for the current model; call it on every rank."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.load()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.check(cast(LanguageModule, pl_module))

    def on_step_end(self, trainer: Trainer, module: LanguageModule, step: int) -> None:
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
    """Return the values of a report of `summarize` for a row of metrics.

    METRIC (METRIC_partial if tasks are missing, since it is not comparable); METRIC_v2 if there is a second version of
    the baselines; METRIC/TASK, the accuracy of each task; METRIC/TASK_format, the fraction of answers in the task's
    format.
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

    def evaluate(self, module: LanguageModule) -> dict[str, Any]:
        """Evaluate every task with the model in training."""
        results = evaluate_core(GPTScorer(module.model), module.tokenizer, self.core_tasks)
        return summarize_core(self.core_tasks, results, {"bundle": self.bundle, "max_per_task": self.max_per_task})


class ChatCoreEvaluator(TaskEvaluator):
    """Evaluates ChatCORE with greedy decoding, as `nanochat-lit evaluate chat` does.

    Args:
        tasks: Tasks to run; None runs ARC-Easy, ARC-Challenge, MMLU, GSM8K, and HumanEval if a sandbox is available.
        paths: Local files of tasks; other tasks are downloaded from the Hugging Face hub.
        max_per_task: Maximum number of questions per task, sampled at random; None uses all.
        every: Steps between evaluations; 0 evaluates only after the last step.
        max_new_tokens: Maximum length of an answer, tokens.
    """

    def __init__(
        self,
        tasks: list[str] | None = None,
        paths: dict[str, str] | None = None,
        max_per_task: int | None = 200,
        every: int = 0,
        max_new_tokens: int = 512,
    ) -> None:
        super().__init__(every)
        self.tasks, self.paths, self.max_per_task = tasks, paths, max_per_task
        self.answering = Answering(max_new_tokens=max_new_tokens)
        self.chat_tasks: list[ChatTask] = []

    def load(self) -> None:
        """Load the tasks."""
        self.chat_tasks = load_chat_tasks(self.tasks, self.paths, self.max_per_task, code_runner(self.tasks))

    def check(self, module: LanguageModule) -> None:
        """Check that the answer letters suit the tokenizer."""
        check_tasks(EngineAnswerer(Engine(module.model, module.tokenizer)), self.chat_tasks)

    def evaluate(self, module: LanguageModule) -> dict[str, Any]:
        """Evaluate the model in training."""
        answerer = EngineAnswerer(Engine(module.model, module.tokenizer))
        results = evaluate_chat(answerer, self.chat_tasks, self.answering)
        return summarize_chat(self.chat_tasks, results, {"max_per_task": self.max_per_task})
