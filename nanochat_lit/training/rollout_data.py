"""DataModule of questions with verifiable answers for reinforcement learning."""

import sys
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any, cast

import torch

from nanochat_lit.common.distributed import is_rank_zero, rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation, Task
from nanochat_lit.tokenizer import render_for_completion
from nanochat_lit.training.datamodules import Batch, LanguageDataModule
from nanochat_lit.training.rollout_loader import RolloutLoader

if TYPE_CHECKING:
    from nanochat_lit.training.rl import RLModule

VAL_BATCH = 64
"""Questions per validation batch; each batch goes to one rank."""


class RolloutDataModule(LanguageDataModule):
    """Questions of a training and a validation task.

    Args:
        train: Training task; each epoch asks its questions in a different order.
        val: Task with held-out questions.
        micro_batch_size: Sequences (completions) per device per forward pass.
        val_questions: Maximum number of held-out questions, from the start of the task.
        val_samples: Sampled answers per held-out question, in addition to the greedy one, for pass@1 and pass@k; 0 for
            none.
        seed: Seed of the order of questions and of sampling.
    """

    def __init__(
        self,
        train: Task,
        val: Task,
        micro_batch_size: int = 16,
        val_questions: int = 200,
        val_samples: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(None, micro_batch_size, 0, seed)
        if val_questions < 1:
            raise UserError(f"val_questions is {val_questions}; it must be at least 1")
        if val_samples < 0:
            raise UserError(f"val_samples is {val_samples}; use 0 (none) or the number of answers to sample")
        self.train, self.val = train, val
        self.val_questions = min(val_questions, len(val))
        self.val_samples = val_samples
        self.prompts: dict[int, list[int]] = {}
        """Training prompts that leave space for an answer in the context, by question number."""
        self._rollout_loader: RolloutLoader | None = None
        self._order: tuple[int, list[int]] = (-1, [])

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit" or self.prompts:
            return
        prompts = [self.prompt(self.train[index]) for index in range(len(self.train))]
        self.prompts = {index: prompt for index, prompt in enumerate(prompts) if prompt is not None}
        if not self.prompts:
            raise UserError(
                f"no question of {type(self.train).__name__} leaves space for an answer in the model's context"
            )
        if len(self.prompts) < len(prompts) and is_rank_zero():
            left_out = len(prompts) - len(self.prompts)
            print(
                f"{left_out:,} of {len(prompts):,} questions leave no space for an answer in the model's context and are "
                "not asked",
                file=sys.stderr,
            )

    def prompt(self, conversation: Conversation) -> list[int] | None:
        """Return the prompt for the last answer of a conversation; None if it leaves no space for one."""
        token_ids = render_for_completion(self.tokenizer, conversation)
        return token_ids if len(token_ids) < cast("RLModule", self.module).context else None

    def question(self, number: int) -> int:
        """Return the index of the `number`-th question of the run; every epoch is a seeded permutation."""
        epoch, place = divmod(number, len(self.prompts))
        if self._order[0] != epoch:
            order = sorted(self.prompts)
            Random(f"{self.seed}-{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    @property
    def train_loader(self) -> RolloutLoader:  # type: ignore[override]
        """The loader that training reads from, once it does."""
        assert self._rollout_loader is not None, "the loader is made when training starts"
        return self._rollout_loader

    def train_dataloader(self) -> RolloutLoader:
        module = cast("RLModule", self.module)
        self._rollout_loader = RolloutLoader(module.collect, self.rows, module.updates_per_batch)
        if self._positions:
            self._rollout_loader.seek(self._own_place(self._positions))
        return self._rollout_loader

    @staticmethod
    def _own_place(positions: list[dict[str, Any]]) -> dict[str, Any]:
        if len(positions) == world_size():
            return positions[rank()]
        if positions[0]["rows"] is not None and is_rank_zero():
            print(
                f"the rollouts in use were those of {len(positions)} rank(s): continuing with new ones", file=sys.stderr
            )
        return {"number": positions[0]["number"], "rows": None, "num_given": 0}

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of question indices."""
        for start in range(0, self.val_questions, VAL_BATCH):
            yield {"questions": torch.arange(start, min(start + VAL_BATCH, self.val_questions))}
