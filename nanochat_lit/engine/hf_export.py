"""Conversion of exports to Hugging Face folders, which transformers loads; hf_import.py converts them back.

Models of the architectures qwen3 and nanochat2025 use transformers' own classes (native_folder.py). Others need the
code in their folder and trust_remote_code.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja
README.md configuration_nanochat_lit.py  modeling_nanochat_lit.py  transformer.py  layers.py  rotary.py  config.py
errors.py (hf_code.py says why) nanochat_lit/ (the original tokenizer, generation defaults and provenance)
"""

import shutil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import whole_folder, write_json
from nanochat_lit.engine import native_folder
from nanochat_lit.engine.export import load_export, load_generation_defaults
from nanochat_lit.engine.export_folder import EXPORT_FILES
from nanochat_lit.engine.hf_code import CONFIGURATION, MODELLING, code_files
from nanochat_lit.engine.hf_import import HF_FILES, MODEL_TYPE, OWN_FOLDER, PREFIX, softcap
from nanochat_lit.engine.hf_tokenizer import write_hf_tokenizer
from nanochat_lit.engine.model_card import model_card
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.config import ADDED_FIELDS, NATIVE_ARCHITECTURES
from nanochat_lit.model.export import CONFIG_FILE, WEIGHTS_FILE, read_tensors, save_tensors
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END
from nanochat_lit.tokenizer.tokenizer import MODEL_FILES

SHORTEST_HEAD = 8
"""Minimum channels per head that storing the previous token needs."""

WeightDtype: TypeAlias = Literal["stored", "bfloat16"]


def export_hf(export: str | Path, out: str | Path, dtype: WeightDtype = "stored", name: str | None = None) -> None:
    """Write an export as a Hugging Face folder, atomically.

    Args:
        export: Export to convert.
        out: Target folder; an existing folder of this kind is replaced.
        dtype: "stored" keeps the weights exactly (float32 matrices); "bfloat16" halves the file size, but such a model
            cannot be trained further.
        name: Name of the model in its card; None is the folder's name.

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
        for module, text in code.items():
            (folder / module).write_text(text, encoding="utf-8")
        own = folder / OWN_FOLDER
        own.mkdir()
        for file in {*EXPORT_FILES, *MODEL_FILES} - {CONFIG_FILE, WEIGHTS_FILE}:
            if (export / file).is_file():
                shutil.copyfile(export / file, own / file)
        (folder / "README.md").write_text(model_card(export, name or target.name, model), encoding="utf-8")


def _tensors(export: Path, dtype: WeightDtype, config: GPTConfig) -> dict[str, torch.Tensor]:
    tensors = read_tensors(export / WEIGHTS_FILE, "an export")
    if config.architecture in NATIVE_ARCHITECTURES:
        tensors = native_folder.to_hf(config, tensors)
    else:
        tensors = {f"{'' if name.startswith('lm_head.') else PREFIX}{name}": tensor for name, tensor in tensors.items()}
    if dtype == "bfloat16":
        tensors = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    return tensors


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
        **type(model).constants(),
        "final_logit_softcapping": softcap(type(model)),
        **_token_ids(tokenizer),
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    ends = [tokenizer.special_ids[ASSISTANT_END], tokenizer.bos_id]  # a base model ends a document with the next bos
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, "pad_token_id": tokenizer.bos_id}


def _generation_config(defaults: SamplingParams, tokenizer: Tokenizer) -> dict[str, Any]:
    sampling = {"temperature": defaults.temperature, "top_k": defaults.top_k} if defaults.temperature else {}
    sampling = {"do_sample": bool(sampling), **sampling}
    return {**_token_ids(tokenizer), **sampling, "max_new_tokens": defaults.max_new_tokens}
