"""Conversion of exports to Hugging Face folders, which transformers loads, and back (`import_hf`).

Models of the architectures qwen3 and nanochat2025 use transformers' own classes (native_folder.py). Others need the code in their folder and
trust_remote_code.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja
README.md configuration_nanochat_lit.py  modeling_nanochat_lit.py  transformer.py  layers.py  rotary.py  config.py
errors.py (hf_code.py says why) nanochat_lit/ (the original tokenizer, generation defaults and provenance)
"""

import shutil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, whole_folder, write_json
from nanochat_lit.engine import native_folder
from nanochat_lit.engine.export import (
    EXPORT_FILES,
    load_export,
    load_generation_defaults,
    save_export,
)
from nanochat_lit.engine.hf_code import CODE_FILES, CONFIGURATION, MODELLING, code_files
from nanochat_lit.engine.hf_tokenizer import TOKENIZER_FILES as HF_TOKENIZER_FILES
from nanochat_lit.engine.hf_tokenizer import write_hf_tokenizer
from nanochat_lit.engine.model_card import model_card
from nanochat_lit.engine.nanochat_tokenizer import tokenizer_of_hf
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.architecture import model_class
from nanochat_lit.model.config import ADDED_FIELDS, NATIVE_ARCHITECTURES
from nanochat_lit.model.export import CONFIG_FILE, WEIGHTS_FILE, assemble, save_tensors
from nanochat_lit.model.layers import SOFTCAP
from nanochat_lit.model.rotary import ROTARY_BASE
from nanochat_lit.model.transformer import QK_SCALE, VALUE_GATE_SCALE
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END
from nanochat_lit.tokenizer.tokenizer import MODEL_FILES

MODEL_TYPE = "nanochat_lit"
OWN_FOLDER = "nanochat_lit"
"""Subfolder of data that transformers does not use, for a lossless conversion back."""

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
HF_FILES = {
    CONFIG_FILE, "generation_config.json", WEIGHTS_FILE, "README.md", OWN_FOLDER, *HF_TOKENIZER_FILES, *CODE_FILES,
}  # fmt: skip
_PREFIXES = ("model.network.", "model.")
"""Prefixes of weight names, in current folders and in those before version 0.2."""

SHORTEST_HEAD = 8
"""Minimum channels per head that storing the previous token needs."""

WeightDtype: TypeAlias = Literal["stored", "bfloat16"]


def export_hf(export: str | Path, out: str | Path, dtype: WeightDtype = "stored") -> None:
    """Write an export as a Hugging Face folder, atomically.

    Args:
        export: Export to convert.
        out: Target folder; an existing folder of this kind is replaced.
        dtype: "stored" keeps the weights exactly (float32 matrices); "bfloat16" halves the file size, but such a model
            cannot be trained further.

    Raises:
        UserError: If the export is broken, or `out` has other contents.
    """
    export, target = Path(export), Path(out).absolute()
    model, tokenizer = load_export(export, "cpu", "float32")
    is_native = model.config.architecture in NATIVE_ARCHITECTURES
    if model.config.head_dim < SHORTEST_HEAD and not is_native:
        raise UserError(f"heads of {model.config.head_dim} channels cannot be exported; the minimum is {SHORTEST_HEAD}")
    defaults = load_generation_defaults(export)
    code = {} if is_native else code_files(type(model))
    with whole_folder(target, HF_FILES | code.keys(), "a folder for Hugging Face") as folder:
        save_tensors(_tensors(export, dtype, model.config), folder / WEIGHTS_FILE)
        write_json(folder / CONFIG_FILE, _config(model, tokenizer, dtype))
        write_json(folder / "generation_config.json", _generation_config(defaults, tokenizer))
        write_hf_tokenizer(folder, tokenizer, model.config.sequence_len)
        for name, text in code.items():
            (folder / name).write_text(text, encoding="utf-8")
        own = folder / OWN_FOLDER
        own.mkdir()
        for name in {*EXPORT_FILES, *MODEL_FILES} - {CONFIG_FILE, WEIGHTS_FILE}:
            if (export / name).is_file():
                shutil.copyfile(export / name, own / name)
        with atomic_write(folder / "README.md", "w") as file:
            file.write(model_card(export, target.name, model))


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
        tensors = {_our_name(name): tensor for name, tensor in tensors.items()}
    model = assemble(config, tensors, folder / WEIGHTS_FILE)
    known = {name: read_json(own / name) for name in ("generation.json", "provenance.json") if (own / name).is_file()}
    save_export(
        out,
        model,
        tokenizer_of_hf(foreign) if is_foreign else Tokenizer.load(own),
        known.get("generation.json"),
        known.get("provenance.json"),
    )


