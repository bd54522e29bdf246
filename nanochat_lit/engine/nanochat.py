"""Readers of nanochat's checkpoint folders (model_NNNNNN.pt and meta_NNNNNN.json) and of its tokenizers.

Parameters that nanochat has added since 2025 get neutral values in older files. Models of 2025 and of early 2026 have
architectures of their own. Files of models with another forward pass raise an error.

A tokenizer is tokenizer.pkl (a pickled tiktoken encoding) with token_bytes.pt, or a published tokenizer.json. A pickle
can execute code. The unpickler used here allows a single name, the encoding's class, and replaces it by an inert class,
so that no code of tiktoken or other libraries is called.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.hf_tokenizer import printable_bytes
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.config import (
    ADDED_FIELDS,
    NANOCHAT_2025,
    NANOCHAT_2026,
    SMEAR_GATE_CHANNELS,
    VALUE_GATE_CHANNELS,
)
from nanochat_lit.model.earlier_nanochat import Attention2026
from nanochat_lit.model.export import assemble
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer

COMPILE_PREFIX = "_orig_mod."

_RATES = ("unembedding_lr", "embedding_lr", "matrix_lr", "scalar_lr")


@dataclass(frozen=True)
class NanochatCheckpoint:
    """Contents of a checkpoint folder."""

    model: GPT
    """Model with its weights; matrices in float32, embeddings as stored."""
    step: int
    """Training step."""
    notes: list[str]
    """Changes made on import, one per line."""
    provenance: dict[str, Any]
    """JSON-safe training information of meta_NNNNNN.json, with the learning rates for later stages."""


def load_nanochat_checkpoint(folder: str | Path, step: int | None = None) -> NanochatCheckpoint:
    """Read a checkpoint without executing code in it.

    Args:
        folder: Folder with model_NNNNNN.pt and meta_NNNNNN.json.
        step: Step of the checkpoint; None is the newest.

    Raises:
        UserError: If files are missing or damaged, or the model cannot be represented.
    """
    path, step = _find(Path(folder), step)
    meta = read_json(path.with_name(path.name.replace("model_", "meta_")).with_suffix(".json"))
    notes: list[str] = []
    config = _config(meta, path, notes)
    tensors = _weights(load_tensors(path), path, notes)
    config = _recognized(tensors, config, notes)
    if config.architecture != NANOCHAT_2025:
        _refuse_other_formulas(tensors, config, path)
        _add_neutral(tensors, config, notes)
        _pad_vocabulary(tensors, config, notes)
    return NanochatCheckpoint(assemble(config, tensors, path), step, notes, _provenance(meta, step, notes))


def load_tensors(path: Path) -> Any:
    """Load a torch.save file of tensors and plain containers; raises UserError if it is damaged or has others."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a file of something else fails in many ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} cannot be read as tensors ({reason[:200]}); it is damaged or not a nanochat file"
        ) from None


def _find(folder: Path, step: int | None) -> tuple[Path, int]:
    if not folder.is_dir():
        raise UserError(
            f"folder {folder} does not exist; give a checkpoint folder of nanochat, such as base_checkpoints/d20"
        )
    found = {path: re.fullmatch(r"model_(\d+)\.pt", path.name) for path in folder.glob("model_*.pt")}
    steps = {int(match[1]): path for path, match in found.items() if match}
    if not steps:
        below = sorted(path.parent.name for path in folder.glob("*/model_*.pt"))
        hint = f"; it has checkpoints in {', '.join(dict.fromkeys(below))}: give one of these" if below else ""
        raise UserError(f"{folder} contains no model_NNNNNN.pt{hint}")
    if step is not None and step not in steps:
        raise UserError(f"{folder} has no step {step}; it has {', '.join(map(str, sorted(steps)))}")
    chosen = max(steps) if step is None else step
    return steps[chosen], chosen


