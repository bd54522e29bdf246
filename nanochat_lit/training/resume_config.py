"""Compares the configuration of a resumed run with that of its checkpoint."""

import sys
from typing import Any

import yaml

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import UserError

KEY = "config"

FIXED = {
    "model.class_path": "the stage",
    "model.init_args.depth": "the model",
    "model.init_args.head_dim": "the model",
    "model.init_args.aspect_ratio": "the model",
    "model.init_args.n_embd": "the model",
    "model.init_args.n_head": "the model",
    "model.init_args.n_kv_head": "the model",
    "model.init_args.window_pattern": "the model",
    "model.init_args.bigram_factor": "the model",
    "model.init_args.sequence_len": "the model and the packed sequences",
    "data.class_path": "the data",
    "data.init_args.vocab_size": "the tokenizer",
}
"""Keys that cannot change within a run, and what they determine."""

LATER = {"model.init_args.bigram_factor": 0}
"""Keys that older checkpoints lack, and the values they were trained with."""

FREE = (
    *("ckpt_path", "run_dir", "overwrite", "weights_only", "log_every", "checkpoint_every", "checkpoint_minutes"),
    *("checkpoint_in_background", "keep_last", "keep_best", "stop_on_explosion", "config", "trainer.callbacks"),
    "trainer.logger",
)
"""Keys that do not affect training."""


def compare_configs(saved: str, current: str) -> None:
    """Print to stderr what has changed since the checkpoint.

    Args:
        saved: Resolved configuration in the checkpoint, YAML.
        current: Resolved configuration of the resumed run, YAML.

    Raises:
        UserError: If a key of `FIXED` has changed.
    """
    before, now = _flatten(yaml.safe_load(saved)), _flatten(yaml.safe_load(current))
    before = {key: value for key, value in LATER.items() if key in now} | before
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith(FREE) and not key.endswith("__path__")
    )
    for key in changed:
        values = f"{_short(key)} is {now.get(key)}, but the checkpoint has {before.get(key)}"
        if key in FIXED:
            raise UserError(f"{values}; {FIXED[key]} cannot change within a run. Restore the value, or start a new run")
        if is_rank_zero():
            print(f"changed since the checkpoint: {_short(key)} {before.get(key)} -> {now.get(key)}", file=sys.stderr)


def _short(key: str) -> str:
    """Return the key as it is written on the command line."""
    return key.replace(".init_args.", ".")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, sub in tree.items() for key, value in _flatten(sub, f"{prefix}.{name}".lstrip(".")).items()
    }
