"""Activation checkpointing: what of a block is kept for its backward pass (Chen et al. 2016. https://arxiv.org/abs/1604.06174)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nanochat_lit.common.torch_internals import COSTLY_OPERATORS, operator_name

Checkpointing: TypeAlias = bool | Literal["selective"]
"""False keeps everything, True what enters a block, "selective" also the results of its matmuls and of attention."""


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    is_costly = operator_name(operator) in COSTLY_OPERATORS
    return CheckpointPolicy.MUST_SAVE if is_costly else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed(block: Callable[..., Tensor], mode: Checkpointing, *inputs: Any) -> Tensor:
    """What the block computes; in the backward pass the rest of it is computed again.

    Nothing in a block is random, so no random state has to be restored.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    result = checkpoint(block, *inputs, **options)
    assert isinstance(result, Tensor), "a block returns states"
    return result
