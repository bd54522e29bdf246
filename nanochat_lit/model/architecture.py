"""Model class of a config: one of this package by its name, or a variant from another module by its class path."""

import os
import sys

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.recipes import import_class
from nanochat_lit.model.config import NANOCHAT_2025, NANOCHAT_2026, QWEN3, REFERENCE_ARCHITECTURE, GPTConfig
from nanochat_lit.model.earlier_nanochat import Nanochat2025GPT, Nanochat2026GPT
from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.qwen3 import Qwen3GPT

NAMED: dict[str, type[GPT]] = {
    REFERENCE_ARCHITECTURE: GPT,
    QWEN3: Qwen3GPT,
    NANOCHAT_2025: Nanochat2025GPT,
    NANOCHAT_2026: Nanochat2026GPT,
}
"""Architectures of this package."""

TRUST_VARIABLE = "NANOCHAT_TRUST_ARCHITECTURE"
"""Environment variable with the class path that exports and checkpoints may import."""


def model_class(architecture: str, *, is_trusted: bool = False) -> type[GPT]:
    """Return the class of an architecture: one of `NAMED`, or the class path of a subclass of GPT (else UserError).

    Importing a module runs its code, so a class path that comes from a file (`is_trusted` is False) is followed only if
    its module is loaded already or the environment variable NANOCHAT_TRUST_ARCHITECTURE names it.
    """
    if architecture in NAMED:
        return NAMED[architecture]
    if not (
        is_trusted or architecture.rpartition(".")[0] in sys.modules or os.environ.get(TRUST_VARIABLE) == architecture
    ):
        raise UserError(
            f"the model's architecture is {architecture}, code outside nanochat-lit; "
            f"set {TRUST_VARIABLE}={architecture} to import it if you trust it"
        )
    found = import_class(architecture, "architecture")
    if not issubclass(found, GPT):
        raise UserError(
            f"architecture {architecture} is not a subclass of nanochat_lit.GPT; "
            f"use {', '.join(NAMED)} or the class path of one, such as my_module.MyGPT"
        )
    return found


def build_model(config: GPTConfig, *, is_trusted: bool = False, **options: object) -> GPT:
    """Return the model of a config with uninitialized weights; `options` are those of its class (see `model_class`)."""
    return model_class(config.architecture, is_trusted=is_trusted)(config, **options)  # type: ignore[arg-type]
