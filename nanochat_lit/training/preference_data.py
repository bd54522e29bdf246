"""Preference pairs as training sequences, and the cache of their log-probabilities under the reference."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nanochat_lit.common.distributed import from_rank_zero, is_rank_zero
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.engine.rollout import Rollout
from nanochat_lit.tasks.base import Conversation, Conversations
from nanochat_lit.tasks.preferences import common_length
from nanochat_lit.tokenizer import Tokenizer, render_conversation, render_for_completion
from nanochat_lit.training.datamodules import Batch
from nanochat_lit.training.rollout_data import ROW_UNIT, VAL_BATCH, StepDataModule, rollout_rows

if TYPE_CHECKING:
    from nanochat_lit.training.dpo import DPOModule


def render_pair(tokenizer: Tokenizer, pair: Conversation) -> tuple[list[int], list[Rollout]]:
    """Return the prompt of a preference pair, and its chosen and rejected completions.

    A pair is {"messages": the chosen conversation, "rejected": the messages of the other}.
    """
    chosen, rejected = pair["messages"], pair["rejected"]
    shared = chosen[: common_length(chosen, rejected)]
    prompt = render_for_completion(tokenizer, {"messages": shared})
    answers = []
    for messages in (chosen, rejected):
        token_ids, mask = render_conversation(tokenizer, {"messages": messages})
        answers.append(Rollout(token_ids=token_ids[len(prompt) :], mask=mask[len(prompt) :], has_ended=True))
    return prompt, answers


class PreferenceDataModule(StepDataModule):
    """Pairs of a chosen and a rejected answer.

    Pairs of which an answer does not fit the model's context are left out and counted on stderr.

    Args:
        train: Training pairs, such as nanochat_lit.tasks.preferences.Preferences; each epoch has a different order.
        val: Held-out pairs. If they can evaluate answers, as the tiny world's can, the run reports win rates.
        micro_batch_size: Sequences (two per pair) per device per forward pass; must be even.
        val_pairs: Maximum number of held-out pairs, from the start of `val`.
        val_questions: Maximum number of held-out prompts that the model and the base answer; 0 for none.
        seed: Seed of the order of pairs and of sampled answers.
    """

    def __init__(
        self,
        train: Conversations,
        val: Conversations,
        micro_batch_size: int = 16,
        val_pairs: int = 400,
        val_questions: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(micro_batch_size, seed)
        if micro_batch_size % 2:
            raise UserError(f"micro_batch_size is {micro_batch_size}; it must be even, as a pair is two sequences")
        if val_pairs < 1 or val_questions < 0:
            raise UserError(f"val_pairs is {val_pairs}, val_questions {val_questions}; use at least 1 and 0")
        self.tasks = {"train": train, "val": val}
        self.val_pairs, self.val_questions = val_pairs, val_questions
        self.places: dict[str, list[int]] = {}
        """Indices of the pairs in use, by split."""
        self.fingerprints: dict[str, str] = {}
        """SHA-256 of the token ids of the pairs in use, by split."""
        self.longest = 0
        """Length of the longest sequence, tokens."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for split in ("train", "val") if stage == "fit" else ("val",):
            if split not in self.places:
                self._select(split)

    def _select(self, split: str) -> None:
        task, digest, places, context = self.tasks[split], hashlib.sha256(), [], self.context
        count = len(task) if split == "train" else min(len(task), self.val_pairs)
        for place in range(count):
            pair = task[place]
            if "rejected" not in pair:
                kind = "nanochat_lit.tasks.preferences.Preferences"
                raise UserError(f"data.{split} has conversations without rejected answers; use {kind}")
            prompt, answers = render_pair(self.tokenizer, pair)
            length = len(prompt) + max(len(answer.token_ids) for answer in answers)
            if length > context + 1:
                continue
            places.append(place)
            self.longest = max(self.longest, length)
            for token_ids in (prompt, *(answer.token_ids for answer in answers)):
                digest.update(np.array([len(token_ids), *token_ids], np.int32).tobytes())
        if not places:
            raise UserError(f"no pair of data.{split} fits the model's context of {context} tokens")
        if len(places) < count and is_rank_zero():
            print(
                f"{count - len(places):,} of {count:,} {split} pairs do not fit the model's context of {context} tokens "
                "and are left out",
                file=sys.stderr,
            )
        self.places[split], self.fingerprints[split] = places, digest.hexdigest()

    @property
    def context(self) -> int:
        """Context length of the base, tokens."""
        return cast("DPOModule", self.module).context

    @property
    def row_len(self) -> int:
        """Tokens per sequence of a batch."""
        return min(self.context, -(-(self.longest - 1) // ROW_UNIT) * ROW_UNIT)

    def pair(self, split: str, number: int) -> Conversation:
        """Return a pair in use by its number."""
        return self.tasks[split][self.places[split][number]]

    def prompt(self, split: str, number: int) -> list[int]:
        """Return the prompt of a pair in use, without its answers."""
        return render_pair(self.tokenizer, self.pair(split, number))[0]

    def pair_rows(self, split: str, numbers: Sequence[int]) -> Batch:
        """Return the sequences of pairs, chosen and rejected in turn: inputs and targets, (2P, T)."""
        prompts: list[list[int]] = []
        answers: list[Rollout] = []
        for number in numbers:
            prompt, both = render_pair(self.tokenizer, self.pair(split, number))
            prompts += [prompt, prompt]
            answers += both
        return rollout_rows(prompts, answers, self.row_len, self.tokenizer.bos_id)

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of numbers of held-out pairs."""
        count = len(self.places["val"])
        for start in range(0, count, VAL_BATCH):
            yield {"pairs": torch.arange(start, min(start + VAL_BATCH, count))}


def cached(path: Path, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return the tensor of a file if it was written with this key, else compute it and write the file.

    Call it on every rank: rank 0 reads and writes, all compute.
    """
    found = from_rank_zero(_read(path, key) if is_rank_zero() else None)
    if found is not None:
        return found
    value = compute()
    if is_rank_zero():
        with atomic_write(path) as file:
            file.write(save({"value": value}, {"key": key}))
    return value


def _read(path: Path, key: str) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("value") if (file.metadata() or {}).get("key") == key else None
    except (OSError, SafetensorError):
        return None  # missing or damaged
