"""Learning from preferences between two answers (DPO and variants of its loss): the pairs, and the module."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nanochat_lit.common.distributed import (
    from_rank_zero,
    is_rank_zero,
    joined_shares,
    rank,
    say,
    sum_over_ranks,
    world_size,
)
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.paths import atomic_write, folder_fingerprint
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.rollout import Rollout, roll_out
from nanochat_lit.evaluation.answerer import completion_of
from nanochat_lit.evaluation.samples import readable
from nanochat_lit.model import GPT, IGNORE_INDEX
from nanochat_lit.model.export import WEIGHTS_FILE
from nanochat_lit.optim.policy_gradient import divergence
from nanochat_lit.optim.preference import PreferenceLoss, preference_accuracy, preference_losses
from nanochat_lit.tasks.base import Conversation, Conversations, grader_of
from nanochat_lit.tasks.preferences import common_length
from nanochat_lit.tokenizer import Tokenizer, parse_completion, render_conversation, render_for_completion
from nanochat_lit.training.continued import ContinuedModule
from nanochat_lit.training.datamodules import Batch
from nanochat_lit.training.rollout_data import (
    MAX_SLOTS,
    NUM_TRANSCRIPTS,
    ROW_UNIT,
    VAL_BATCH,
    NamedSums,
    StepDataModule,
    check_share,
    own_share,
    rollout_rows,
    without_padding,
)


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
        if left_out := count - len(places):
            say(
                f"{left_out:,} of {count:,} {split} pairs do not fit the model's context of {context} tokens and are left out"
            )
        self.places[split], self.fingerprints[split] = places, digest.hexdigest()

    @property
    def context(self) -> int:
        """Context length of the base, tokens."""
        return cast(ContinuedModule, self.module).context

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


class PairFigures(NamedSums):
    """Sums of metrics over preference pairs, and over answers to their prompts."""

    NAMES = ("pairs", "loss", "accuracy", "chosen", "rejected", "answers", "wins", "ties", "divergence", "tokens")

    def means(self, sums: Sequence[float], beta: float) -> dict[str, float]:
        """Return the means from sums over all ranks, in the order of NAMES; empty before the first pair.

        preference_accuracy is the fraction of pairs whose chosen answer has the larger log-ratio (ties count half);
        rewards are beta times the log-ratios, margin is their difference. If answers were compared: win_rate (ties
        count half), wins and losses against the base. If answers were sampled: kl, nats per token.
        """
        by_name: dict[str, float] = dict(zip(self.NAMES, sums, strict=True))
        pairs, answers, tokens = (by_name[name] for name in ("pairs", "answers", "tokens"))
        if not pairs:
            return {}
        chosen, rejected = beta * by_name["chosen"] / pairs, beta * by_name["rejected"] / pairs
        means = {"preference_accuracy": by_name["accuracy"] / pairs, "margin": chosen - rejected}
        means |= {"chosen_reward": chosen, "rejected_reward": rejected}
        if answers:
            wins, ties = by_name["wins"] / answers, by_name["ties"] / answers
            means |= {"win_rate": wins + ties / 2, "wins": wins, "losses": 1.0 - wins - ties}
        return means | ({"kl": by_name["divergence"] / tokens} if tokens else {})


class DPOModule(ContinuedModule):
    """Trains a chat model on pairs of answers: raises the probability of the chosen one relative to the rejected one.

    The reference is the base. Its log-probabilities are computed once and kept in the run folder, so that no second
    model is in memory while training; validations load it for their duration. Validations report the accuracy and the
    margin on held-out pairs, the KL divergence from the base estimated on the model's own samples at temperature 1, and,
    if the task can evaluate answers, how often greedy answers are better than those of the base.

    Args:
        pairs_per_step: Pairs per optimizer step, over all ranks.
        loss: sigmoid (DPO), ipo, or apo_zero (KTO's loss with a reference point of 0).
        beta: Strength of the pull towards the base; larger values stay closer to it.
        sft_weight: Weight of the chosen answers' loss per token, which keeps their own probability from falling; 0
            disables it.
        max_new_tokens: Maximum length of an answer to a held-out prompt, tokens.
        options: Options of `ContinuedModule`; num_steps null is one epoch of the pairs.
    """

    stage = "dpo"
    figure = "val_preference_accuracy"
    measures_text = False
    higher_is_better = True
    shown_figures = ("preference_accuracy", "margin")
    updates_per_batch = 1

    def __init__(
        self,
        base: str,
        pairs_per_step: int = 32,
        loss: PreferenceLoss = "sigmoid",
        beta: float = 0.1,
        sft_weight: float = 0.0,
        max_new_tokens: int = 256,
        init_lr_fraction: float = 0.02,
        warmup: int = 10,
        eval_every: int = 100,
        compile: bool | Literal["auto"] = False,
        **options: Any,
    ) -> None:
        super().__init__(
            base=base, tokens_per_step=None, init_lr_fraction=init_lr_fraction, warmup=warmup, eval_every=eval_every,
            compile=compile, **options,
        )  # fmt: skip
        self.loss: PreferenceLoss = loss
        self.pairs_per_step, self.beta, self.sft_weight = pairs_per_step, beta, sft_weight
        self.max_new_tokens = max_new_tokens
        check_at_least_one(pairs_per_step=pairs_per_step, max_new_tokens=max_new_tokens)
        self.check_settings(
            ("beta", beta > 0, "it must be positive, such as 0.1"),
            ("sft_weight", sft_weight >= 0, "use 0 (off) or a positive value, such as 1"),
        )
        self._references: dict[str, Tensor] = {}
        """Log-probabilities of the completions under the base, (pairs, 2), by split."""
        self._base_answers: dict[int, list[int]] = {}
        self._step_sums: Tensor | None = None  # of PairFigures, on the device
        self._val_figures = PairFigures()

    @property
    def pairs(self) -> PreferenceDataModule:
        """DataModule of this run."""
        datamodule = self.datamodule
        if not isinstance(datamodule, PreferenceDataModule):
            raise UserError("DPOModule needs pairs of answers; use a PreferenceDataModule")
        return datamodule

    @property
    def row_len(self) -> int:
        """Tokens per sequence: the longest prompt with its answer, at most the context length."""
        return self.pairs.row_len

    def check_batch(self, micro_batch_size: int, world_size: int, vocab_size: int | str = "auto") -> None:
        """Raise UserError if the pairs of a step do not divide by the ranks, or their sequences by the micro-batches."""
        check_share("pairs_per_step", self.pairs_per_step, 2, micro_batch_size, world_size)

    def configure_model(self) -> None:
        """Load the base model once the pairs are ready."""
        if hasattr(self, "model"):
            return
        pairs = self.pairs
        self.load_base()
        if self.trainer.state.fn == "fit":
            one_pass = len(pairs.places["train"]) // self.pairs_per_step
            self.start_stage(lambda: one_pass, 2 * self.pairs_per_step * self.row_len)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._prepare_references()

    def on_validation_start(self) -> None:
        self._prepare_references()

    def on_test_start(self) -> None:
        self._prepare_references()

    def _prepare_references(self) -> None:
        """Load or compute the log-probabilities under the base; collective over the ranks."""
        base: str | None = None
        for split, fingerprint in self.pairs.fingerprints.items():
            if split not in self._references:
                base = base or folder_fingerprint(self.base, (WEIGHTS_FILE,))
                path = self.pairs.run_dir / "reference" / f"{split}.safetensors"
                key = f"{base} {fingerprint} {self.model.compute_dtype}"
                self._references[split] = cached(path, key, lambda split=split: self._reference_logprobs(split))
        self._base_model.clear()

    def _reference_logprobs(self, split: str) -> Tensor:
        """Return the log-probabilities of the completions under the base, (pairs, 2); the ranks share the work."""
        data, size = self.pairs, max(1, self.pairs.rows // 2)
        count = len(data.places[split])
        own = [
            self._logprobs(self.base_model, data.pair_rows(split, range(start, min(start + size, count)))).tolist()
            for start in range(rank() * size, count, world_size() * size)
        ]
        return torch.tensor([value for values in joined_shares(own) for value in values]).view(-1, 2)

    @torch.no_grad()
    def _logprobs(self, model: GPT, rows: dict[str, Tensor]) -> Tensor:
        """Return the log-probabilities of the completions, (B,), by the loss kernel."""
        rows = without_padding({name: tensor.to(self.device) for name, tensor in rows.items()})
        return -model(rows["inputs"], rows["targets"], reduction="none").sum(1)

    def collect(self, number: int) -> dict[str, Tensor]:
        """Return this rank's sequences of a step: inputs, targets, (2P, T), and reference log-probabilities, (2P,)."""
        data = self.pairs
        drawn = [data.drawn(own, range(len(data.places["train"]))) for own in own_share(number, self.pairs_per_step)]
        rows = data.pair_rows("train", drawn)
        rows["reference"] = self._references["train"][drawn].flatten()
        lengths = (rows["targets"] != IGNORE_INDEX).long().cumsum(1).argmax(1).view(-1, 2).amax(1)
        first = 2 * lengths.argsort(stable=True)  # micro-batches of similar lengths
        order = torch.stack([first, first + 1], 1).flatten()
        return {name: tensor[order].to(self.device) for name, tensor in rows.items()}

    def _compare(self, logprobs: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of pairs, (P,), and sums in the order of the first five of PairFigures, without gradient."""
        log_ratios = (logprobs - reference).view(-1, 2)
        num_tokens = (targets != IGNORE_INDEX).sum(1).view(-1, 2)
        losses = preference_losses(log_ratios, num_tokens, self.beta, self.loss)
        losses = losses - self.sft_weight * logprobs.view(-1, 2)[:, 0] / num_tokens[:, 0]
        with torch.no_grad():
            parts = [losses.new_tensor(len(losses)), losses.sum(), preference_accuracy(log_ratios).sum()]
            return losses, torch.stack([*parts, *log_ratios.sum(0)])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = batch if self.compile_choice()[0] else without_padding(batch)  # compiled code has a fixed length
        logprobs = self.model.logprobs(batch["inputs"], batch["targets"])[0].sum(1)
        losses, sums = self._compare(logprobs, batch["targets"], batch["reference"])
        self._step_sums = sums if self._step_sums is None else self._step_sums + sums
        self.losses.add(losses.mean())
        return losses.mean()

    def pop_step_figures(self) -> dict[str, float]:
        sums = torch.zeros(5, device=self.device) if self._step_sums is None else self._step_sums
        self._step_sums = None
        sums = cast(Tensor, self.trainer.strategy.reduce(sums, reduce_op="sum")).tolist()
        return PairFigures().means([*sums, 0.0, 0.0, 0.0, 0.0, 0.0], self.beta)

    def rank_state_dict(self) -> dict[str, Any]:
        return {**super().rank_state_dict(), "pairs": None if self._step_sums is None else self._step_sums.cpu()}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        super().load_rank_state_dict(state)
        self._step_sums = None if state["pairs"] is None else state["pairs"].to(self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        data, numbers = self.pairs, batch["pairs"].tolist()
        if numbers[0] == 0:
            self._transcripts.clear()
        size = max(1, data.rows // 2)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            rows = data.pair_rows("val", part)
            logprobs = self._logprobs(self.model, rows).cpu()
            _, sums = self._compare(logprobs, rows["targets"], self._references["val"][part].flatten())
            self._val_figures.sums[:5] += sums
        if asked := [number for number in numbers if number < data.val_questions]:
            self._answer(asked)

    def _answer(self, numbers: Sequence[int]) -> None:
        """Answer held-out prompts, compare the answers with those of the base, and estimate the KL divergence."""
        data, limit = self.pairs, self.max_new_tokens
        prompts = {number: data.prompt("val", number) for number in numbers}
        slots = min(MAX_SLOTS, len(prompts))
        engine = Engine(self.model, self.tokenizer, num_slots=slots)
        greedy = engine.generate_batch(list(prompts.values()), max_new_tokens=limit)
        if not prompts.keys() <= self._base_answers.keys():
            base = Engine(self.base_model, self.tokenizer, num_slots=slots)
            answers = base.generate_batch(list(prompts.values()), max_new_tokens=limit)
            self._base_answers.update(zip(prompts, answers, strict=True))
        for number, answer in zip(prompts, greedy, strict=True):
            self._judge(number, answer, self._base_answers[number])
        seeds = [data.seed + number for number in prompts]
        groups = roll_out(engine, list(prompts.values()), seeds, max_new_tokens=limit)
        sampled = [group[0] for group in groups]
        rows = rollout_rows(list(prompts.values()), sampled, self.context, self.tokenizer.bos_id)
        for start in range(0, len(numbers), data.rows):
            part = {name: tensor[start : start + data.rows].to(self.device) for name, tensor in rows.items()}
            inputs, targets = (without_padding(part)[name] for name in ("inputs", "targets"))
            is_sampled = targets != IGNORE_INDEX
            with torch.no_grad():
                ours, theirs = (model.logprobs(inputs, targets)[0] for model in (self.model, self.base_model))
            total = float(divergence(ours, theirs, is_sampled, 1))
            self._val_figures.add(divergence=total, tokens=int(is_sampled.sum()))

    def _judge(self, number: int, answer: Sequence[int], base_answer: Sequence[int]) -> None:
        pair, verdict = self.pairs.pair("val", number), ""
        if grade := grader_of(self.pairs.tasks["val"]):
            ours, theirs = (grade(pair, *completion_of(self.tokenizer, one)) for one in (answer, base_answer))
            self._val_figures.add(answers=1, wins=ours > theirs, ties=ours == theirs)
            verdict = f" ({'win' if ours > theirs else 'tie' if ours == theirs else 'loss'})"
        if number < NUM_TRANSCRIPTS:
            asked = [message for message in pair["messages"] if message["role"] == "user"][-1]["content"]
            said, before = (readable(parse_completion(self.tokenizer, one)).strip() for one in (answer, base_answer))
            self._transcripts.append(f"- **{asked}** {said}{verdict}; base: {before}")

    def pop_validation_figures(self) -> dict[str, float]:
        sums = sum_over_ranks(self._val_figures.sums.to(self.device, torch.float32)).tolist()
        self._val_figures = PairFigures()
        self._base_model.clear()
        means = self._val_figures.means(sums, self.beta)
        return {f"val_{name}": value for name, value in means.items()}
