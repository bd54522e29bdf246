"""Reinforcement learning with verifiable rewards."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MeanMetric

from nanochat_lit.common.distributed import world_size
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.functions import Functions
from nanochat_lit.engine.rollout import Rollout, messages_of, roll_out
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.evaluation.answerer import completion_of
from nanochat_lit.evaluation.samples import readable
from nanochat_lit.evaluation.statistics import PassRates
from nanochat_lit.model import GPT, IGNORE_INDEX
from nanochat_lit.optim.policy_gradient import (
    JudgedAnswer,
    Reward,
    RewardShape,
    divergence,
    group_advantages,
    policy_gradient_loss,
)
from nanochat_lit.tasks.base import Conversation, Task, credit_of, form_of, gives_credit
from nanochat_lit.training.continued import ContinuedModule
from nanochat_lit.training.rollout_data import (
    MAX_SLOTS,
    NUM_TRANSCRIPTS,
    ROW_UNIT,
    RolloutDataModule,
    RolloutFigures,
    check_share,
    own_share,
    rollout_rows,
    without_padding,
)


class RLModule(ContinuedModule):
    """Trains a chat model on its own answers: raises the probability of those whose reward exceeds their group's mean.

    Args:
        questions_per_step: Questions per rollout batch, over all ranks.
        num_samples: Answers per question; the baseline is the mean of their rewards.
        max_new_tokens: Maximum length of an answer, tokens, including tool results.
        temperature: Sampling temperature, in training and for pass@k.
        top_k: Sample from this many most likely tokens; 0 disables the limit.
        updates_per_batch: Optimizer steps per rollout batch; more than 1 requires clip_ratio.
        clip_ratio: Limit on the relative change of a token's probability since sampling (PPO clipping); 0 disables it.
        kl_coefficient: Weight of the KL divergence from the base model; 0 disables it and keeps no second model.
        partial_reward: Maximum reward of a wrong answer, in proportion to its closeness; 0 disables it.
        format_reward: Reward of an answer in the task's format, right or wrong; 0 disables it.
        length_penalty: Penalty of an answer of maximum length, in proportion for shorter ones; 0 disables it.
        guided: Fraction of the questions whose answers begin with a part, of random length, of the reference answer up
            to its last call; a curriculum for answers that sampling hardly ever finds. 0 disables it.
        reward: Callable in place of the previous three: reward(conversation, answer), with a JudgedAnswer. Default None.
        tools: Functions by name that the answers may call; a conversation's `tools` selects some. Default None.
        max_calls: Maximum number of calls of tools in one answer.
        tool_timeout_s: Time limit of a call, seconds.
        chat_temperature: Default sampling temperature of the export; 0 is greedy.
        options: Options of `ContinuedModule`; num_steps null asks every question once.
    """

    stage = "rl"
    figure = "val_accuracy"
    measures_text = False
    higher_is_better = True
    shown_figures = ("reward",)

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        base: str,
        questions_per_step: int = 16,
        num_samples: int = 16,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 50,
        updates_per_batch: int = 1,
        clip_ratio: float = 0.0,
        kl_coefficient: float = 0.0,
        partial_reward: float = 0.0,
        format_reward: float = 0.0,
        length_penalty: float = 0.0,
        guided: float = 0.0,
        reward: Callable[..., float] | None = None,
        tools: dict[str, Callable[..., Any]] | None = None,
        max_calls: int = 4,
        tool_timeout_s: float = 5.0,
        init_lr_fraction: float = 0.05,
        eval_every: int = 60,
        chat_temperature: float = 0.6,
        compile: bool | Literal["auto"] = False,
        **options: Any,
    ) -> None:
        super().__init__(
            base=base, tokens_per_step=None, init_lr_fraction=init_lr_fraction, eval_every=eval_every,
            temperature=chat_temperature, compile=compile, **options,
        )  # fmt: skip
        shape = RewardShape(partial_reward=partial_reward, format_reward=format_reward, length_penalty=length_penalty)
        if reward is not None and shape != RewardShape():
            raise UserError("reward replaces partial_reward, format_reward and length_penalty; set these to 0")
        self.reward: Reward = reward or shape
        self.tools = Functions(tools or {}, max_calls, tool_timeout_s)
        self.questions_per_step, self.num_samples, self.guided = questions_per_step, num_samples, guided
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k
        self.updates_per_batch, self.clip_ratio, self.kl_coefficient = updates_per_batch, clip_ratio, kl_coefficient
        self._check_settings()
        self.rollout_figures = RolloutFigures()
        self._token_sums: Tensor | None = None  # sums of tokens, entropy and KL divergence, on the device

    def _check_settings(self) -> None:
        SamplingParams(temperature=self.temperature, top_k=self.top_k or 0)  # validates both
        check_at_least_one(
            questions_per_step=self.questions_per_step, max_new_tokens=self.max_new_tokens,
            updates_per_batch=self.updates_per_batch,
        )  # fmt: skip
        self.check_settings(
            ("num_samples", self.num_samples >= 2, "use at least 2: the baseline is the mean over the samples"),
            ("temperature", self.temperature > 0, "all answers to a question would be identical; use 1, for example"),
            ("clip_ratio", 0 <= self.clip_ratio < 1, "use 0 (off) or a value below 1, such as 0.2"),
            ("guided", 0 <= self.guided <= 1, "use 0 (off) to 1 (every question)"),
            ("kl_coefficient", self.kl_coefficient >= 0, "use 0 (off) or a positive value, such as 0.01"),
            (
                "updates_per_batch", self.updates_per_batch == 1 or self.clip_ratio > 0,
                "after the first one the answers are off-policy; use clip_ratio (for example 0.2) or 1",
            ),
        )  # fmt: skip

    @property
    def questions(self) -> RolloutDataModule:
        """DataModule of this run."""
        datamodule = self.datamodule
        if not isinstance(datamodule, RolloutDataModule):
            raise UserError("RLModule needs questions with verifiable answers; use a RolloutDataModule")
        return datamodule

    @cached_property
    def row_len(self) -> int:  # type: ignore[override]
        """Tokens per sequence: the longest prompt plus the longest answer, at most the context length."""
        longest = max(map(len, self.questions.prompts.values()))
        return min(self.context, -(-(longest + self.max_new_tokens - 1) // ROW_UNIT) * ROW_UNIT)

    def check_batch(self, micro_batch_size: int, world_size: int, vocab_size: int | str = "auto") -> None:
        """Raise UserError if the questions do not divide by the ranks, or the answers by the micro-batches."""
        check_share("questions_per_step", self.questions_per_step, self.num_samples, micro_batch_size, world_size)

    def configure_model(self) -> None:
        """Load the base model once the questions are ready."""
        if hasattr(self, "model"):
            return
        questions = self.questions
        shape = self.reward if isinstance(self.reward, RewardShape) else RewardShape()
        if shape.format_reward and form_of(questions.train) is None:
            name = type(questions.train).__name__
            raise UserError(f"format_reward is set, but {name} does not define an answer format; set it to 0")
        if shape.partial_reward and not gives_credit(questions.train):
            name = type(questions.train).__name__
            raise UserError(
                f"partial_reward is set, but {name} does not define the closeness of wrong answers; set it to 0"
            )
        self.load_base()
        self.metric, self.drift = PassRates(questions.val_samples), MeanMetric()
        if self.trainer.state.fn != "fit":
            return
        self.start_stage(
            lambda: len(questions.prompts) * self.updates_per_batch // self.questions_per_step,
            self.questions_per_step * self.num_samples * self.row_len,
        )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.kl_coefficient:
            _ = self.base_model  # loaded before the first step, which may be far from the last use of the base

    def collect(self, number: int) -> dict[str, Tensor]:
        """Return scored rollouts of this rank: inputs, targets, advantages, num_tokens, and what the options need.

        The number of the rollout batch in this run determines the questions and the sampling seeds.
        """
        data, numbers = self.questions, own_share(number, self.questions_per_step)
        places = [data.question(own) for own in numbers]
        prompts = [data.prompts[place] for place in places]
        groups = roll_out(
            Engine(self.model, self.tokenizer, num_slots=min(MAX_SLOTS, len(prompts) * self.num_samples)),
            prompts, [(data.seed << 40) + own for own in numbers],
            self.num_samples, [self.tools.of(data.train[place]) for place in places],
            [data.start(own, self.guided) for own in numbers],
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_k=self.top_k,
        )  # fmt: skip
        rewards = torch.tensor(
            [self._judge(data.train[place], group) for place, group in zip(places, groups, strict=True)]
        )  # (G, S)
        rollouts = [rollout for group in groups for rollout in group]
        repeated = [prompt for prompt in prompts for _ in range(self.num_samples)]
        rows = rollout_rows(repeated, rollouts, self.row_len, self.tokenizer.bos_id)
        rows["advantages"] = group_advantages(rewards).flatten()
        by_length = (rows["targets"] != IGNORE_INDEX).long().cumsum(1).argmax(1).argsort(stable=True)
        # sorted, so that micro-batches have similar lengths
        rows = {name: tensor[by_length].to(self.device) for name, tensor in rows.items()}
        num_tokens = (rows["targets"] != IGNORE_INDEX).sum()
        if world_size() > 1:
            dist.all_reduce(num_tokens)
        rows["num_tokens"] = num_tokens.expand(len(rollouts)).clone()
        if self.updates_per_batch > 1:
            rows["old_logprobs"] = self._logprobs(self.model, rows)
        if self.kl_coefficient:
            rows["reference_logprobs"] = self._logprobs(self.base_model, rows)
        return rows

    def _judge(self, conversation: Conversation, group: Sequence[Rollout]) -> list[float]:
        """Return the rewards of the answers to one question, and accumulate metrics of the policy."""
        task, rewards = self.questions.train, []
        form = form_of(task)
        for rollout in group:
            completion = completion_of(self.tokenizer, rollout.token_ids)
            answer = JudgedAnswer(
                messages=messages_of(self.tokenizer, rollout.token_ids), text=completion.text, tool_calls=completion.tool_calls,
                is_right=task.evaluate(conversation, *completion),
                has_form=form is not None and form.has_form(*completion),
                credit=credit_of(task, conversation, *completion),
                num_tokens=rollout.num_sampled, max_tokens=self.max_new_tokens, has_ended=rollout.has_ended,
            )  # fmt: skip
            reward = float(self.reward(conversation, answer))
            if not math.isfinite(reward):
                raise UserError(f"the reward of the answer {answer.text[:60]!r} is {reward}; return a finite number")
            rewards.append(reward)
            self.rollout_figures.add(
                completions=1, tokens=answer.num_tokens, reward=reward, right=answer.is_right, form=answer.has_form,
                tool_use=bool(answer.tool_calls), unfinished=not rollout.has_ended,
            )  # fmt: skip
        self.rollout_figures.add(groups=1, mixed_groups=max(rewards) > min(rewards))
        return rewards

    @torch.no_grad()
    def _logprobs(self, model: GPT, rows: dict[str, Tensor]) -> Tensor:
        """Return the log-probabilities of the sampled tokens, (B, T)."""
        size = self.questions.rows
        pairs = zip(rows["inputs"].split(size), rows["targets"].split(size), strict=True)
        return torch.cat([model.logprobs(inputs, targets, self.temperature)[0] for inputs, targets in pairs])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = batch if self.compile_choice()[0] else without_padding(batch)  # compiled code has a fixed length
        logprobs, entropies = self.model.logprobs(batch["inputs"], batch["targets"], self.temperature)
        is_sampled, num_tokens = batch["targets"] != IGNORE_INDEX, batch["num_tokens"][0]
        loss = policy_gradient_loss(
            logprobs, batch["advantages"], is_sampled, num_tokens, batch.get("old_logprobs"), self.clip_ratio
        )
        drift = torch.zeros_like(loss)
        if "reference_logprobs" in batch:
            drift = divergence(logprobs, batch["reference_logprobs"], is_sampled, num_tokens)
            loss = loss + self.kl_coefficient * drift
        sums = torch.stack([is_sampled.sum(), entropies.sum(), drift.detach() * num_tokens])
        self._token_sums = sums if self._token_sums is None else self._token_sums + sums
        # The Trainer and the strategies average over micro-batches and ranks; this loss is a sum.
        loss = loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)
        self.losses.add(loss)
        return loss

    def pop_step_figures(self) -> dict[str, float]:
        figures, token_sums = self.rollout_figures, self._token_sums
        if token_sums is None:
            token_sums = torch.zeros(3, device=self.device)
        own = torch.cat([figures.sums.float().to(self.device), token_sums.float()])
        sums = cast(Tensor, self.trainer.strategy.reduce(own, reduce_op="sum")).tolist()
        self.rollout_figures, self._token_sums = RolloutFigures(), None
        means = figures.means(sums[:-3])
        num_tokens, entropy, drift = sums[-3:]
        if num_tokens:
            means["entropy"] = entropy / num_tokens
        if num_tokens and self.kl_coefficient:
            means["kl"] = drift / num_tokens
        return means

    def rank_state_dict(self) -> dict[str, Any]:
        token_sums = None if self._token_sums is None else self._token_sums.cpu()
        return {**super().rank_state_dict(), "rollouts": self.rollout_figures.sums, "tokens": token_sums}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        super().load_rank_state_dict(state)
        self.rollout_figures.sums = state["rollouts"]
        self._token_sums = None if state["tokens"] is None else state["tokens"].to(self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        task, places = self.questions.val, batch["questions"].tolist()
        asked = {place: prompt for place in places if (prompt := self.questions.prompt(task[place])) is not None}
        num_samples, engine = self.questions.val_samples, Engine(self.model, self.tokenizer)

        def answers(number: int, **sampling: Any) -> list[list[Rollout]]:
            functions = [self.tools.of(task[place]) for place in asked]
            sampling["max_new_tokens"] = self.max_new_tokens
            return roll_out(engine, list(asked.values()), list(asked), number, functions, **sampling)

        greedy = [group[0].token_ids for group in answers(1, temperature=0.0)]
        samples = answers(num_samples, temperature=self.temperature, top_k=self.top_k) if num_samples else []
        self._measure_drift(
            [prompt for prompt in asked.values() for _ in range(num_samples)],
            [own for group in samples for own in group],
        )
        if places[0] == 0:
            self._transcripts.clear()
        for number, place in enumerate(asked):
            own = samples[number] if samples else []
            is_right = self._is_right(task, place, greedy[number])
            self.metric.update(is_right, sum(self._is_right(task, place, sample.token_ids) for sample in own))
            if place < NUM_TRANSCRIPTS:
                self._transcripts.append(self._transcript(task[place], greedy[number], is_right))
        for _ in range(len(places) - len(asked)):
            self.metric.update(False, 0)  # a prompt that fills the context counts as a wrong answer

    def _measure_drift(self, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout]) -> None:
        """Add the KL divergence from the base, estimated on sampled answers, if the base still exists."""
        if not rollouts or not Path(self.base).exists():
            return
        longest = max(len(prompt) + len(own.token_ids) for prompt, own in zip(prompts, rollouts, strict=True))
        length = min(self.context, -(-(longest - 1) // ROW_UNIT) * ROW_UNIT)
        rows = rollout_rows(prompts, rollouts, length, self.tokenizer.bos_id)
        rows = {name: tensor.to(self.device) for name, tensor in rows.items()}
        is_sampled = rows["targets"] != IGNORE_INDEX
        logprobs, reference = (self._logprobs(model, rows) for model in (self.model, self.base_model))
        self.drift.update(divergence(logprobs, reference, is_sampled, is_sampled.sum()), is_sampled.sum())

    def _is_right(self, task: Task, place: int, token_ids: Sequence[int]) -> bool:
        return task.evaluate(task[place], *completion_of(self.tokenizer, token_ids))

    def _transcript(self, conversation: Conversation, token_ids: Sequence[int], is_right: bool) -> str:
        question = [message for message in conversation["messages"] if message["role"] == "user"][-1]["content"]
        said = " ".join(
            (f"[{message['content']}]" if message["role"] == "user" else readable(message["content"])).strip()
            for message in messages_of(self.tokenizer, token_ids)
        )
        return f"- **{question}** {said} ({'right' if is_right else 'wrong'})"

    def pop_validation_figures(self) -> dict[str, float]:
        figures = cast("dict[str, float]", self.metric.compute())
        self.metric.reset()
        if self.drift.update_called:
            figures["kl"] = float(self.drift.compute())
            self.drift.reset()
        if not self.kl_coefficient:
            self._base_model.clear()
        return {f"val_{name}": value for name, value in figures.items()}