def _config(meta: object, path: Path, notes: list[str]) -> GPTConfig:
    values = meta.get("model_config") if isinstance(meta, dict) else None
    if not isinstance(values, dict):
        raise UserError(f"the meta file of {path} has no model_config; it is not a nanochat file")
    names = {field.name for field in fields(GPTConfig)} - ADDED_FIELDS.keys()
    if "window_pattern" not in values:
        values = {**values, "window_pattern": "L"}
        notes.append("window_pattern is missing: L, full attention in every layer")
    if unknown := sorted(set(values) - names):
        raise UserError(
            f"{path} has the dimensions {', '.join(unknown)}, which this model does not support: "
            "it is from a modified nanochat"
        )
    if missing := sorted(names - set(values)):
        raise UserError(f"the meta file of {path} lacks {', '.join(missing)}")
    return GPTConfig(**values)


def _weights(loaded: object, path: Path, notes: list[str]) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()
        for name, tensor in loaded.items()
    ):
        raise UserError(f"{path} does not hold the weights of a model by name")
    tensors = {name.removeprefix(COMPILE_PREFIX): tensor for name, tensor in loaded.items()}
    if len(tensors) != len(loaded):
        raise UserError(f"{path} has weights both with and without the prefix {COMPILE_PREFIX}")
    if len(tensors.keys() - loaded.keys()) > 0:
        notes.append(f"removed the prefix {COMPILE_PREFIX} of torch.compile")
    widened = [name for name, tensor in tensors.items() if tensor.dtype != torch.float32 and not _is_table(name)]
    if widened:
        notes.append(f"{len(widened)} matrices and scalars are stored in half precision: widened to float32")
    # contiguous copies, because a view would keep its whole storage alive
    return {name: tensor.float() if name in widened else tensor.contiguous() for name, tensor in tensors.items()}


def _is_table(name: str) -> bool:
    return name == "transformer.wte.weight" or name.startswith("value_embeds.")


def _recognized(tensors: dict[str, Tensor], config: GPTConfig, notes: list[str]) -> GPTConfig:
    """Return the config with the architecture that the tensors belong to."""
    is_plain = all(
        name in ("transformer.wte.weight", "lm_head.weight") or name.startswith("transformer.h.") for name in tensors
    )
    if is_plain and set(config.windows) == {config.sequence_len}:
        notes.append("no value embeddings, residual scalars and smear: the architecture of 2025 (rotary base 10,000)")
        return replace(config, window_pattern="L", architecture=NANOCHAT_2025)
    widths = {tensor.shape[-1] for name, tensor in tensors.items() if name.endswith(".attn.ve_gate.weight")}
    if widths == {Attention2026.gate_channels} and "smear_gate.weight" not in tensors:
        notes.append(
            "gates of 32 channels: the architecture of early 2026 (rotary base 10,000, short windows of half the context, "
            "softcap 15; from March 2 to 9 it was 20: compare val_bpb with `evaluate bpb`)"
        )
        return replace(config, architecture=NANOCHAT_2026)
    return config


def _refuse_other_formulas(tensors: dict[str, Tensor], config: GPTConfig, path: Path) -> None:
    """Raise UserError for checkpoints with a different forward pass."""
    layers = [str(layer) for layer in range(config.n_layer) if config.has_value_embedding(layer)]
    found = sorted({name.split(".")[1] for name in tensors if name.startswith("value_embeds.")}, key=int)
    if not found:
        raise UserError(
            f"{path} has no value embeddings but other parts of 2026's architecture: it is from a nanochat between those of 2025 "
            "and 2026; it cannot be represented"
        )
    if found != layers:
        raise UserError(
            f"{path} has value embeddings in layers {', '.join(found)}, this model in {', '.join(layers)}; "
            "it cannot be represented"
        )
    own = Attention2026.gate_channels if config.architecture == NANOCHAT_2026 else VALUE_GATE_CHANNELS
    channels = min(own, config.n_embd)
    for layer in layers:
        gate = tensors.get(f"transformer.h.{layer}.attn.ve_gate.weight")
        if gate is None or gate.shape[-1] != channels:
            width = "no" if gate is None else str(gate.shape[-1])
            raise UserError(
                f"{path} has value embeddings with gates of {width} channels, this model of {channels}: "
                "it is from a modified nanochat; it cannot be represented"
            )


