"""The portable folder that engine, server and evaluation read: weights, tokenizer, generation defaults, provenance.

config.json  model.safetensors  tokenizer.json  tokenizer.model  generation.json  provenance.json

The tokenizer of an imported nanochat model has tokenizer.tiktoken in place of tokenizer.model.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import find_device, is_free_choice
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, SamplingParams
from nanochat_lit.model import GPT
from nanochat_lit.model.export import load_model, save_model
from nanochat_lit.model.packed import Quantization, pack_linears
from nanochat_lit.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.tiktoken")
"""By kind of tokenizer; an export has one of them."""

EXPORT_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    TOKENIZER_FILES[0],
    "generation.json",
    "provenance.json",
)

_GENERATION = ("temperature", "top_k", "max_new_tokens")
"""Settings in generation.json."""


def save_export(
    folder: str | Path,
    model: GPT,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write an export; the folder appears whole or not at all, and replaces an older export of that name.

    Args:
        folder: Where; missing parents are made.
        model: Its weights and config.
        tokenizer: The one it was trained with.
        generation: What chat uses unless told otherwise: temperature, top_k, max_new_tokens; missing ones get defaults.
        provenance: How the model was made, plain JSON; the tokenizer's fingerprint is added.

    Raises:
        UserError: If the tokenizer is another model's, a generation setting is unknown, or the folder holds other things.
    """
    target = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve would follow a link and replace what it points to)
    _check_vocabulary(model, tokenizer, target)
    if unknown := sorted(set(generation or {}) - set(_GENERATION)):
        raise UserError(f"unknown generation settings {unknown}; use {', '.join(_GENERATION)}")
    settings = CHAT_PARAMS.updated(generation or {})
    with replaced_whole(target, {*EXPORT_FILES, *TOKENIZER_FILES}) as temporary:
        save_model(model, temporary)
        tokenizer.save(temporary)
        write_json(temporary / "generation.json", {name: getattr(settings, name) for name in _GENERATION})
        write_json(
            temporary / "provenance.json", {**(provenance or {}), "tokenizer_fingerprint": tokenizer.fingerprint}
        )


def load_export(
    folder: str | Path,
    device: str | torch.device | None = None,
    compute_dtype: str = "auto",
    *,
    cast_weights: bool = False,
    packed: bool = True,
    quantize: Quantization | None = None,
) -> tuple[GPT, Tokenizer]:
    """Read an export: the model in evaluation mode, and its tokenizer.

    Args:
        folder: What `save_export` wrote.
        device: Where to put the model; None is the fastest device there is.
        compute_dtype: "auto", "bfloat16", "float16" or "float32".
        cast_weights: Also store the matrices in it: same results, but no longer fit for training.
        packed: With cast_weights, lay the matrices out for decoding on this device; with "auto", a CPU that computes in
            float32 keeps them in bfloat16. False keeps them as they are, which suits evaluation in large batches.
        quantize: "int8" stores and multiplies the matrices in 8 bits (CPU); cast_weights is implied.

    Raises:
        UserError: If a file is missing, broken or of another export, or this device cannot quantize.
    """
    folder = Path(folder)
    _check_files(folder)
    tokenizer = Tokenizer.load(folder)
    provenance = read_json(folder / "provenance.json")
    expected = provenance.get("tokenizer_fingerprint") if isinstance(provenance, dict) else None
    if expected != tokenizer.fingerprint:
        raise UserError(f"the tokenizer in {folder} is not the one of its model (of another export?); export again")
    device = find_device(device)
    model = load_model(folder, device, compute_dtype, cast_weights=cast_weights)
    _check_vocabulary(model, tokenizer, folder)
    if (cast_weights and packed) or quantize:
        pack_linears(model, quantize, torch.bfloat16 if is_free_choice(compute_dtype) else None)
    return model.eval(), tokenizer


def load_generation_defaults(folder: str | Path) -> SamplingParams:
    """The sampling settings of an export: its temperature, top_k and max_new_tokens.

    Args:
        folder: What `save_export` wrote.

    Raises:
        UserError: If the file is missing or broken, or holds something else or a value that is not allowed.
    """
    path = Path(folder) / "generation.json"
    _check_files(Path(folder))
    settings = read_json(path)
    if not isinstance(settings, dict) or sorted(settings) != sorted(_GENERATION):
        raise UserError(f"{path} must hold exactly {', '.join(_GENERATION)}; export again")
    try:
        return SamplingParams(**settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_files(folder: Path) -> None:
    missing = [name for name in EXPORT_FILES if not (folder / name).is_file()]
    if any((folder / name).is_file() for name in TOKENIZER_FILES[1:]):
        missing = [name for name in missing if name != TOKENIZER_FILES[0]]
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the export folder of a run, such as runs/quickstart/export")
    if missing:
        raise UserError(
            f"{folder} is not a whole export: {', '.join(missing)} missing; give the export folder of a run, "
            "such as runs/quickstart/export"
        )


def _check_vocabulary(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder}: the model has a vocabulary of {model.config.vocab_size} and the tokenizer one of "
            f"{tokenizer.vocab_size}; they belong to different exports"
        )


@contextlib.contextmanager
def replaced_whole(target: Path, known_names: set[str]) -> Iterator[Path]:
    """A temporary sibling folder that takes the target's name when the block ends without an error.

    Args:
        target: The folder to make or replace.
        known_names: What an older one may hold; anything else is somebody's and never replaced.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a folder for the export")
    foreign = sorted({path.name for path in target.iterdir()} - known_names) if target.exists() else []
    if foreign:
        raise UserError(f"{target} holds {foreign[0]}, which is no part of an export; give a new or empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        new = workplace / "new"
        new.mkdir()  # not the workplace itself: mkdtemp's folder is closed to other users
        yield new
        if target.exists():
            target.rename(workplace / "old")  # two renames: nothing replaces a filled folder in one step everywhere
        try:
            new.rename(target)
        except OSError:
            if (workplace / "old").exists():
                (workplace / "old").rename(target)
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
