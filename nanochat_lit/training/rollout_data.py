"""Questions with verifiable answers, their rollouts as training sequences, and metrics of the policy."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from nanochat_lit.common.distributed import rank, say, world_size
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.hardware import padded_length
from nanochat_lit.data.loader import ENDLESS
from nanochat_lit.engine.rollout import Rollout
from nanochat_lit.model import IGNORE_INDEX
from nanochat_lit.tasks.base import Conversation, Task
from nanochat_lit.tokenizer import render_conversation, render_for_completion
from nanochat_lit.tokenizer.special_tokens import PYTHON_END
from nanochat_lit.training.datamodules import Batch, LanguageDataModule

if TYPE_CHECKING:
    from nanochat_lit.training.rl import RLModule

ROW_UNIT = 32
"""Sequence lengths are rounded up to a multiple of this."""

MAX_SLOTS = 128
"""Maximum number of answers decoded concurrently; bounds the KV cache."""

NUM_TRANSCRIPTS = 8
"""Number of held-out questions or prompts to show in samples.md."""


def rollout_rows(
    prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], row_len: int, pad_id: int
) -> dict[str, Tensor]:
    """Return one sequence per rollout: prompt, completion, padding on the right to `row_len`.

    Returns inputs and targets, (B, T) int64; targets are IGNORE_INDEX for tokens that the model did not sample.
    """
    inputs = torch.full((len(rollouts), row_len), pad_id, dtype=torch.int64)
    targets = torch.full((len(rollouts), row_len), IGNORE_INDEX, dtype=torch.int64)
    for row, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        token_ids = [*prompt, *rollout.token_ids]
        assert len(token_ids) <= row_len + 1, f"{len(token_ids)} tokens for a sequence of {row_len}"
        inputs[row, : len(token_ids) - 1] = torch.tensor(token_ids[:-1])
        own = [token if mask else IGNORE_INDEX for token, mask in zip(rollout.token_ids, rollout.mask, strict=True)]
        targets[row, len(prompt) - 1 : len(token_ids) - 1] = torch.tensor(own)
    return {"inputs": inputs, "targets": targets}


def without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch of `rollout_rows` and further tensors, (B,) or (B, T), without trailing columns without targets."""
    used = (batch["targets"] != IGNORE_INDEX).any(0).nonzero()
    last = int(used[-1]) + 1 if len(used) else 1
    length = padded_length(last, batch["targets"].shape[1])
    return {name: tensor[:, :length] if tensor.ndim == 2 else tensor for name, tensor in batch.items()}


class NamedSums:
    """Accumulates metrics as sums, which can be added over ranks and restored from checkpoints."""

    NAMES: tuple[str, ...]

    def __init__(self) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64)

    def add(self, **sums: float) -> None:
        """Add values to the sums."""
        self.sums += torch.tensor([float(sums.get(name, 0.0)) for name in self.NAMES], dtype=torch.float64)


class RolloutFigures(NamedSums):
    """Sums of metrics over rollouts."""

    NAMES = ("completions", "tokens", "reward", "right", "form", "tool_use", "unfinished", "groups", "mixed_groups")

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the means from sums over all ranks, in the order of NAMES; empty before the first completion.

        train_accuracy, format_rate, tool_use and unfinished are fractions of the completions; completion_len is in
        sampled tokens; mixed_groups is the fraction of questions with unequal rewards (others have zero advantage).
        """
        by_name: dict[str, float] = dict(zip(self.NAMES, sums, strict=True))
        count, groups = by_name["completions"], by_name["groups"]
        if not count:
            return {}
        shares = {
            "reward": "reward", "train_accuracy": "right", "format_rate": "form", "tool_use": "tool_use",
            "unfinished": "unfinished", "completion_len": "tokens",
        }  # fmt: skip
        means = {figure: by_name[name] / count for figure, name in shares.items()}
        return means | {"mixed_groups": by_name["mixed_groups"] / groups}


VAL_BATCH = 64
"""Questions per validation batch; each batch goes to one rank."""


class RolloutLoader(Iterator[Batch]):
    """An endless, resumable loader of micro-batches of rollouts, with the clocks of `ResumableLoader`.

    `roll_out` returns the rollout batch of a given number, tensors with equal first dimensions, on request of the first
    micro-batch of a step, with the weights that the step will update; `updates` steps use it.
    """

    def __init__(self, roll_out: Callable[[int], Batch], micro_batch_size: int, updates: int = 1) -> None:
        self.roll_out = roll_out
        self.micro_batch_size = micro_batch_size
        self.updates = updates
        self.asked_at_s = self.waited_s = 0.0
        self._number = 0
        """Number of the next rollout batch."""
        self._rows: Batch | None = None
        """Rollout batch in use."""
        self._num_given = 0
        """Micro-batches already returned from it."""

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> "RolloutLoader":
        return self

    def __next__(self) -> Batch:
        self.asked_at_s = time.perf_counter()
        if self._rows is None:
            self._rows, self._num_given = self.roll_out(self._number), 0
            self._number += 1
        rows = self._rows
        batches_per_update = len(rows["inputs"]) // self.micro_batch_size
        start = self._num_given % batches_per_update * self.micro_batch_size
        batch = {name: tensor[start : start + self.micro_batch_size] for name, tensor in rows.items()}
        self._num_given += 1
        if self._num_given == batches_per_update * self.updates:
            self._rows = None
        self.waited_s += time.perf_counter() - self.asked_at_s
        return batch

    def position(self) -> dict[str, Any]:
        """Return the position after the last returned batch, for a checkpoint; includes the rollouts in use."""
        rows = None if self._rows is None else {name: tensor.cpu() for name, tensor in self._rows.items()}
        return {"number": self._number, "rows": rows, "num_given": self._num_given}

    def seek(self, position: dict[str, Any]) -> None:
        """Resume from a position; without stored rollouts, at the next rollout batch."""
        self._number, self._rows, self._num_given = position["number"], position["rows"], position["num_given"]


class StepDataModule(LanguageDataModule):
    """Base class of data whose training batches the module makes step by step (`collect`) from items in a seeded order."""

    def __init__(self, micro_batch_size: int, seed: int) -> None:
        super().__init__(None, micro_batch_size, 0, seed)
        self._order: tuple[int, list[int]] = (-1, [])

    def drawn(self, number: int, items: Collection[int]) -> int:
        """Return the `number`-th item of the run; every epoch is a seeded permutation."""
        epoch, place = divmod(number, len(items))
        if self._order[0] != epoch:
            order = sorted(items)
            Random(f"{self.seed}-{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def train_dataloader(self) -> RolloutLoader:
        module = cast("RLModule", self.module)
        self.train_loader = RolloutLoader(module.collect, self.rows, module.updates_per_batch)
        if self.positions:
            self.train_loader.seek(self._own_place(self.positions))
        return self.train_loader

    @staticmethod
    def _own_place(positions: list[dict[str, Any]]) -> dict[str, Any]:
        if len(positions) == world_size():
            return positions[rank()]
        if positions[0]["rows"] is not None:
            say(f"the rollouts in use were those of {len(positions)} rank(s): continuing with new ones")
        return {"number": positions[0]["number"], "rows": None, "num_given": 0}


def own_share(number: int, per_step: int) -> range:
    """Return the numbers of this rank's items of a step, of which all ranks together have `per_step`."""
    share = per_step // world_size()
    start = number * per_step + rank() * share
    return range(start, start + share)