def _add_neutral(tensors: dict[str, Tensor], config: GPTConfig, notes: list[str]) -> None:
    """Add parameters that older files lack, with neutral values."""
    neutral = {
        "resid_lambdas": (torch.ones(config.n_layer), "ones, the residual stream unscaled"),
        "x0_lambdas": (torch.zeros(config.n_layer), "zeros, no embedding added to later layers"),
        "smear_gate.weight": (torch.zeros(1, SMEAR_GATE_CHANNELS), "zeros"),
        "smear_lambda": (torch.zeros(1), "0, no smearing of the previous token"),
        "backout_lambda": (torch.zeros(1), "0, the middle layer is not subtracted from the output"),
    }
    missing = [name for name in neutral if name not in tensors]
    for name in missing:
        tensors[name], what = neutral[name]
        notes.append(f"{name} is missing: {what}")
    if missing and config.architecture != NANOCHAT_2026:
        notes.append(
            "an older file does not record the constants it was trained with; current nanochat's are used (rotary base "
            "100,000, attention scale 1.2, short windows of a quarter): compare its val_bpb with `evaluate bpb`"
        )


def _pad_vocabulary(tensors: dict[str, Tensor], config: GPTConfig, notes: list[str]) -> None:
    """Add unused embedding rows beyond the vocabulary, which older nanochats lack."""
    rows, padded = config.vocab_size, config.padded_vocab_size
    names = [name for name in tensors if _is_table(name) or name == "lm_head.weight"]
    short = [name for name in names if rows != padded and tensors[name].dim() == 2 and tensors[name].shape[0] == rows]
    for name in short:
        tensor = tensors[name]
        tensors[name] = torch.cat((tensor, tensor.new_zeros(padded - rows, tensor.shape[1])))
    if short:
        notes.append(f"{len(short)} embeddings of {rows} rows are padded to {padded} with unused zeros")


def _provenance(meta: dict[str, Any], step: int, notes: list[str]) -> dict[str, Any]:
    """JSON-safe, finite values of the meta file; learning rates under the keys that later stages read."""
    user = _plain(meta.get("user_config"))
    plain = _plain(meta)
    hyper_parameters = {name: user[name] for name in _RATES if _is_positive(user.get(name))}
    batches = [size for size in (plain.get("total_batch_size"), user.get("total_batch_size")) if _is_positive(size)]
    if batches:
        hyper_parameters["tokens_per_step"] = batches[0]
    return {
        "stage": "imported from nanochat",
        "steps": step,
        "val_bpb": plain.get("val_bpb"),
        "hyper_parameters": hyper_parameters,
        "nanochat": {**plain, "user_config": user},
        "notes": notes,
    }


def _plain(values: Any) -> dict[str, Any]:
    def is_plain(value: object) -> bool:
        return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))

    return {name: value for name, value in values.items() if is_plain(value)} if isinstance(values, dict) else {}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


PICKLE_FILE = "tokenizer.pkl"
TOKEN_BYTES_FILE = "token_bytes.pt"  # noqa: S105 (no password)
MAX_PICKLE_BYTES = 256 * 2**20
"""Maximum size of the pickle; a vocabulary of a million tokens takes a tenth of it."""

_FIELDS = {"name", "pat_str", "mergeable_ranks", "special_tokens"}


