"""The portable folder that engine, server and evaluation read: weights, tokenizer, generation defaults, provenance.

config.json  model.safetensors  tokenizer.json  tokenizer.model  generation.json  provenance.json

The tokenizer of an imported nanochat model has tokenizer.tiktoken in place of tokenizer.model.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import find_device, is_free_choice, resolve_compute_dtype
from nanochat_lit.common.paths import read_json, whole_folder, write_json
from nanochat_lit.engine.checkpoint import KEY, checkpoint_model, checkpoint_tokenizer, step_files
from nanochat_lit.engine.checkpoint import load as load_checkpoint
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, SamplingParams
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.export import load_model, save_model
from nanochat_lit.model.export import read_config as read_export_config
from nanochat_lit.model.packed import Quantization, pack_linears
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
    with whole_folder(target, {*EXPORT_FILES, *TOKENIZER_FILES}, "an export") as temporary:
        save_model(model, temporary)
        tokenizer.write_files(temporary)
        write_json(temporary / "generation.json", {name: getattr(settings, name) for name in _GENERATION})
        write_json(
            temporary / "provenance.json", {**(provenance or {}), "tokenizer_fingerprint": tokenizer.fingerprint}
        )


def load_export(
    source: str | Path,
    device: str | torch.device | None = None,
    compute_dtype: str = "auto",
    *,
    cast_weights: bool = False,
    packed: bool = True,
    quantize: Quantization | None = None,
) -> tuple[GPT, Tokenizer]:
    """Read an export, or the model of a checkpoint: in evaluation mode, with its tokenizer.

    Args:
        source: What `save_export` wrote, a run folder, or a .ckpt file; see `find_model`.
        device: Where to put the model; None is the fastest device there is.
        compute_dtype: "auto", "bfloat16", "float16" or "float32".
        cast_weights: Also store the matrices in it: same results, but no longer fit for training.
        packed: With cast_weights, lay the matrices out for decoding on this device; with "auto", a CPU that computes in
            float32 keeps them in bfloat16. False keeps them as they are, which suits evaluation in large batches.
        quantize: "int8" stores and multiplies the matrices in 8 bits (CPU); cast_weights is implied.

    Raises:
        UserError: If a file is missing, broken or of another export, or this device cannot quantize.
    """
    source = find_model(source)
    tokenizer = load_tokenizer(source)
    device = find_device(device)
    if source.is_file():
        model = checkpoint_model(source, load_checkpoint(source, mmap=True)).to(device)
        model.set_compute_dtype(resolve_compute_dtype(compute_dtype, device), cast_weights=cast_weights)
    else:
        model = load_model(source, device, compute_dtype, cast_weights=cast_weights)
    _check_vocabulary(model, tokenizer, source)
    if (cast_weights and packed) or quantize:
        pack_linears(model, quantize, torch.bfloat16 if is_free_choice(compute_dtype) else None)
    return model.eval(), tokenizer


def find_model(path: str | Path) -> Path:
    """The export folder or the checkpoint that a path means: one of these, or the newer of both in a run folder.

    Args:
        path: Export folder, run folder, folder of checkpoints, or .ckpt file.
    """
    path = Path(path)
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    export = path / "export"
    steps = step_files(path / "checkpoints") or step_files(path)
    if not (export / "provenance.json").is_file():
        return next(iter(steps.values()), path)
    known = read_provenance(export).get("steps")
    newest = next(iter(steps), 0)
    return steps[newest] if isinstance(known, int) and newest > known else export


def load_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer of what `find_model` found.

    Raises:
        UserError: If it is missing, or of another model.
    """
    if source.is_file():
        return checkpoint_tokenizer(source, load_checkpoint(source, mmap=True))
    _check_files(source)
    tokenizer = Tokenizer.load(source)
    if read_provenance(source).get("tokenizer_fingerprint") != tokenizer.fingerprint:
        raise UserError(f"the tokenizer in {source} is not the one of its model (of another export?); export again")
    return tokenizer


def read_provenance(source: Path) -> dict[str, Any]:
    """How a model that `find_model` found was made; empty if it does not say."""
    if source.is_file():
        checkpoint = load_checkpoint(source, mmap=True)
        return checkpoint[KEY].get("provenance", {"steps": checkpoint.get("global_step")})
    path = source / "provenance.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def read_config(source: Path) -> GPTConfig:
    """Dimensions of a model that `find_model` found."""
    if source.is_file():
        return GPTConfig.from_dict(load_checkpoint(source, mmap=True)[KEY]["config"])
    return read_export_config(source)


def limits_of(provenance: Mapping[str, Any]) -> str | None:
    """Why a model may answer badly, in a sentence; None if nothing is known.

    Args:
        provenance: Of the model.
    """
    steps, planned = provenance.get("steps"), provenance.get("planned_steps")
    if note := provenance.get("note"):
        return str(note)
    if provenance.get("stage") == "pretrain":
        return (
            "this is a base model, which continues text: it has not learned to answer; "
            "fine-tune it (`nanochat-lit fit --config recipes/sft.yaml --model.base RUN`)"
        )
    if isinstance(steps, int) and isinstance(planned, int) and steps < planned:
        return f"training was stopped after step {steps} of {planned}"
    return None


def export_checkpoint(path: str | Path, out: str | Path) -> None:
    """Write an export of a checkpoint.

    Args:
        path: A .ckpt file.
        out: The export folder.

    Raises:
        UserError: If it is not a checkpoint of ours, its tokenizer is missing, or `out` holds other things.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path, mmap=True)
    model, tokenizer = checkpoint_model(path, checkpoint), checkpoint_tokenizer(path, checkpoint)
    save_export(out, model, tokenizer, checkpoint[KEY].get("generation"), read_provenance(path))


def load_generation_defaults(source: str | Path) -> SamplingParams:
    """The sampling settings of an export: its temperature, top_k and max_new_tokens.

    Args:
        source: What `save_export` wrote, a run folder, or a .ckpt file.

    Raises:
        UserError: If the file is missing or broken, or holds something else or a value that is not allowed.
    """
    source = find_model(source)
    if source.is_file():
        return CHAT_PARAMS.updated(load_checkpoint(source, mmap=True)[KEY].get("generation", {}))
    path = source / "generation.json"
    _check_files(source)
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
        raise UserError(f"there is no {folder}; give an export, a run folder such as runs/quickstart, or a .ckpt file")
    if missing:
        raise UserError(
            f"{folder} is not a whole export: {', '.join(missing)} missing; give an export, "
            "a run folder such as runs/quickstart, or a .ckpt file"
        )


def _check_vocabulary(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder}: the model has a vocabulary of {model.config.vocab_size} and the tokenizer one of "
            f"{tokenizer.vocab_size}; they belong to different exports"
        )
