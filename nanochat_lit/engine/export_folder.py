"""Writing of exports: the files of the folder, and checks that they belong together.

config.json  model.safetensors  tokenizer.json  tokenizer.model  generation.json  provenance.json

The tokenizer of an imported nanochat model has tokenizer.tiktoken in place of tokenizer.model.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import whole_folder, write_json
from nanochat_lit.engine.sampling_params import CHAT_PARAMS
from nanochat_lit.model import GPT
from nanochat_lit.model.export import save_model
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.tokenizer import MODEL_FILES as TOKENIZER_FILES

EXPORT_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    TOKENIZER_FILES[0],
    "generation.json",
    "provenance.json",
)

GENERATION_FIELDS = ("temperature", "top_k", "max_new_tokens")
"""Fields of generation.json."""


def save_export(
    folder: str | Path,
    model: GPT,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write an export atomically; replaces an existing export.

    Args:
        folder: Target folder; parents are created.
        model: Model to export.
        tokenizer: Tokenizer of the model.
        generation: Default sampling settings: temperature, top_k, max_new_tokens.
        provenance: Training history as JSON-safe data; the tokenizer's fingerprint is added.

    Raises:
        UserError: If the tokenizer does not match the model, a setting is unknown, or the folder has other contents.
    """
    target = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve would follow a link and replace what it points to)
    check_vocabulary(model, tokenizer, target)
    if unknown := sorted(set(generation or {}) - set(GENERATION_FIELDS)):
        raise UserError(f"unknown generation settings {unknown}; use {', '.join(GENERATION_FIELDS)}")
    settings = CHAT_PARAMS.updated(generation or {})
    with whole_folder(target, {*EXPORT_FILES, *TOKENIZER_FILES}, "an export") as temporary:
        save_model(model, temporary)
        tokenizer.write_files(temporary)
        write_json(temporary / "generation.json", {name: getattr(settings, name) for name in GENERATION_FIELDS})
        made = {**(provenance or {}), "tokenizer_fingerprint": tokenizer.fingerprint}
        write_json(temporary / "provenance.json", made)


def copy_export(source: Path, out: str | Path) -> None:
    """Copy the files of an export into a new folder, atomically; replaces an existing export."""
    check_files(source)
    names = {*EXPORT_FILES, *TOKENIZER_FILES}
    with whole_folder(out, names, "an export") as folder:
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def check_files(folder: Path) -> None:
    """Raise UserError if a folder is not a complete export."""
    missing = [name for name in EXPORT_FILES if not (folder / name).is_file()]
    if any((folder / name).is_file() for name in TOKENIZER_FILES[1:]):
        missing = [name for name in missing if name != TOKENIZER_FILES[0]]
    advice = "give an export, a run folder such as runs/quickstart, or a .ckpt file"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {advice}")
    if missing:
        raise UserError(f"{folder} is not a complete export: {', '.join(missing)} missing; {advice}")


def check_vocabulary(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise UserError if model and tokenizer have vocabularies of different sizes."""
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder}: the model has a vocabulary of {model.config.vocab_size}, but the tokenizer of "
            f"{tokenizer.vocab_size}; they belong to different exports"
        )
