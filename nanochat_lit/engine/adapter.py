"""LoRA adapters as files, in peft's format: adapter_config.json and adapter_model.safetensors."""

from pathlib import Path

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import folder_fingerprint, read_json, whole_folder, write_json
from nanochat_lit.engine.native_folder import MODEL_TYPES, hf_names
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.export import read_tensors, save_tensors
from nanochat_lit.model.lora import LoRA, adapter_tensors, merged

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

UNSUPPORTED = {
    "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False,
    "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip
"""Options of peft whose other values this package cannot merge."""


def save_adapter(folder: Path, model: GPT, lora: LoRA, base: str | Path) -> None:
    """Write the adapter of a model atomically; replaces an existing adapter.

    The path and digest of `base`, the export or checkpoint that it changes, are recorded.
    """
    names, tensors = _names(model.config), {}
    for name, tensor in adapter_tensors(model.state_dict()).items():
        layer, _, factor = name.rpartition(".")
        tensors[f"base_model.model.{names[layer]}.{factor}.weight"] = tensor.detach().float().cpu().contiguous()
    layers = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in tensors})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0,
        "target_modules": layers, "base_model_name_or_path": str(base), "inference_mode": True,
        "nanochat_lit": {"base_sha256": _digest(Path(base))},
        **UNSUPPORTED,
    }  # fmt: skip
    with whole_folder(folder, {CONFIG_FILE, WEIGHTS_FILE}, "an adapter") as new:
        save_tensors(tensors, new / WEIGHTS_FILE)
        write_json(new / CONFIG_FILE, config)


def merge_adapter(model: GPT, folder: str | Path, base: Path) -> None:
    """Add an adapter to a model's float32 matrices in place, exactly as the export of its run has them.

    `folder` holds the adapter, of this package or of peft; `base` is the export or checkpoint of the model. Raises
    UserError if it is not an adapter, is damaged, of another kind, or belongs to another base.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} is not an adapter: {CONFIG_FILE} is missing; give the folder adapter of a run with model.lora"
        )
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG_FILE} does not describe a LoRA adapter; give a run's folder adapter")
    for name, value in UNSUPPORTED.items():
        if (config.get(name) or value) != value:
            raise UserError(f"{folder} has {name} {config[name]!r}, which cannot be merged; train it with {value!r}")
    own = config.get("nanochat_lit")
    if isinstance(own, dict) and own.get("base_sha256") != _digest(base):
        raise UserError(
            f"{folder} was trained on other weights than {base}: on {config.get('base_model_name_or_path')}; give that model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(rank, int) and isinstance(alpha, (int, float)) and rank > 0 and alpha > 0):
        raise UserError(f"{folder / CONFIG_FILE} has r {rank!r} and lora_alpha {alpha!r}; both are positive numbers")
    factors = _read_factors(folder / WEIGHTS_FILE, model.config)
    state = model.state_dict()
    scale = torch.tensor(alpha / rank)
    for layer in {name.rpartition(".")[0] for name in factors}:
        pair = (factors.get(f"{layer}.lora_A"), factors.get(f"{layer}.lora_B"))
        weight = state.get(f"{layer}.weight")
        shapes = [None if part is None else tuple(part.shape) for part in pair]
        if weight is None or shapes != [(rank, weight.shape[1]), (weight.shape[0], rank)]:
            raise UserError(f"{folder / WEIGHTS_FILE}: {layer} has factors of shapes {shapes}, which do not fit {base}")
        factors[f"{layer}.lora_scale"] = scale
    model.load_state_dict(merged({**state, **{name: tensor.to(model.device) for name, tensor in factors.items()}}))


def _read_factors(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    tensors = read_tensors(path, "an adapter")
    names = {theirs: ours for ours, theirs in _names(config).items()}
    found = {}
    for name, tensor in tensors.items():
        layer, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if layer not in names or factor not in ("lora_A", "lora_B") or not tensor.is_floating_point():
            raise UserError(f"{path}: {name} ({tensor.dtype}) is not a factor of a matrix of this model")
        found[f"{names[layer]}.{factor}"] = tensor
    if not found:
        raise UserError(f"{path} has no tensors; train the adapter again")
    return found


def _names(config: GPTConfig) -> dict[str, str]:
    """Modules' names in the folder for transformers by ours."""
    if config.architecture in MODEL_TYPES:
        names = hf_names(config).items()
        return {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for ours, theirs in names}
    with torch.device("meta"):
        model = GPT(config)
    return {name: f"model.network.{name}" for name, _ in model.named_modules() if name}


def _digest(base: Path) -> str:
    """SHA-256 of the weights of an export, or of a checkpoint file."""
    return folder_fingerprint(base, (".safetensors",))
