"""Conversion of Hugging Face folders to exports: those that hf_export.py writes, and models of transformers' own classes.

No code of the folder is executed and no pickle is read: only JSON files, safetensors weights and the tokenizer.
"""

import re
from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine import native_folder
from nanochat_lit.engine.export_folder import save_export
from nanochat_lit.engine.hf_code import CODE_FILES
from nanochat_lit.engine.hf_tokenizer import TOKENIZER_FILES as HF_TOKENIZER_FILES
from nanochat_lit.engine.nanochat import tokenizer_of_hf
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.architecture import model_class
from nanochat_lit.model.config import ADDED_FIELDS
from nanochat_lit.model.export import CONFIG_FILE, WEIGHTS_FILE, assemble, read_tensors
from nanochat_lit.model.layers import SOFTCAP
from nanochat_lit.tokenizer import Tokenizer

MODEL_TYPE = "nanochat_lit"
OWN_FOLDER = "nanochat_lit"
"""Subfolder of data that transformers does not use, for a lossless conversion back."""

HF_FILES = {
    CONFIG_FILE, "generation_config.json", WEIGHTS_FILE, "README.md", OWN_FOLDER, *HF_TOKENIZER_FILES, *CODE_FILES,
}  # fmt: skip
"""Entries of a folder that `export --format hf` writes."""

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PREFIX = "model.network."
_PREFIX = r"^model\.(network\.)?"
"""Prefix of weight names in current folders, and in those before version 0.2."""


def import_hf(folder: str | Path, out: str | Path, tokenizer: str | Path | None = None) -> None:
    """Convert a Hugging Face folder to an export: written by `export_hf`, saved by transformers, or nanochat's of 2025.

    Args:
        folder: Hugging Face folder of this model type.
        out: Folder of the new export.
        tokenizer: Folder of the tokenizer and generation defaults, if `folder` lacks its nanochat_lit/.

    Raises:
        UserError: If the folder has another model type, is broken, or lacks a tokenizer.
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG_FILE)
    is_native = isinstance(values, dict) and values.get("model_type") in native_folder.ARCHITECTURES
    config = native_folder.gpt_config(values, folder) if is_native else _gpt_config(values, folder)
    own = folder / OWN_FOLDER if tokenizer is None else Path(tokenizer)
    foreign = folder / "tokenizer.json"
    is_foreign = is_native and tokenizer is None and not own.is_dir() and foreign.is_file()
    if not is_foreign and not (own / "tokenizer.json").is_file():
        raise UserError(f"{own} has no tokenizer; set --tokenizer to the original export")
    tensors = _load_tensors(folder)
    if is_native:
        tensors = native_folder.from_hf(config, tensors)
    else:
        tensors = {re.sub(_PREFIX, "", name): tensor for name, tensor in tensors.items()}
    model = assemble(config, tensors, folder / WEIGHTS_FILE)
    tokens = tokenizer_of_hf(foreign) if is_foreign else Tokenizer.load(own)
    save_export(out, model, tokens, _read_object(own / "generation.json"), _read_object(own / "provenance.json"))


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty without the file."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object; export again")
    return content


def softcap(model_class: type[GPT]) -> float | None:
    """Return the softcap of a model's logits; None without one."""
    return SOFTCAP if model_class.cap_logits is GPT.cap_logits else None


def _gpt_config(values: object, folder: Path) -> GPTConfig:
    if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
        found = values.get("model_type") if isinstance(values, dict) else None
        raise UserError(
            f"{folder} has the model type {found!r}; supported: {', '.join((MODEL_TYPE, *native_folder.ARCHITECTURES))}"
        )
    try:
        config = GPTConfig(
            sequence_len=values["max_position_embeddings"], vocab_size=values["vocab_size"], n_layer=values["n_layer"],
            n_head=values["num_attention_heads"], n_kv_head=values["num_key_value_heads"], n_embd=values["hidden_size"],
            window_pattern=values["window_pattern"],
            **{name: values.get(name, neutral) for name, neutral in ADDED_FIELDS.items()},
        )  # fmt: skip
        code = model_class(config.architecture)
        constants = {
            **code.constants(), "short_window": config.short_window, "padded_vocab_size": config.padded_vocab_size,
            "final_logit_softcapping": softcap(code),
        }  # fmt: skip
        changed = [name for name, value in constants.items() if values[name] != value]
    except KeyError as error:
        raise UserError(f"{folder / CONFIG_FILE} lacks {error}; it was not written by `export --format hf`") from None
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder} has {name} {values[name]!r}, this model {constants[name]!r}; it cannot be represented"
        )
    return config


def _load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    names = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).is_file() and (folder / INDEX_FILE).is_file():
        shards = _read_object(folder / INDEX_FILE).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{folder / INDEX_FILE} has no weight_map; save the model again")
        names = sorted({Path(str(name)).name for name in shards.values()})
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensors |= read_tensors(folder / name, "a Hugging Face model")
    return tensors
