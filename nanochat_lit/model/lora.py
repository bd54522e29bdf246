"""Low-rank adaptation: small trainable matrices beside frozen ones (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The library peft is not used for training: it needs transformers and accelerate, wraps the model, and renames its weights,
which exports, caches, kernels and checkpoints know by their names. Its file format is (engine/adapter.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lit.common.errors import UserError, check_positive
from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.layers import Linear

_INIT_SEED = 0
"""Every rank and every resumed run starts from the same adapter."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Train only low-rank changes of the blocks' matrices; everything else stays as in the base."""

    rank: int = 8
    """Rank of each change."""
    alpha: float = 16.0
    """The change is multiplied by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: ["attn", "mlp"])
    """Names of matrices (c_q, c_k, c_v, c_proj, c_fc, ...) or parts (attn, mlp) to adapt. Of a part, matrices smaller than
    the rank, such as gates, stay as they are."""
    lr: float = 0.001
    """AdamW learning rate of the adapter; the other learning rates have no effect."""

    def __post_init__(self) -> None:
        check_positive(**{f"lora.{name}": getattr(self, name) for name in ("rank", "alpha", "lr")})
        if not self.targets:
            raise UserError("lora.targets is empty; name matrices such as c_q, or parts such as attn and mlp")


FACTORS = ("lora_A", "lora_B", "lora_scale")
"""Tensors of an adapted layer in a state dict, beside its weight."""


class LoRALinear(Linear):
    """A frozen linear layer plus a change of low rank: x W^T + scale * x A^T B^T."""

    lora_A: nn.Parameter  # noqa: N815 - peft's name
    """(rank, in_features)."""
    lora_B: nn.Parameter  # noqa: N815
    """(out_features, rank)."""
    lora_scale: Tensor
    """alpha / rank; a buffer, so that a state dict can be merged without its recipe."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Map the last dimension, (..., in_features) -> (..., out_features)."""
        low = F.linear(input, self.lora_A.to(input.dtype))
        return super().forward(input) + F.linear(low, (self.lora_B * self.lora_scale).to(input.dtype))


def add_lora(model: GPT, lora: LoRA) -> int:
    """Freeze a model, add an adapter that changes nothing yet, in place, and return the number of adapted matrices.

    The names of its weights stay. Raises UserError if a target names no matrix, or the rank is too large for one.
    """
    blocks = nn.ModuleList(model.blocks)
    linears = {name: part for name, part in blocks.named_modules() if isinstance(part, Linear)}
    known = sorted({part for name in linears for part in name.split(".")[1:]})
    if unknown := [target for target in lora.targets if target not in known]:
        raise UserError(f"lora.targets has {unknown[0]!r}, which is not a part of this model; use {', '.join(known)}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(_INIT_SEED)
    chosen = []
    for name, linear in linears.items():
        named, smaller = name.rpartition(".")[2] in lora.targets, min(linear.weight.shape)
        if named and lora.rank > smaller:
            raise UserError(f"lora.rank is {lora.rank}, but the smaller side of {name} is {smaller}; use at most that")
        if named or ({*name.split(".")} & {*lora.targets} and lora.rank <= smaller):
            chosen.append(linear)
    for linear in chosen:
        rows, columns = linear.weight.shape
        linear.__class__ = LoRALinear  # keeps the parameter and its name, like Float8Linear
        down = torch.empty(lora.rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
        linear.lora_A = nn.Parameter(down.to(linear.weight.device))
        linear.lora_B = nn.Parameter(linear.weight.new_zeros(rows, lora.rank))
        linear.register_buffer("lora_scale", linear.weight.new_tensor(lora.alpha / lora.rank))
    if not chosen:
        raise UserError(f"lora.rank {lora.rank} exceeds every matrix of the model; use a smaller one")
    return len(chosen)


def adapter_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the factors lora_A and lora_B of a state dict, by name."""
    return {name: tensor for name, tensor in state.items() if name.endswith((".lora_A", ".lora_B"))}


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the changes added to the matrices, in float32.

    Everything else is returned as it is, including factors that fit no matrix, whose names `assemble` refuses.
    """
    plain = dict(state)
    for layer in [name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")]:
        weight, down, up, scale = (state.get(f"{layer}.{part}") for part in ("weight", *FACTORS))
        if weight is None or down is None or up is None or scale is None or scale.numel() != 1:
            continue
        if (*up.shape[:1], *down.shape[1:]) == weight.shape and up.shape[1:] == down.shape[:1]:
            change = (up.float() @ down.float() * scale.float()).to(weight.device)
            plain[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
            for part in FACTORS:
                del plain[f"{layer}.{part}"]
    return plain