def check_share(name: str, per_step: int, sequences: int, micro_batch_size: int, world_size: int) -> None:
    """Raise UserError if the items of a step do not divide by the ranks, or their sequences by the micro-batches.

    `name` is the setting that has the number of items per step, over all ranks.
    """
    if per_step % world_size:
        nearest = -(-per_step // world_size) * world_size
        raise UserError(f"{name} {per_step} is not a multiple of {world_size} ranks; use {nearest}")
    rows = per_step // world_size * sequences
    if rows % micro_batch_size:
        fitting = max(size for size in range(1, micro_batch_size + 1) if rows % size == 0)
        raise UserError(
            f"{rows} sequences per step on each rank ({name} {per_step} x {sequences} / {world_size} rank(s)) are not a "
            f"multiple of micro_batch_size {micro_batch_size}; use {fitting}"
        )


class RolloutDataModule(StepDataModule):
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
        super().__init__(micro_batch_size, seed)
        check_at_least_one(val_questions=val_questions)
        if val_samples < 0:
            raise UserError(f"val_samples is {val_samples}; use 0 (none) or the number of answers to sample")
        self.train, self.val = train, val
        self.val_questions = min(val_questions, len(val))
        self.val_samples = val_samples
        self.prompts: dict[int, list[int]] = {}
        """Training prompts that leave space for an answer in the context, by question number."""

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
        if left_out := len(prompts) - len(self.prompts):
            what = "questions leave no space for an answer in the model's context and are not asked"
            say(f"{left_out:,} of {len(prompts):,} {what}")

    def prompt(self, conversation: Conversation) -> list[int] | None:
        """Return the prompt for the last answer of a conversation; None if it leaves no space for one."""
        module = cast("RLModule", self.module)
        token_ids = render_for_completion(self.tokenizer, module.tools.of(conversation).offer(conversation))
        return token_ids if len(token_ids) < module.context else None

    def question(self, number: int) -> int:
        """Return the index of the `number`-th question of the run; every epoch is a seeded permutation."""
        return self.drawn(number, self.prompts)

    def start(self, number: int, guided: float) -> list[int]:
        """Return tokens of the reference answer that the answers to the `number`-th question begin with, often none.

        A fraction `guided` of the questions has a start; the number determines its length.

        Reference:
            Xi et al. 2024, Training Large Language Models for Reasoning through Reverse Curriculum Reinforcement
            Learning. https://arxiv.org/abs/2402.05808
        """
        rng = Random(f"{self.seed}-start-{number}")
        if rng.random() >= guided:
            return []
        conversation = self.train[self.question(number)]
        if conversation["messages"][-1]["role"] != "assistant":
            return []
        prompt = render_for_completion(self.tokenizer, conversation)
        token_ids, mask = render_conversation(self.tokenizer, conversation)
        answer, is_own = token_ids[len(prompt) :], mask[len(prompt) :]
        calls = [place for place, token_id in enumerate(answer) if token_id == self.tokenizer.special_ids[PYTHON_END]]
        last = calls[-1] if calls else len(answer) - 1
        return answer[: rng.choice([place for place in range(last + 1) if is_own[place]])]

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of question indices."""
        for start in range(0, self.val_questions, VAL_BATCH):
            yield {"questions": torch.arange(start, min(start + VAL_BATCH, self.val_questions))}
