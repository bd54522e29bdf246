"""Verified loading of checkpoints, with their model and tokenizer."""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
import yaml

from nanochat_lit.common.errors import UserError
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.export import assemble
from nanochat_lit.tokenizer import Tokenizer

LAST, BEST = "last.ckpt", "best.ckpt"
STEP_FILE = re.compile(r"step(\d+)\.ckpt")

KEY = "nanochat_lit"
"""Key of this package's entry in a checkpoint: model configuration, tokenizer fingerprint, provenance."""


def damage(path: Path) -> str | None:
    """Return the damage of a checkpoint file, or None if the CRC32 of every part matches."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        size = path.stat().st_size if path.exists() else 0
        return f"cannot be read to its end, {size:,} bytes ({error or type(error).__name__})"
    return None if part is None else f"the bytes of its part {part} have changed"


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint with a restricted unpickler; raises UserError if it is damaged or of another program."""
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:  # noqa: BLE001 - a file of something else fails in many ways
        raise UserError(
            f"{path} is not a checkpoint, or is damaged ({type(error).__name__}); give another .ckpt"
        ) from None
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise UserError(f"{path} was not written by nanochat-lit; give a .ckpt from a run folder")
    return checkpoint


def step_files(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder by step, newest first."""
    found = {int(match[1]): path for path in folder.glob("step*.ckpt") if (match := STEP_FILE.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def checkpoint_model(path: Path, checkpoint: dict[str, Any]) -> GPT:
    """Return the model of a checkpoint; its compute dtype is not set yet."""
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
    return assemble(GPTConfig.from_dict(checkpoint[KEY]["config"]), tensors, path)


def checkpoint_tokenizer(path: Path, checkpoint: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer from the run folder or the path in the recipe; raises UserError if it is in neither."""
    run = path.resolve().parent.parent
    recipe = yaml.safe_load(checkpoint.get("config") or "{}")
    given = [
        recipe.get(part, {}).get("init_args", {}).get(key) for part, key in (("data", "tokenizer"), ("model", "base"))
    ]
    folders = [run, *(Path(folder) for folder in given if folder)]
    for folder in [place for one in folders for place in (one / "tokenizer", one / "export", one)]:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.load(folder)
            if tokenizer.fingerprint == checkpoint[KEY]["tokenizer"]:
                return tokenizer
    places = ", ".join(map(str, folders))
    raise UserError(f"the tokenizer of {path} is not in {places}; copy its folder to {run / 'tokenizer'}")
