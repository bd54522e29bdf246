"""Base class of stages that continue from an export: its model, tokenizer and learning rates."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError, check_positive
from nanochat_lit.engine.checkpoint import KEY
from nanochat_lit.engine.export import find_model, load_export, load_tokenizer, read_config, read_provenance
from nanochat_lit.engine.sampling_params import CHAT_PARAMS
from nanochat_lit.model import GPT
from nanochat_lit.model.accounting import flops_per_token
from nanochat_lit.model.lora import LoRA, add_lora
from nanochat_lit.optim import Schedule, TrainingPlan
from nanochat_lit.optim.build import EMBEDDING_LR, MATRIX_LR, SCALAR_LR, UNEMBEDDING_LR
from nanochat_lit.optim.scaling import REFERENCE_TOKENS_PER_STEP
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.module import LanguageModule

DEFAULTS: dict[str, float] = {
    "unembedding_lr": UNEMBEDDING_LR,
    "embedding_lr": EMBEDDING_LR,
    "matrix_lr": MATRIX_LR,
    "scalar_lr": SCALAR_LR,
    "tokens_per_step": REFERENCE_TOKENS_PER_STEP,
}
"""Assumed hyper-parameters of exports that do not record them."""


def inherited(base: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a stage: the given values that are not None, else the export's, else nanochat's."""
    known = read_provenance(Path(base)).get("hyper_parameters", {})
    values = {name: DEFAULTS[name] if known.get(name) is None else known[name] for name in given}
    values |= {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"{name} is {value!r}; set it to a positive number (the default is the value in {base})")
    return values


