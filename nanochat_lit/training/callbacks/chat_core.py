"""ChatCORE evaluation during training."""

from typing import TYPE_CHECKING, Any

from nanochat_lit.common.distributed import world_size
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.answerer import Answering, EngineAnswerer
from nanochat_lit.evaluation.chat_core import check_tasks, evaluate_chat
from nanochat_lit.evaluation.chat_tasks import CHAT_BASELINES, ChatTask, code_runner, load_chat_tasks
from nanochat_lit.evaluation.score_report import summarize
from nanochat_lit.training.callbacks.task_evaluator import TaskEvaluator

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


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

    def check(self, module: "LanguageModule") -> None:
        """Check that the answer letters and the settings suit the model."""
        check_tasks(_answerer(module), self.chat_tasks, self.answering)

    def evaluate(self, module: "LanguageModule") -> dict[str, Any]:
        """Evaluate the model in training."""
        results = evaluate_chat(_answerer(module), self.chat_tasks, self.answering)
        baselines = {"chat_core": {task.label: task.baseline for task in self.chat_tasks}}
        about = {"max_per_task": self.max_per_task, "world_size": world_size()}
        return summarize("chat_core", list(CHAT_BASELINES), results, baselines, about)


def _answerer(module: "LanguageModule") -> EngineAnswerer:
    return EngineAnswerer(Engine(module.model, module.tokenizer))
