"""Lets the model speak during training: samples beside the curves show what a loss does not."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.samples import BASE_PROMPTS, CHAT_PROMPTS, answer_messages, complete_texts

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class SampleWriter(Callback):
    """After every validation, appends greedy answers to fixed prompts to `samples.md` in the run folder.

    Args:
        prompts: What to complete (pretraining) or ask (SFT); None takes a few that tell.
        max_new_tokens: Longest answer.
    """

    def __init__(self, prompts: list[str] | None = None, max_new_tokens: int = 48) -> None:
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._path(trainer)
        if is_rank_zero() and path.exists():  # drop what is of an earlier run, or comes again after a resume
            sections = re.split(r"(?=\n## Step \d+\n)", path.read_text(encoding="utf-8"))
            kept = [section for section in sections[1:] if int(section.split()[2]) < trainer.global_step]
            with atomic_write(path, "w") as file:
                file.write("".join(sections[:1] + kept))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or not is_rank_zero():
            return
        module = cast("LanguageModule", pl_module)
        prompts = self.prompts or list(CHAT_PROMPTS if module.speaks_chat else BASE_PROMPTS)
        complete = answer_messages if module.speaks_chat else complete_texts
        was_training = module.model.training
        answers = complete(Engine(module.model.eval(), module.tokenizer), prompts, self.max_new_tokens)
        module.model.train(was_training)
        lines = [f"\n## Step {trainer.global_step}\n"]
        lines += [f"- **{prompt}** {answer.strip()}" for prompt, answer in zip(prompts, answers, strict=True)]
        with self._path(trainer).open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "samples.md"
