"""Stages that go on from an export: its model, its tokenizer, and the learning rates it was trained with."""

from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.export import find_model, load_export, load_tokenizer, read_provenance
from nanochat_lit.engine.sampling_params import CHAT_PARAMS
from nanochat_lit.optim.param_groups import EMBEDDING_LR, MATRIX_LR, SCALAR_LR, UNEMBEDDING_LR
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
"""What an export that does not say was trained with."""


def inherited(base: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of a stage: those that are given, else those of the export, else nanochat's.

    Args:
        base: Export folder or .ckpt file.
        given: By name; None asks for the export's.

    Raises:
        UserError: If a value of the export is not a positive number.
    """
    known = read_provenance(Path(base)).get("hyper_parameters", {})
    values = {name: DEFAULTS[name] if known.get(name) is None else known[name] for name in given}
    values |= {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"{name} is {value!r}; give a positive number (what {base} has holds unless one is given)")
    return values


class ContinuedModule(LanguageModule):
    """A stage that starts from an export.

    Args:
        base: Export, run folder or .ckpt file.
        rates: Learning rates by name; None takes the base's.
        tokens_per_step: To which batch the rates belong; None takes the base's.
        init_lr_fraction: Share of those rates that this stage begins with.
        temperature: What the export's chat samples at unless told otherwise.
        options: Of `LanguageModule`.
    """

    speaks_chat = True

    def __init__(
        self,
        *,
        base: str,
        rates: dict[str, float | None],
        tokens_per_step: int | None,
        init_lr_fraction: float,
        temperature: float,
        **options: Any,
    ) -> None:
        if not Path(base).exists():
            raise UserError(
                f"{base} does not exist; run the recipe that makes it first, or give an export or a run folder"
            )
        if init_lr_fraction <= 0:
            raise UserError(f"init_lr_fraction is {init_lr_fraction}; it must be positive")
        base = str(find_model(base))
        values = inherited(base, {**rates, "tokens_per_step": tokens_per_step})
        base_rates: dict[str, float] = {name: values[name] for name in rates}
        super().__init__(
            learning_rates={name: rate * init_lr_fraction for name, rate in base_rates.items()},
            **options,
        )
        self.base = base
        self.base_rates = base_rates
        self.tokens_per_step = int(values["tokens_per_step"])
        CHAT_PARAMS.updated({"temperature": temperature})  # checks it before the run, not at its end
        self.generation = {"temperature": temperature}

    @property
    def hyper_parameters(self) -> dict[str, float]:
        """The rates before this stage's share is taken, so that shares of later stages mean the same."""
        return self.base_rates | {"tokens_per_step": self.tokens_per_step}

    @property
    def lr_scale(self) -> float:
        """Factor on the learning rates for the batch that they belong to."""
        return (self.tokens_per_step / REFERENCE_TOKENS_PER_STEP) ** 0.5

    def start_from(self) -> Tokenizer | None:
        """The tokenizer of the base export, which the data must use."""
        return load_tokenizer(Path(self.base))

    def load_base(self) -> None:
        """Adopt the base's model and tokenizer.

        Raises:
            UserError: If the data have another tokenizer.
        """
        model, tokenizer = load_export(self.base, device="cpu", compute_dtype="float32")
        self.adopt(model, tokenizer)
        datamodule = self.datamodule
        if datamodule.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the tokenizer {datamodule.tokenizer_path} is not that of the base {self.base}; leave data.tokenizer out"
            )

    def checked_steps(self, num_steps: int | None) -> int | None:
        """Steps that are asked for, by the Trainer or the module; None for none."""
        num_steps = self.requested_steps(num_steps)
        if num_steps is not None and num_steps < 1:
            raise UserError(f"num_steps is {num_steps}; it must be positive")
        return num_steps