def _tensors(export: Path, dtype: WeightDtype, config: GPTConfig) -> dict[str, torch.Tensor]:
    """Return the stored weights by their names in transformers."""
    with safe_open(export / WEIGHTS_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if config.architecture in NATIVE_ARCHITECTURES:
        tensors = native_folder.to_hf(config, tensors)
    else:
        tensors = {_hf_name(name): tensor for name, tensor in tensors.items()}
    if dtype == "bfloat16":
        tensors = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    return tensors


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"{_PREFIXES[0]}{name}"


def _our_name(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _config(model: GPT, tokenizer: Tokenizer, dtype: WeightDtype) -> dict[str, Any]:
    config = model.config
    stored = "float32" if dtype == "stored" else dtype
    if config.architecture in NATIVE_ARCHITECTURES:
        return {**native_folder.hf_config(config), "dtype": stored, **_token_ids(tokenizer)}
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["NanochatLitForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION}.NanochatLitConfig",
            "AutoModel": f"{MODELLING}.NanochatLitModel",
            "AutoModelForCausalLM": f"{MODELLING}.NanochatLitForCausalLM",
        },
        "dtype": stored,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.padded_vocab_size,
        "hidden_size": config.n_embd,
        "n_layer": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "window_pattern": config.window_pattern,
        **{name: value for name, value in config.to_dict().items() if name in ADDED_FIELDS},
        "short_window": config.short_window,
        "rope_theta": ROTARY_BASE,
        "qk_scale": QK_SCALE,
        "value_gate_scale": VALUE_GATE_SCALE,
        "final_logit_softcapping": _softcap(type(model)),
        **_token_ids(tokenizer),
    }


def _softcap(model_class: type[GPT]) -> float | None:
    return SOFTCAP if model_class.cap_logits is GPT.cap_logits else None


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    ends = [tokenizer.special_ids[ASSISTANT_END], tokenizer.bos_id]  # a base model ends a document with the next bos
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, "pad_token_id": tokenizer.bos_id}


def _generation_config(defaults: SamplingParams, tokenizer: Tokenizer) -> dict[str, Any]:
    sampling = (
        {"do_sample": True, "temperature": defaults.temperature, "top_k": defaults.top_k}
        if defaults.temperature
        else {"do_sample": False}
    )
    return {**_token_ids(tokenizer), **sampling, "max_new_tokens": defaults.max_new_tokens}


def _gpt_config(values: object, folder: Path) -> GPTConfig:
    """Convert a transformers configuration."""
    if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
        found = values.get("model_type") if isinstance(values, dict) else None
        raise UserError(
            f"{folder} has the model type {found!r}; supported: {', '.join((MODEL_TYPE, *native_folder.ARCHITECTURES))}"
        )
    constants = {"rope_theta": ROTARY_BASE, "qk_scale": QK_SCALE, "value_gate_scale": VALUE_GATE_SCALE}
    try:
        config = GPTConfig(
            sequence_len=values["max_position_embeddings"], vocab_size=values["vocab_size"], n_layer=values["n_layer"],
            n_head=values["num_attention_heads"], n_kv_head=values["num_key_value_heads"], n_embd=values["hidden_size"],
            window_pattern=values["window_pattern"],
            **{name: values.get(name, neutral) for name, neutral in ADDED_FIELDS.items()},
        )  # fmt: skip
        constants |= {
            "short_window": config.short_window, "padded_vocab_size": config.padded_vocab_size,
            "final_logit_softcapping": _softcap(model_class(config.architecture)),
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
    """Load weights by their names, from one file or from transformers' shards."""
    names = [WEIGHTS_FILE]
    if not (folder / WEIGHTS_FILE).is_file() and (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE)
        names = sorted({Path(str(name)).name for name in index["weight_map"].values()})
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        path = folder / name
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"{path} is missing; give a folder that `export --format hf` wrote") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); it is damaged or truncated") from None
    return tensors
