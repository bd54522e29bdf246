"""Loading of models: exports, run folders, checkpoints, and models on the Hugging Face hub; `find_model` resolves them."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import find_device, is_free_choice, resolve_compute_dtype
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.adapter import merge_adapter
from nanochat_lit.engine.checkpoint import KEY, checkpoint_model, checkpoint_tokenizer, step_files
from nanochat_lit.engine.checkpoint import load as load_checkpoint
from nanochat_lit.engine.export_folder import GENERATION_FIELDS, check_files, check_vocabulary, save_export
from nanochat_lit.engine.hub import SCHEME, HubModel, fetch_model
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, SamplingParams
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.model.export import load_model
from nanochat_lit.model.export import read_config as read_export_config
from nanochat_lit.model.packed import Quantization, pack_linears
from nanochat_lit.tokenizer import Tokenizer


def load_export(
    source: str | Path,
    device: str | torch.device | None = None,
    compute_dtype: str = "auto",
    *,
    cast_weights: bool = False,
    packed: bool = True,
    quantize: Quantization | None = None,
    adapter: str | None = None,
) -> tuple[GPT, Tokenizer]:
    """Load an export or the model of a checkpoint in evaluation mode, with its tokenizer.

    Args:
        source: Model argument; see `find_model`.
        device: Device of the model; None selects the fastest available one.
        compute_dtype: "auto", "bfloat16", "float16" or "float32".
        cast_weights: Also store the matrices in the compute dtype: same results, but not suitable for training.
        packed: With cast_weights, repack the matrices for decoding on this device; with "auto", a CPU that computes in
            float32 stores them in bfloat16. False is better for evaluation in large batches.
        quantize: "int8" stores and multiplies the matrices in 8 bits, "int4" stores them in 4.5 (CPU only); implies
            cast_weights.
        adapter: Folder of a LoRA adapter of this model, to merge.

    Raises:
        UserError: If a file is missing, broken or from another export, or this device does not support quantization.
    """
    source = find_model(source)
    tokenizer = load_tokenizer(source)
    device = find_device(device)
    if source.is_file():
        model = checkpoint_model(source, load_checkpoint(source, mmap=True)).to(device)
        model.set_compute_dtype(resolve_compute_dtype(compute_dtype, device))
    else:
        model = load_model(source, device, compute_dtype)
    if adapter is not None:
        merge_adapter(model, adapter, source)
    if cast_weights:
        model.set_compute_dtype(model.compute_dtype, cast_weights=True)
    check_vocabulary(model, tokenizer, source)
    if (cast_weights and packed) or quantize:
        pack_linears(model, quantize, torch.bfloat16 if is_free_choice(compute_dtype) else None)
    return model.eval(), tokenizer


def find_model(path: str | Path) -> Path:
    """Return the export folder or checkpoint of a model argument; of a run folder, the newer of both.

    `path` is an export folder, run folder, folder of checkpoints, .ckpt file, or hf://OWNER/NAME[@REVISION]. Raises
    UserError if a model on the hub cannot be downloaded, or is not a model of nanochat-lit.
    """
    if str(path).startswith(SCHEME):
        return fetch_model(HubModel.parse(str(path)))
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
    """Load the tokenizer of a result of `find_model`; raises UserError if it is missing or belongs to another model."""
    if source.is_file():
        return checkpoint_tokenizer(source, load_checkpoint(source, mmap=True))
    check_files(source)
    tokenizer = Tokenizer.load(source)
    if read_provenance(source).get("tokenizer_fingerprint") != tokenizer.fingerprint:
        raise UserError(
            f"the tokenizer in {source} does not belong to its model (is it from another export?); export again"
        )
    return tokenizer


def read_provenance(source: Path) -> dict[str, Any]:
    """Return the training history of a result of `find_model`; empty if not recorded."""
    if source.is_file():
        checkpoint = load_checkpoint(source, mmap=True)
        return checkpoint[KEY].get("provenance", {"steps": checkpoint.get("global_step")})
    path = source / "provenance.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def read_config(source: Path) -> GPTConfig:
    """Return the configuration of a result of `find_model`."""
    if source.is_file():
        return GPTConfig.from_dict(load_checkpoint(source, mmap=True)[KEY]["config"])
    return read_export_config(source)


def limits_of(provenance: Mapping[str, Any]) -> str | None:
    """Return a sentence on why a model may answer badly; None if no reason is known."""
    steps, planned = provenance.get("steps"), provenance.get("planned_steps")
    if note := provenance.get("note"):
        return str(note)
    if provenance.get("stage") == "pretrain":
        return (
            "this is a base model, which continues text and was not trained to answer; "
            "fine-tune it (`nanochat-lit fit --config recipes/sft.yaml --model.base RUN`)"
        )
    if isinstance(steps, int) and isinstance(planned, int) and steps < planned:
        return f"training was stopped after step {steps} of {planned}"
    return None


def about_model(source: Path, config: GPTConfig) -> str:
    """Return sentences on the size and the training of a model, as far as they are recorded, and on its limits."""
    provenance = read_provenance(source)
    size = (
        f"{config.n_layer} layers of width {config.n_embd}, {count_parameters(config).total / 1e6:.3g} million "
        f"parameters, context {config.sequence_len:,} tokens."
    )
    limits = f" Note: {limits}." if (limits := limits_of(provenance)) else ""
    if "stage" not in provenance:
        return size + limits
    tokens, data = provenance.get("tokens"), provenance.get("data") or _data_of(source)
    amount = f", {tokens / 1e6:,.3g} million tokens" if isinstance(tokens, int) else ""
    return f"{size} Last stage of training: {provenance['stage']}{amount}{f', on {data}' if data else ''}.{limits}"


def _data_of(source: Path) -> str:
    """Return the names of the data in the recipe of the run folder around a model; empty if there is none."""
    import yaml

    path = source.resolve().parents[1 if source.is_file() else 0] / "config.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["init_args"]
        train = data.get("train", data.get("source"))
        if isinstance(train, dict):
            return ", ".join([train["class_path"].rpartition(".")[2]] if "class_path" in train else train)
        return "/".join(Path(data["path"]).parts[-2:])
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return ""


def export_checkpoint(path: str | Path, out: str | Path) -> None:
    """Write an export of a checkpoint; raises UserError if its tokenizer is missing, or `out` has other contents."""
    path = Path(path)
    checkpoint = load_checkpoint(path, mmap=True)
    model, tokenizer = checkpoint_model(path, checkpoint), checkpoint_tokenizer(path, checkpoint)
    save_export(out, model, tokenizer, checkpoint[KEY].get("generation"), read_provenance(path))


@contextlib.contextmanager
def as_export(source: Path) -> Iterator[Path]:
    """Yield the export folder of a result of `find_model`: itself, or a temporary export of a checkpoint."""
    if not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory() as name:
        export_checkpoint(source, Path(name) / "export")
        recipe = source.resolve().parent.parent / "config.yaml"
        if recipe.is_file():  # which the model card shows
            shutil.copyfile(recipe, Path(name) / "config.yaml")
        yield Path(name) / "export"


def load_generation_defaults(source: str | Path) -> SamplingParams:
    """Load the default sampling settings of an export: temperature, top_k and max_new_tokens.

    Args:
        source: Export, run folder, or .ckpt file.

    Raises:
        UserError: If the file is missing, broken, or has an invalid value.
    """
    source = find_model(source)
    if source.is_file():
        return CHAT_PARAMS.updated(load_checkpoint(source, mmap=True)[KEY].get("generation", {}))
    path = source / "generation.json"
    check_files(source)
    settings = read_json(path)
    if not isinstance(settings, dict) or sorted(settings) != sorted(GENERATION_FIELDS):
        raise UserError(f"{path} must have exactly {', '.join(GENERATION_FIELDS)}; export again")
    try:
        return SamplingParams(**settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
