"""Learning from the distributions of a teacher: on given conversations, or on the student's own answers."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPT, IGNORE_INDEX
from nanochat_lit.optim.distillation import Divergence, chunked_divergence, forward_kl, reverse_kl
from nanochat_lit.training.continued import ContinuedModule
from nanochat_lit.training.rl import RLModule
from nanochat_lit.training.rollout_data import without_padding
from nanochat_lit.training.sft import SFTModule


def divergences(student: GPT, teacher: GPT, batch: dict[str, Tensor], divergence: Divergence) -> Tensor:
    """Return the divergence of the next-token distributions at every target that counts, (N,) nats.

    The teacher is frozen and has the same vocabulary; IGNORE_INDEX does not count.
    """
    counts = (batch["targets"] != IGNORE_INDEX).flatten()
    with torch.no_grad():
        wanted = teacher.features(batch["inputs"]).flatten(0, 1)[counts]
    hidden = student.features(batch["inputs"]).flatten(0, 1)[counts]
    unembed, teacher_unembed = (
        lambda rows, model=model: model.cap_logits(model.unembed(rows)) for model in (student, teacher)
    )
    return chunked_divergence(hidden, wanted, unembed, teacher_unembed, divergence)


class _Taught(ContinuedModule):
    """Loads a teacher before the first step."""

    teacher: str

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._teacher = [self.load_frozen(self.teacher)]  # a list, so that it is not a submodule


class DistillModule(_Taught, SFTModule):
    """Trains a student on conversations with the teacher's distributions as targets: KL(teacher || student).

    Args:
        base: Initial student: an export, a run folder, a .ckpt file, or hf://OWNER/NAME.
        teacher: Likewise; it must have the same tokenizer.
        top_k: Distinguish this many of the teacher's most likely tokens, and count all others as one; 0 uses all tokens.
        options: Options of `SFTModule`.
    """

    stage = "distill"

    def __init__(self, base: str, teacher: str, top_k: int = 0, **options: Any) -> None:
        super().__init__(base=base, **options)
        if top_k < 0:
            raise UserError(f"top_k is {top_k}; use 0 (all tokens) or a positive number")
        self.teacher, self.divergence = teacher, partial(forward_kl, top_k=top_k)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        found = divergences(self.model, self._teacher[0], batch, self.divergence)
        losses = torch.zeros_like(batch["targets"], dtype=torch.float32)
        losses[batch["targets"] != IGNORE_INDEX] = found.detach()
        self.accounts.add(batch, losses)
        loss = found.sum() / max(1, len(found))
        self.losses.add(loss)
        return loss


class OnPolicyDistillModule(_Taught, RLModule):
    """Trains a student on its own answers to questions: KL(student || teacher) at every token that it sampled.

    The rewards of the answers are reported but not used.

    Args:
        base: Initial student: an export, a run folder, a .ckpt file, or hf://OWNER/NAME.
        teacher: Likewise; it must have the same tokenizer.
        options: Options of `RLModule`.
    """

    stage = "distill"

    def __init__(self, base: str, teacher: str, **options: Any) -> None:
        super().__init__(base=base, **options)
        self.teacher = teacher

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = without_padding(batch)
        found = divergences(self.model, self._teacher[0], batch, reverse_kl)
        # The Trainer and the strategies average over micro-batches and ranks; this loss is a sum.
        loss = found.sum() / batch["num_tokens"][0] * (self.trainer.accumulate_grad_batches * self.trainer.world_size)
        self.losses.add(loss)
        return loss
