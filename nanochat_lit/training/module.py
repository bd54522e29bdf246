"""Base class of the training stages: a GPT, its optimizer and its loss."""

import math
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from nanochat_lit.common.compilers import use_configured_compiler
from nanochat_lit.common.distributed import say
from nanochat_lit.common.errors import UserError
from nanochat_lit.evaluation.bpb import BitsPerByte
from nanochat_lit.model import GPT, IGNORE_INDEX, GPTConfig
from nanochat_lit.model.attention import activate_flash_attention, fused_kernel
from nanochat_lit.model.gpt import Checkpointing
from nanochat_lit.model.loss_kernel import has_loss_kernel
from nanochat_lit.optim import OptimizerCallable, Schedule, TrainingPlan, build_optimizer, micro_batches
from nanochat_lit.optim.build import apply_schedule
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.datamodules import LanguageDataModule
from nanochat_lit.training.execution import (
    choose_micro_batch_size,
    convert_to_float8,
    decide_compile,
    decide_float8,
    describe_kernels,
    nvidia_capability,
)
from nanochat_lit.training.run_records import print_plan, save_plan, saved_micro_batch_size


class StepLosses:
    """Losses of the current step's micro-batches, and mean losses of the steps since the last `pop`."""

    def __init__(self) -> None:
        self._micro_batches: list[Tensor] = []
        self._steps: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Add the scalar loss of a micro-batch."""
        self._micro_batches.append(loss.detach())

    @property
    def latest(self) -> Tensor:
        """Return the loss of the last micro-batch of the current step."""
        return self._micro_batches[-1]

    def end_step(self) -> None:
        """Combine the micro-batches so far into one step; call it before the optimizer steps."""
        self._steps.append(torch.stack(self._micro_batches).mean())
        self._micro_batches.clear()

    def pop(self) -> Tensor:
        """Return the mean losses of the steps since the last call, (steps,)."""
        losses = torch.stack(self._steps)
        self._steps.clear()
        return losses

    def pending(self) -> Tensor | None:
        """Return the unread step losses on the CPU, for checkpoints between steps."""
        return torch.stack(self._steps).cpu() if self._steps else None

    def restore(self, pending: Tensor | None, device: torch.device) -> None:
        """Restore what `pending` returned."""
        self._micro_batches.clear()
        self._steps = [] if pending is None else list(pending.to(device).unbind())


class LanguageModule(LightningModule):
    """A GPT in training. Subclasses such as `PretrainModule` provide the model and the hyper-parameters.

    Args:
        learning_rates: Keyword arguments of `param_groups`.
        eval_every: Steps between validations; 0 validates only at the end.
        compile: auto, true or false: torch.compile; auto enables it on CUDA, and on CPU for long runs.
        activation_checkpointing: true recomputes each block in the backward pass: least memory, a third more compute.
            selective recomputes everything except matmuls and attention: half the memory, little time.
        fp8: auto, true or false: float8 matmuls in large layers; auto enables them if the GPU supports them (CUDA
            capability 8.9).
        optimizer: Optimizer to use instead of MuonAdamW, as class_path and init_args (for example torch.optim.AdamW).
            Its own learning rate and weight decay apply, and the schedule scales the learning rate.
    """

    stage: str
    speaks_chat: bool
    model: GPT
    tokenizer: Tokenizer
    plan: TrainingPlan
    schedule: Schedule
    token_bytes: Tensor

    figure = "val_bpb"
    """Name of the validation metric that ranks checkpoints."""
    higher_is_better = False
    """Whether higher values of the metric are better."""
    measures_text = True
    """Whether the validation metric needs held-out tokens that represent text."""
    shown_figures: tuple[str, ...] = ()
    """Metrics of `pop_step_figures` to show on the progress line."""

    def __init__(
        self,
        *,
        learning_rates: dict[str, float],
        eval_every: int = 250,
        compile: bool | Literal["auto"] = "auto",
        activation_checkpointing: Checkpointing = False,
        fp8: bool | Literal["auto"] = False,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        self.activation_checkpointing: Checkpointing = activation_checkpointing
        self.fp8_mode = str(fp8).lower()
        self.is_resuming = False
        self.learning_rates = learning_rates
        self.compile_mode = str(compile).lower()
        if self.compile_mode not in ("auto", "true", "false"):
            raise UserError(f"compile is {compile!r}; use auto, true or false")
        self.eval_every = eval_every
        self.metric = BitsPerByte()
        self.has_validation = True
        self.micro_batch_size = 0
        self.generation: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        """Lines for the run's table."""
        self.losses = StepLosses()
        self.logged_losses: list[float] = []
        """Mean loss of each step of the last log window over all ranks, nats per token."""

    @property
    def config(self) -> GPTConfig:
        """Configuration of the model."""
        return self.model.config

    @property
    def row_len(self) -> int:
        """Tokens per sequence of a training batch."""
        return self.config.sequence_len

    @property
    def hyper_parameters(self) -> dict[str, float]:
        """Return the learning rates to store in the export, for later stages."""
        return self.learning_rates | {"tokens_per_step": self.plan.tokens_per_step}

    @property
    def datamodule(self) -> LanguageDataModule:
        """DataModule of this run."""
        datamodule = cast(Any, self.trainer).datamodule
        if not isinstance(datamodule, LanguageDataModule):
            raise UserError("train with a DataModule of nanochat_lit.training: trainer.fit(module, datamodule=...)")
        return datamodule

    def start_from(self) -> Tokenizer | None:
        """Return the tokenizer of the base model; None if the data determine it."""
        raise NotImplementedError

    def check_batch(self, micro_batch_size: int, world_size: int, vocab_size: int | str = "auto") -> None:
        """Raise UserError for a batch that the ranks' micro-batches cannot fill, as far as known before the data."""
        raise NotImplementedError

    def config_before_data(self, vocab_size: int | str = "auto") -> GPTConfig | None:
        """Return the model configuration before the data are known; None if it does not determine the memory use."""
        return None

    def adopt(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Set the model to train and its tokenizer."""
        self.model, self.tokenizer = model, tokenizer
        model.activation_checkpointing = self.activation_checkpointing
        self.register_buffer("token_bytes", tokenizer.token_bytes(), persistent=False)

    def float8_choice(self, trainer: Trainer) -> tuple[bool, str]:
        """Return whether the run trains in float8 on its device, and why not; UserError if it must but cannot."""
        device = trainer.strategy.root_device
        dtype = getattr(trainer.precision_plugin, "compute_dtype", torch.float32)
        return decide_float8(self.fp8_mode, device.type, nvidia_capability(device), dtype)

    def start_plan(self, plan: TrainingPlan, schedule: Schedule) -> None:
        """Set the Trainer's steps, accumulation and validation interval from the plan."""
        trainer, datamodule = self.trainer, self.datamodule
        self.plan, self.schedule = plan, schedule
        if datamodule.micro_batch_size == "auto":
            # A resumed run keeps its micro-batch size: another one would change the order of summation.
            saved = saved_micro_batch_size(datamodule.run_dir) if self.is_resuming else None
            datamodule.micro_batch_size = saved or choose_micro_batch_size(self, plan.tokens_per_step)
        self.micro_batch_size = micro_batch_size = datamodule.micro_batch_size
        accumulate = micro_batches(plan.tokens_per_step, micro_batch_size, self.row_len, trainer.world_size)
        trainer.accumulate_grad_batches = accumulate
        trainer.fit_loop.epoch_loop.max_steps = plan.num_steps
        if trainer.limit_val_batches:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_interval = accumulate * (self.eval_every or plan.num_steps)

    def requested_steps(self, num_steps: int | None) -> int | None:
        """Return trainer.max_steps if it is set, else `num_steps`."""
        return num_steps if self.trainer.max_steps == -1 else self.trainer.max_steps

    def on_fit_start(self) -> None:
        will_compile, compile_reason = self.compile_choice()
        notes = {**self.notes, **self._prepare_kernels(will_compile), "compile": compile_reason}
        if self.trainer.is_global_zero:
            rows = (self.trainer.world_size, self.micro_batch_size, self.row_len)
            print_plan(self.config, self.plan, *rows, notes)
            save_plan(self.datamodule.run_dir, self.plan, self.micro_batch_size)
        self.model.train()
        self.model.prepare_windows(self.row_len)
        if will_compile:
            use_configured_compiler()
            self.model.compile_for_training(self.row_len)

    def check_validation(self) -> None:
        """Check on rank 0 whether the held-out data have text to predict; print a warning if not."""
        if not (self.measures_text and self.trainer.limit_val_batches):
            return
        found = True
        if self.trainer.is_global_zero:
            lengths = self.token_bytes.cpu()
            targets = (batch["targets"] for batch in self.datamodule.val_batches())
            found = any(bool((lengths[one.clamp(min=0)] * (one != IGNORE_INDEX)).any()) for one in targets)
        self.has_validation = self.trainer.strategy.broadcast(found)
        if not self.has_validation:
            say(
                "the held-out data have no text to predict (texts or answers are empty, or longer than the context): "
                f"{self.figure} is not reported"
            )

    def _prepare_kernels(self, will_compile: bool) -> dict[str, str]:
        """Set up attention and float8 on the device; return the choices for the run's table."""
        if self.device.type == "cuda" and torch.version.hip is None:
            activate_flash_attention(torch.cuda.get_device_capability(self.device), self.model.compute_dtype)
        full, windowed = self.model.attention_backends(is_compiling=will_compile)
        if self.device.type == "cuda" and full == "sdpa":
            full = fused_kernel(self.config, self.device, self.model.compute_dtype)
        notes = {
            "compute dtype": str(self.model.compute_dtype).removeprefix("torch."),
            "attention": f"{full} (full), {windowed} (windows)",
        }
        if self.device.type == "cpu":
            notes["kernels"] = describe_kernels()
        if self.model.num_sampled:
            has_kernel = has_loss_kernel(torch.empty(0, dtype=self.model.compute_dtype, device=self.device))
            some = f"the batch's and {self.model.num_sampled:,} others"
            notes["softmax over tokens"] = some if has_kernel else "all (sampling needs the C++ kernel)"
        trains_in_float8, note = self.float8_choice(self.trainer)
        if trains_in_float8:
            converted, all_layers = convert_to_float8(self.model)
            note = f"{converted} of {all_layers} linear layers"
        if self.fp8_mode != "false":
            notes["float8"] = note
        if self.activation_checkpointing:
            but = " except matmuls and attention" if self.activation_checkpointing == "selective" else ""
            notes["activations"] = f"recomputed in the backward pass, block by block{but}"
        return notes

    def validates_after(self, step: int) -> bool:
        """Return whether the run validates after this step."""
        is_due = step == self.plan.num_steps or (self.eval_every > 0 and step % self.eval_every == 0)
        return bool(step > 0 and self.trainer.limit_val_batches and is_due)

    def compile_choice(self) -> tuple[bool, str]:
        """Return whether this run's training steps are compiled, and a description of the reason."""
        return decide_compile(self.compile_mode, self.trainer.strategy.root_device.type, self.plan.total_flops)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates, and Muon's momentum and weight decay, from the schedule."""
        apply_schedule(self.trainer.optimizers[0], self.schedule, self.trainer.global_step, self.plan.weight_decay)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step >= self.plan.num_steps:
            self.trainer.should_stop = True  # the loop then runs a final validation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the model."""
        return build_optimizer(
            self.model, self.learning_rates, lr_scale=self.plan.lr_scale, weight_decay=self.plan.weight_decay,
            make=self.make_optimizer,
        )  # fmt: skip

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(batch["inputs"], batch["targets"])
        self.losses.add(loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.losses.end_step()

    def pop_step_losses(self) -> list[float]:
        """Return the mean loss per step since the last call over all ranks, nats per token; sets `logged_losses`."""
        losses = self.trainer.strategy.reduce(self.losses.pop(), reduce_op="mean")
        self.logged_losses = cast(Tensor, losses).tolist()
        return self.logged_losses

    def rank_state_dict(self) -> dict[str, Any]:
        """Return this rank's own state: the losses not yet averaged over the ranks."""
        return {"losses": self.losses.pending()}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `rank_state_dict` returned."""
        self.losses.restore(state["losses"], self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        losses = self.model(batch["inputs"], batch["targets"], reduction="none")
        self.metric.update(losses, batch["targets"], self.token_bytes)

    def on_validation_epoch_end(self) -> None:
        figures = self.pop_validation_figures()
        # In fit, Lightning would log under the previous step number: it counts a step after validating.
        in_fit = self.trainer.state.fn == "fit"
        if not in_fit and math.isnan(figures.get(self.figure, 0.0)):
            raise UserError(
                f"{self.figure} cannot be computed: the held-out data have no text to predict, or losses are not finite"
            )
        self.log_dict(figures, sync_dist=False, logger=not in_fit)
        if in_fit:
            self.log_figures(figures)

    def pop_validation_figures(self) -> dict[str, float]:
        """Return the validation metrics since the last call, over all ranks; includes `figure` if it is defined."""
        if not self.has_validation:
            return {}
        val_bpb = float(self.metric.compute())
        self.metric.reset()
        return {"val_bpb": val_bpb}

    def pop_step_figures(self) -> dict[str, float]:
        """Return the metrics of the steps since the last logged row, without losses; collective over the ranks."""
        return {}

    def transcripts(self) -> list[str]:
        """Return lines on the last validation for samples.md; if empty, the model answers prompts instead."""
        return []

    def log_figures(self, figures: dict[str, float]) -> None:
        """Log metrics in the row of this step."""
        for logger in self.trainer.loggers:
            logger.log_metrics(figures, self.trainer.global_step)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["nanochat_lit"] = {
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer.fingerprint,
            "optimizer": type(LanguageModule.configure_optimizers(self)).__name__,
            "provenance": self.provenance(),
            "generation": self.generation,
        }

    def provenance(self) -> dict[str, Any]:
        """Return the training history of the model, for exports."""
        return {
            "stage": self.stage,
            "steps": self.trainer.global_step,
            "planned_steps": self.plan.num_steps,
            "tokens": self.trainer.global_step * self.plan.tokens_per_step,
            "compute_dtype": str(self.model.compute_dtype).removeprefix("torch."),
            "hyper_parameters": self.hyper_parameters,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        made = checkpoint.get("nanochat_lit")
        if made is None:
            raise UserError("this checkpoint was not written by nanochat-lit; use one from a run folder")
        if differences := describe_differences(made["config"], self.config.to_dict()):
            raise UserError(f"the checkpoint's model differs from this run's: {differences}; use its recipe")
        if made["tokenizer"] != self.tokenizer.fingerprint:
            raise UserError("the checkpoint was trained with another tokenizer; use the tokenizer of its run folder")
        if self.trainer.state.fn != "fit":
            return
        check_optimizer(made, LanguageModule.configure_optimizers(self), "the checkpoint")
        step, num_steps = checkpoint["global_step"], self.plan.num_steps
        # Checkpoints are written between steps, so the micro-batch count follows from the step. With another
        # micro-batch size or number of ranks it differs, and the next step must begin with its first micro-batch.
        micro_batches_so_far = step * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for span in ("total", "current"):
            progress[span] = dict.fromkeys(progress[span], micro_batches_so_far)
            progress[span]["completed"] -= 1  # incremented after the hook that saves
        if step >= num_steps:
            say(f"the checkpoint is at step {step} of {num_steps}; set --trainer.max_steps to train longer")


def check_optimizer(made: dict[str, Any], optimizer: torch.optim.Optimizer, source: str | Path) -> None:
    """Raise UserError if a checkpoint (its entry `nanochat_lit`) has the state of another optimizer."""
    saved, ours = made.get("optimizer", "MuonAdamW"), type(optimizer).__name__
    if saved != ours:
        raise UserError(
            f"{source} has the optimizer state of {saved}, the recipe uses {ours}; use the same model.optimizer"
        )


def describe_differences(other: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return the differing fields of two model configurations as text; empty if there are none."""
    names = [name for name in ours if other.get(name) != ours[name]]
    return ", ".join(f"{name} {other.get(name)} instead of {ours[name]}" for name in names)
