"""Activation checkpointing: what of a block is kept for its backward pass (Chen et al. 2016. https://arxiv.org/abs/1604.06174)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing: TypeAlias = bool | Literal["selective"]
"""False keeps everything, True what enters a block, "selective" also the results of its matmuls and of attention."""

KEPT = (
    *("mm", "addmm", "bmm", "_scaled_mm"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_flash_attention_forward", "flex_attention"),
)
"""Operators whose results are kept by selective checkpointing: they are most of the arithmetic."""


def _is_kept(operator: Any) -> bool:
    name = str(getattr(operator, "_opname", None) or getattr(operator, "__name__", ""))
    return name in KEPT


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_kept(operator) else CheckpointPolicy.PREFER_RECOMPUTE


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
