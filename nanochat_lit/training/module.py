"""What every training stage shares: a GPT, its optimizer, its loss call. Nothing else lives in a LightningModule."""

import sys
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import has_cpp_compiler
from nanochat_lit.evaluation.bpb import BitsPerByte
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.optim import MuonAdamW, Schedule, TrainingPlan, micro_batches, param_groups
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.callbacks.schedule import HyperparameterSchedule
from nanochat_lit.training.datamodules import LanguageDataModule
from nanochat_lit.training.summary import print_plan, save_plan

CPU_COMPILE_PAYS_FLOPS = 8e12
"""A CPU run shorter than this many operations would not earn back the half minute that compiling takes."""


class LanguageModule(LightningModule):
    """A GPT in training. `PretrainModule` and `SFTModule` say where the model and the hyper-parameters come from.

    Args:
        learning_rates: Keyword arguments of `param_groups`.
        compile: "auto", "true" or "false".
        eval_every: Steps between validations; 0 validates at the end only.
    """

    stage: str
    speaks_chat: bool
    model: GPT
    tokenizer: Tokenizer
    plan: TrainingPlan
    schedule: Schedule
    token_bytes: Tensor

    def __init__(self, *, learning_rates: dict[str, float], compile: str | bool, eval_every: int) -> None:
        super().__init__()
        self.learning_rates = learning_rates
        self.compile_mode = str(compile).lower()
        self.eval_every = eval_every
        self.metric = BitsPerByte()
        self.micro_batch_size = 0
        self.generation: dict[str, float] = {}
        self._losses: list[Tensor] = []

    @property
    def config(self) -> GPTConfig:
        """Shape of the model."""
        return self.model.config

    @property
    def datamodule(self) -> LanguageDataModule:
        """The data of this run."""
        datamodule = cast(Any, self.trainer).datamodule
        if not isinstance(datamodule, LanguageDataModule):
            raise UserError("train with a TextDataModule or a ChatDataModule: trainer.fit(module, datamodule=...)")
        return datamodule

    def start_from(self) -> Tokenizer | None:
        """The tokenizer this stage brings along; None leaves it to the data."""
        raise NotImplementedError

    def adopt(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Take the model to train and its tokenizer."""
        self.model, self.tokenizer = model, tokenizer
        self.register_buffer("token_bytes", tokenizer.token_bytes(), persistent=False)

    def start_plan(self, plan: TrainingPlan, schedule: Schedule, micro_batch_size: int) -> None:
        """Tell the Trainer what the plan means in its own terms: steps, accumulation, when to validate."""
        trainer = self.trainer
        self.plan, self.schedule, self.micro_batch_size = plan, schedule, micro_batch_size
        accumulate = micro_batches(plan.tokens_per_step, micro_batch_size, self.config.sequence_len, trainer.world_size)
        trainer.accumulate_grad_batches = accumulate
        trainer.fit_loop.epoch_loop.max_steps = plan.num_steps
        if trainer.limit_val_batches:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_interval = accumulate * (self.eval_every or plan.num_steps)

    def requested_steps(self, num_steps: int | None) -> int | None:
        """trainer.max_steps if it is set, else the module's own number."""
        return num_steps if self.trainer.max_steps == -1 else self.trainer.max_steps

    def on_fit_start(self) -> None:
        if self.trainer.is_global_zero:
            print_plan(self.config, self.plan, self.trainer.world_size, self.micro_batch_size)
            save_plan(Path(self.trainer.default_root_dir) / "plan.json", self.plan)
        self.model.train()
        if self._should_compile():
            self.model.compile_for_training()

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Measure where the stage starts from, so that its gain can be seen; a resumed run has done so already."""
        trainer = self.trainer
        if trainer.global_step > 0 or not trainer.limit_val_batches:
            return
        self.model.eval()
        for index, batch in enumerate(self.datamodule.val_dataloader()):
            self.validation_step({name: tensor.to(self.device) for name, tensor in batch.items()}, index)
        self.model.train()
        val_bpb = float(self.metric.compute())
        self.metric.reset()
        self._log_val_bpb(val_bpb)
        if trainer.is_global_zero:
            print(f"step 0: val_bpb {val_bpb:.4f}", file=sys.stderr)

    def _should_compile(self) -> bool:
        if self.compile_mode in ("true", "false"):
            return self.compile_mode == "true"
        if self.device.type == "cuda":
            return True
        return self.device.type == "cpu" and has_cpp_compiler() and self.plan.total_flops > CPU_COMPILE_PAYS_FLOPS

    def configure_callbacks(self) -> list[Callback]:
        return [HyperparameterSchedule()]

    def configure_optimizers(self) -> MuonAdamW:
        groups = param_groups(self.model, **self.learning_rates)
        for group in groups:
            if group["name"] != "smear":
                group["lr"] *= self.plan.lr_scale
            if group["kind"] == "muon":
                group["weight_decay"] = self.plan.weight_decay
        product_dtype = torch.bfloat16 if self.model.compute_dtype == torch.bfloat16 else None
        return MuonAdamW(groups, product_dtype)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(batch["inputs"], batch["targets"])
        self._losses.append(loss.detach())
        return loss

    def pop_mean_loss(self) -> float:
        """Mean loss of the micro-batches since the last call, nats per token, over all ranks."""
        mean = torch.stack(self._losses).mean()
        self._losses.clear()
        return float(self.trainer.strategy.reduce(mean, reduce_op="mean"))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        losses = self.model(batch["inputs"], batch["targets"], reduction="none")
        self.metric.update(losses, batch["targets"], self.token_bytes)

    def on_validation_epoch_end(self) -> None:
        val_bpb = self.metric.compute().float()
        self.metric.reset()
        # In fit, Lightning's own row would carry the number of the step before: it counts a step after validating.
        in_fit = self.trainer.state.fn == "fit"
        self.log("val_bpb", val_bpb, sync_dist=False, logger=not in_fit)
        if in_fit:
            self._log_val_bpb(float(val_bpb))

    def _log_val_bpb(self, val_bpb: float) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics({"val_bpb": val_bpb}, self.trainer.global_step)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["nanochat_lit"] = {"config": self.config.to_dict(), "tokenizer": self.tokenizer.fingerprint}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        made = checkpoint.get("nanochat_lit")
        if made is None:
            raise UserError("this checkpoint was not written by nanochat-lit; give one from a run folder")
        if differences := describe_differences(made["config"], self.config.to_dict()):
            raise UserError(f"the checkpoint is of another model than this run asks for: {differences}; use its recipe")
        if made["tokenizer"] != self.tokenizer.fingerprint:
            raise UserError("the checkpoint was trained with another tokenizer; use the tokenizer of its run folder")
        step, num_steps = checkpoint["global_step"], self.plan.num_steps
        if self.trainer.state.fn == "fit" and step >= num_steps and self.trainer.is_global_zero:
            print(
                f"the checkpoint is at step {step} of {num_steps}; --trainer.max_steps sets a later end",
                file=sys.stderr,
            )


def describe_differences(other: dict[str, Any], ours: dict[str, Any]) -> str:
    """Which fields of two model configs differ, and how; empty if none does."""
    names = [name for name in ours if other.get(name) != ours[name]]
    return ", ".join(f"{name} {other.get(name)} instead of {ours[name]}" for name in names)
