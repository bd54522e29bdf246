"""Model files without pickle: config.json and model.safetensors."""

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import resolve_compute_dtype
from nanochat_lit.common.paths import new_file_mode, read_json, write_json
from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.lora import merged

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_model(model: GPT, folder: str | Path) -> None:
    """Write config.json and model.safetensors into an existing folder; a LoRA adapter is merged.

    Matrices are stored in float32 and embeddings in their storage dtype, so that training can resume from the files.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in merged(model.state_dict()).items()}
    save_tensors(tensors, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, model.config.to_dict())


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; a full disk raises OSError, as for other files."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(new_file_mode())


def read_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; UserError, which names its kind of folder, if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give the folder of {what}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); it is damaged or cut off, write it again") from None


def read_config(folder: str | Path) -> GPTConfig:
    """Return the model config of an export; UserError if the file is missing or has other contents."""
    path = Path(folder) / CONFIG_FILE
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} does not hold a model config")
    return GPTConfig.from_dict(fields)


def load_model(folder: str | Path, device: str | torch.device = "cpu", compute_dtype: str = "auto") -> GPT:
    """Load a model saved by `save_model`; UserError if a file is missing or broken, or the weights have other shapes."""
    folder, dtype = Path(folder), resolve_compute_dtype(compute_dtype, device)
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    model = assemble(config, read_tensors(path, "an export"), path)
    model.to(device)
    return model.set_compute_dtype(dtype)


def assemble(config: GPTConfig, tensors: dict[str, torch.Tensor], source: Path) -> GPT:
    """Return a model with these tensors (a LoRA adapter is merged), without copies; its compute dtype is not set.

    Names, shapes or dtypes that do not match raise UserError, which names their `source`.
    """
    tensors = merged(tensors)
    if odd := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise UserError(f"{source}: {odd[0]} is {tensors[odd[0]].dtype}; weights are floating-point numbers")
    with torch.device("meta"):
        model = build_model(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(
            f"{source} is not the model that its config.json describes: {len(odd)} tensors differ, first {odd[0]}: "
            f"{found.get(odd[0], 'absent')}, not {expected.get(odd[0], 'there')}"
        )
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(True)
    model.cos, model.sin = torch.empty(0), torch.empty(0)
    return model