class ContinuedModule(LanguageModule):
    """A stage that starts from an export.

    Args:
        base: Initial model: an export, a run folder, a .ckpt file, or hf://OWNER/NAME.
        num_steps: Optimizer steps; None is one pass over the data. trainer.max_steps overrides it.
        tokens_per_step: Batch size that the learning rates refer to, tokens; None uses the base's.
        init_lr_fraction: Initial fraction of the learning rates of pretraining.
        unembedding_lr: As in pretraining; None uses the base's value.
        embedding_lr: Likewise.
        matrix_lr: Likewise.
        scalar_lr: Likewise.
        warmup: Steps of linear learning-rate warmup.
        warmdown: Fraction of the run over which learning rates decay.
        final_lr_fraction: Final learning rate as a fraction of its maximum.
        temperature: Default sampling temperature of the export; 0 is greedy.
        lora: Train a LoRA adapter instead of the whole model; null trains everything.
        options: Options of `LanguageModule`.
    """

    speaks_chat = True

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        *,
        base: str,
        num_steps: int | None = None,
        tokens_per_step: int | None = None,
        init_lr_fraction: float = 0.8,
        unembedding_lr: float | None = None,
        embedding_lr: float | None = None,
        matrix_lr: float | None = None,
        scalar_lr: float | None = None,
        warmup: int = 0,
        warmdown: float = 1.0,
        final_lr_fraction: float = 0.0,
        temperature: float = 0.6,
        lora: LoRA | None = None,
        **options: Any,
    ) -> None:
        found = find_model(base)
        if not found.exists():
            raise UserError(
                f"{base} does not exist; run the recipe that creates it first, or give an export or a run folder"
            )
        check_positive(init_lr_fraction=init_lr_fraction)
        base = str(found)
        rates = {"unembedding_lr": unembedding_lr, "embedding_lr": embedding_lr, "matrix_lr": matrix_lr, "scalar_lr": scalar_lr}  # fmt: skip
        values = inherited(base, {**rates, "tokens_per_step": tokens_per_step})
        base_rates: dict[str, float] = {name: values[name] for name in rates}
        initial_rates = {name: rate * init_lr_fraction for name, rate in base_rates.items()}
        super().__init__(learning_rates=initial_rates if lora is None else {"lora_lr": lora.lr}, **options)
        self.lora = lora
        self.base, self.num_steps = base, num_steps
        self.base_rates = base_rates
        self.tokens_per_step = int(values["tokens_per_step"])
        CHAT_PARAMS.updated({"temperature": temperature})  # validates it before the run rather than at the end
        self.generation = {"temperature": temperature}
        self.schedule_options: dict[str, Any] = {
            "warmup": warmup, "warmdown": warmdown, "final_lr_fraction": final_lr_fraction,
            "momentum_start": 0.95, "momentum_peak": 0.95, "momentum_warmup": 0, "momentum_final": 0.95,
        }  # fmt: skip
        self._base_model: list[GPT] = []  # a list, so that it is not a submodule and is neither trained nor saved
        self._transcripts: list[str] = []

    def check_settings(self, *rules: tuple[str, bool, str]) -> None:
        """Raise UserError for the first setting, of (name, is valid, hint), that is not valid."""
        for name, is_valid, hint in rules:
            if not is_valid:
                raise UserError(f"{name} is {getattr(self, name)}; {hint}")

    @property
    def hyper_parameters(self) -> dict[str, float]:
        """Return the learning rates before init_lr_fraction, so that later stages start from the same values."""
        return self.base_rates | {"tokens_per_step": self.tokens_per_step}

    @cached_property
    def context(self) -> int:
        """Context length of the base, tokens; known before the model is loaded."""
        return read_config(Path(self.base)).sequence_len

    def start_from(self) -> Tokenizer | None:
        """Return the tokenizer of the base export, which the data must use."""
        return load_tokenizer(Path(self.base))

    def load_base(self) -> None:
        """Load the base's model and tokenizer; UserError if the data use another tokenizer."""
        model, tokenizer = load_export(self.base, device="cpu", compute_dtype="float32")
        if self.lora is not None:
            count = add_lora(model, self.lora)
            trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
            self.notes["lora"] = f"rank {self.lora.rank} on {count} matrices, {trained:,} trained parameters"
        self.adopt(model, tokenizer)
        datamodule = self.datamodule
        if datamodule.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the tokenizer {datamodule.tokenizer_path} differs from that of the base {self.base}; remove data.tokenizer"
            )

    def load_frozen(self, source: str) -> GPT:
        """Return another model (as `base`), frozen, on the device and in the dtype of the model in training.

        UserError if its tokenizer differs, or its context is shorter.
        """
        frozen, tokenizer = load_export(source, device="cpu", compute_dtype="float32")
        if tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                f"the tokenizer of {source} differs from that of the base {self.base}; use a model with the same"
            )
        if frozen.config.sequence_len < self.context:
            lengths = f"{frozen.config.sequence_len} tokens, shorter than the {self.context} of the base {self.base}"
            raise UserError(f"the context of {source} is {lengths}; use a model with at least as much")
        frozen.requires_grad_(False).to(self.device)
        return frozen.set_compute_dtype(self.model.compute_dtype, cast_weights=True)

    @property
    def base_model(self) -> GPT:
        """The base, frozen; loaded when it is first needed."""
        if not self._base_model:
            self._base_model.append(self.load_frozen(self.base))
        return self._base_model[0]

    def transcripts(self) -> list[str]:
        return self._transcripts

    def start_stage(self, one_pass: Callable[[], int], tokens_per_step: int) -> None:
        """Set the plan and the schedule: a constant batch size, no weight decay.

        `one_pass` returns the steps of one pass over the data, for a run that does not set its number of steps.
        """
        num_steps = self.requested_steps(self.num_steps)
        if num_steps is None:
            num_steps = max(1, one_pass())
        check_positive(num_steps=num_steps)
        plan = TrainingPlan(
            target_tokens=num_steps * tokens_per_step,
            tokens_per_step=tokens_per_step,
            num_steps=num_steps,
            lr_scale=(self.tokens_per_step / REFERENCE_TOKENS_PER_STEP) ** 0.5,
            weight_decay=0.0,
            flops_per_token=flops_per_token(self.config),
        )
        self.start_plan(plan, Schedule(num_steps=num_steps, **self.schedule_options))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["lora"] = None if self.lora is None else asdict(self.lora)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved, own = checkpoint[KEY].get("lora"), None if self.lora is None else asdict(self.lora)
        if saved != own:
            raise UserError(f"the checkpoint was trained with model.lora {saved}, the recipe has {own}; use the same")
