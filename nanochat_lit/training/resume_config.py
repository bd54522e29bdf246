"""Continuing a run with another configuration: what has changed, and what may not."""

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
    "model.init_args.sequence_len": "the model and the packed rows",
    "data.class_path": "the data",
    "data.init_args.vocab_size": "the tokenizer",
}
"""Keys that a run keeps for life, and what they would break."""

LATER = {"model.init_args.bigram_factor": 0}
"""Keys that older checkpoints do not have, and what they were trained with."""

FREE = (
    *("ckpt_path", "run_dir", "overwrite", "weights_only", "log_every", "checkpoint_every", "checkpoint_minutes"),
    *("checkpoint_in_background", "keep_last", "keep_best", "stop_on_explosion", "config", "trainer.callbacks"),
    "trainer.logger",
)
"""Keys whose change has no effect on training."""


def compare_configs(saved: str, current: str) -> None:
    """Say on stderr what has changed since the checkpoint.

    Args:
        saved: Resolved configuration in the checkpoint, YAML.
        current: That of the run that continues.

    Raises:
        UserError: If a key has changed that may not.
    """
    before, now = _flatten(yaml.safe_load(saved)), _flatten(yaml.safe_load(current))
    before = {key: value for key, value in LATER.items() if key in now} | before
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith(FREE) and not key.endswith("__path__")
    )
    for key in changed:
        values = f"{_short(key)} is {now.get(key)}, the checkpoint was made with {before.get(key)}"
        if key in FIXED:
            raise UserError(f"{values}; {FIXED[key]} cannot change within a run. Leave it, or start a new run")
        if is_rank_zero():
            print(f"changed since the checkpoint: {_short(key)} {before.get(key)} -> {now.get(key)}", file=sys.stderr)


def _short(key: str) -> str:
    """The key as it is given on the command line."""
    return key.replace(".init_args.", ".")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, sub in tree.items() for key, value in _flatten(sub, f"{prefix}.{name}".lstrip(".")).items()
    }