def load_nanochat_tokenizer(folder: str | Path) -> tuple[TiktokenTokenizer, list[str]]:
    """Read tokenizer.pkl, and compare it with token_bytes.pt if present.

    Args:
        folder: Folder with tokenizer.pkl.

    Returns:
        The tokenizer, and lines with notes.

    Raises:
        UserError: If a file is missing or has unexpected contents.
    """
    path = Path(folder) / PICKLE_FILE
    if not path.is_file():
        raise UserError(f"no {PICKLE_FILE} in '{folder}'; give nanochat's tokenizer folder with --tokenizer")
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise UserError(f"{path} has more than {MAX_PICKLE_BYTES:,} bytes; it is not a nanochat tokenizer")
    state = read_encoding(path.read_bytes(), str(path))
    tokenizer = TiktokenTokenizer(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
    table = Path(folder) / TOKEN_BYTES_FILE
    if not table.is_file():
        return tokenizer, [f"{TOKEN_BYTES_FILE} is missing; the lengths in bytes are computed from the tokens"]
    return tokenizer, _compare_lengths(tokenizer, table)


def read_encoding(data: bytes, source: str) -> dict[str, Any]:
    """Return the fields of a pickled tiktoken encoding: name, pat_str, mergeable_ranks and special_tokens.

    Raises:
        UserError: If it contains or would call anything else.
    """
    try:
        encoding = _EncodingUnpickler(io.BytesIO(data)).load()
    except _ForbiddenError as error:
        raise UserError(f"{source} refers to {error}, unlike nanochat tokenizers; it was not loaded") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise UserError(f"{source} is not a pickled tiktoken encoding ({type(error).__name__}: {error})") from None
    state = encoding.state if type(encoding) is _EncodingState else None
    if isinstance(state, str):
        raise UserError(
            f"{source} only refers to OpenAI's encoding {state!r}, which would have to be downloaded; "
            "give a tokenizer trained by nanochat"
        )
    if not isinstance(state, dict) or set(state) != _FIELDS or not _has_types(state):
        raise UserError(f"{source} is not a pickled tiktoken encoding: its fields are not {', '.join(sorted(_FIELDS))}")
    return state


def tokenizer_of_hf(path: Path) -> TiktokenTokenizer:
    """Read the tokenizer.json of a published nanochat model: byte-level BPE behind a pattern of words.

    Raises:
        UserError: If it holds another kind of tokenizer.
    """
    values = read_json(path)
    try:
        added = {token["content"]: token["id"] for token in values["added_tokens"]}
        (pattern,) = [
            step["pattern"]["Regex"] for step in values["pre_tokenizer"]["pretokenizers"] if "pattern" in step
        ]
        bytes_of = {letter: value for value, letter in enumerate(printable_bytes())}
        pieces = {name: index for name, index in values["model"]["vocab"].items() if name not in added}
        ranks = {bytes(bytes_of[letter] for letter in name): index for name, index in pieces.items()}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a tokenizer of nanochat; give the export that the model came from with --tokenizer"
        ) from None
    return TiktokenTokenizer(pattern, ranks, added)


class _ForbiddenError(Exception):
    """The pickle names something other than the encoding's class."""


class _EncodingState:
    """Inert replacement of tiktoken's class that only stores its state."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _EncodingUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("tiktoken.core", "Encoding"):
            return _EncodingState
        raise _ForbiddenError(f"{module_name}.{global_name}")

    def persistent_load(self, pid: object) -> Any:
        raise _ForbiddenError(f"the persistent object {pid!r}")


def _has_types(state: dict[str, Any]) -> bool:
    ranks, special = state["mergeable_ranks"], state["special_tokens"]
    return (
        type(state["pat_str"]) is str
        and type(ranks) is dict
        and type(special) is dict
        and all(type(token) is bytes and type(rank) is int for token, rank in ranks.items())
        and all(type(name) is str and type(index) is int for name, index in special.items())
    )


def _compare_lengths(tokenizer: TiktokenTokenizer, path: Path) -> list[str]:
    """Check token_bytes.pt, in which older nanochats count a part of a character as the three bytes of U+FFFD."""
    theirs, ours = load_tensors(path), tokenizer.token_bytes()
    if not isinstance(theirs, torch.Tensor) or theirs.shape != ours.shape:
        raise UserError(f"{path} does not belong to this tokenizer, which has {tokenizer.vocab_size} tokens")
    different = (theirs.to(torch.int64) != ours).nonzero().flatten().tolist()
    for token_id in different:
        piece = tokenizer.bytes_of(token_id)
        if int(theirs[token_id]) != len(piece.decode("utf-8", "replace").encode()):
            raise UserError(
                f"{path} gives token {token_id} {int(theirs[token_id])} bytes, but it has {len(piece)}: "
                "it belongs to another tokenizer"
            )
    note = (
        f"{TOKEN_BYTES_FILE}: {len(different)} tokens are parts of characters, which nanochat counts as U+FFFD; "
        "here their actual bytes count, so bits per byte can differ in the last digits"
    )
    return [note] if different else []
