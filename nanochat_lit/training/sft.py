"""Supervised fine-tuning: a pretrained export learns to converse."""

from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.export import load_export
from nanochat_lit.model.accounting import flops_per_token
from nanochat_lit.model.export import CONFIG_FILE
from nanochat_lit.optim import MuonAdamW, Schedule, TrainingPlan, micro_batches
from nanochat_lit.optim.param_groups import EMBEDDING_LR, MATRIX_LR, SCALAR_LR, UNEMBEDDING_LR
from nanochat_lit.optim.scaling import REFERENCE_TOKENS_PER_STEP
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.datamodules import ChatDataModule
from nanochat_lit.training.module import LanguageModule, describe_differences


class SFTModule(LanguageModule):
    """Fine-tune an export on conversations.

    Args:
        base: Export folder to start from (a pretraining run's `export`).
        optimizer_from: Checkpoint (.ckpt) of the pretraining run whose optimizer moments are kept; None starts cold.
        num_steps: Optimizer steps; trainer.max_steps wins over it. None trains one epoch of the conversations.
        tokens_per_step: Tokens per optimizer step over all ranks.
        init_lr_fraction: Start at this share of the pretraining learning rates.
        unembedding_lr: As in pretraining.
        embedding_lr: As in pretraining.
        matrix_lr: As in pretraining.
        scalar_lr: As in pretraining.
        warmup: Steps of linear learning-rate warmup.
        warmdown: Share of the run over which learning rates fall.
        final_lr_fraction: Share of the learning rate left at the end.
        momentum_warmup: Steps over which Muon momentum rises from 0.85 to 0.95.
        eval_every: Steps between validations; 0 validates at the end only.
        temperature: What the export's chat samples at unless told otherwise; 0 always takes the likeliest token.
        compile: auto, true or false, as in pretraining.
        activation_checkpointing: As in pretraining.
        fp8: As in pretraining.
    """

    stage = "sft"
    speaks_chat = True

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        base: str,
        optimizer_from: str | None = None,
        num_steps: int | None = None,
        tokens_per_step: int = 524288,
        init_lr_fraction: float = 0.8,
        unembedding_lr: float = UNEMBEDDING_LR,
        embedding_lr: float = EMBEDDING_LR,
        matrix_lr: float = MATRIX_LR,
        scalar_lr: float = SCALAR_LR,
        warmup: int = 0,
        warmdown: float = 0.5,
        final_lr_fraction: float = 0.0,
        momentum_warmup: int = 300,
        eval_every: int = 250,
        temperature: float = 0.6,
        compile: str = "auto",
        activation_checkpointing: bool = False,
        fp8: bool = False,
    ) -> None:
        learning_rates = {
            "unembedding_lr": unembedding_lr * init_lr_fraction,
            "embedding_lr": embedding_lr * init_lr_fraction,
            "matrix_lr": matrix_lr * init_lr_fraction,
            "scalar_lr": scalar_lr * init_lr_fraction,
        }
        super().__init__(
            learning_rates=learning_rates,
            compile=compile,
            eval_every=eval_every,
            activation_checkpointing=activation_checkpointing,
            fp8=fp8,
        )
        for path in filter(None, (base, optimizer_from)):
            if not Path(path).exists():
                raise UserError(f"{path} does not exist; run the pretraining recipe first, or give its folder")
        self.generation = {"temperature": temperature}
        self.base = base
        self.optimizer_from = optimizer_from
        self.num_steps = num_steps
        self.tokens_per_step = tokens_per_step
        self.schedule_options: dict[str, Any] = {
            "warmup": warmup,
            "warmdown": warmdown,
            "final_lr_fraction": final_lr_fraction,
            "momentum_warmup": momentum_warmup,
            "momentum_peak": 0.95,
            "momentum_final": 0.95,
        }

    def start_from(self) -> Tokenizer | None:
        """The tokenizer of the base export, which the data must use."""
        return Tokenizer.load(self.base)

    def check_batch(self, micro_batch_size: int, world_size: int, vocab_size: int | str = "auto") -> None:
        """Raise UserError for a batch that the ranks' micro-batches cannot fill, at the context of the base."""
        config = read_json(Path(self.base) / CONFIG_FILE)
        if isinstance(config, dict) and isinstance(config.get("sequence_len"), int):
            micro_batches(self.tokens_per_step, micro_batch_size, config["sequence_len"], world_size)

    def configure_model(self) -> None:
        """Load the base once the data is ready."""
        if hasattr(self, "model"):
            return
        model, tokenizer = load_export(self.base, device="cpu", compute_dtype="float32")
        self.adopt(model, tokenizer)
        datamodule = self.datamodule
        if not isinstance(datamodule, ChatDataModule):
            raise UserError("SFTModule learns from conversations; give it a ChatDataModule")
        if datamodule.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the tokenizer {datamodule.tokenizer_path} is not that of the base {self.base}; leave data.tokenizer out"
            )
        num_steps = self.requested_steps(self.num_steps)
        if num_steps is None:
            num_steps = max(1, datamodule.epoch_tokens() // self.tokens_per_step)
        elif num_steps < 1:
            raise UserError(f"num_steps is {num_steps}; it must be positive")
        plan = TrainingPlan(
            target_tokens=num_steps * self.tokens_per_step,
            tokens_per_step=self.tokens_per_step,
            num_steps=num_steps,
            lr_scale=(self.tokens_per_step / REFERENCE_TOKENS_PER_STEP) ** 0.5,
            weight_decay=0.0,
            flops_per_token=flops_per_token(model.config),
        )
        self.start_plan(plan, Schedule(num_steps=num_steps, **self.schedule_options))

    def configure_optimizers(self) -> MuonAdamW:
        optimizer = super().configure_optimizers()
        if self.optimizer_from is not None:
            checkpoint = torch.load(self.optimizer_from, map_location="cpu", weights_only=True)
            made = checkpoint.get("nanochat_lit", {}).get("config", {})
            if differences := describe_differences(made, self.config.to_dict()):
                raise UserError(f"{self.optimizer_from} is of another model than {self.base}: {differences}")
            fresh = [
                {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(checkpoint["optimizer_states"][0])
            for group, options in zip(optimizer.param_groups, fresh, strict=True):
                group.update(options)  # the moments are kept, the hyper-parameters are this stage's
        return optimizer
