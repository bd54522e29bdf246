"""Packed weights for fast inference; not used in training.

With a C++ compiler installed that is our kernel's layout (model/decode_kernel.py); what follows is about the others.

On x86 processors oneDNN multiplies in blocks. F.linear rearranges a plain weight at every call, which costs more than the
product itself when a single token is decoded; a packed weight is rearranged once. Measured with 48 matrices of 3072 x 768 on
2 cores, one row: bfloat16 25 GB/s plain, 39 packed, the limit of the memory; float32 17 plain, 41 packed.

Our kernel also has int8 and int4. int8 reads half of bfloat16's bytes. Weights are rounded per output channel, inputs per row at run time (symmetric, 8 bits
both), products are summed exactly in 32 bits: the scheme of LLM.int8 without its outlier columns (Dettmers et al. 2022.
https://arxiv.org/abs/2208.07339). int4 rounds weights in groups of 32 inputs with a scale each, 4.5 bits a weight; inputs are as
with int8.

Shapes: N rows, K input features, M output features.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.torch_internals import has_bfloat16_onednn, pack_weight, packed_linear
from nanochat_lit.model.decode_kernel import GROUP, DecodeKernel, KernelLinear, kernel_name, kernel_obstacle
from nanochat_lit.model.gpt import GPT

Quantization = Literal["int8", "int4"]

SCALES_TRIED = tuple(1.0 - 0.02 * step for step in range(-2, 13))
"""Of a group's scale that spans its largest weight, the shares that `quantize_groups` tries: a smaller one clips that weight and rounds
the others less."""


class PackedLinear(nn.Module):
    """A linear layer with a weight in oneDNN's blocked layout. Bit-identical to the plain layer in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = pack_weight(weight)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Map the last dimension, (..., K) -> (..., M)."""
        rows = input.reshape(-1, self.in_features)
        out = packed_linear(rows, self._packed)
        return out.view(*input.shape[:-1], self.out_features)


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of (N, K) to multiples of a hundred-and-twenty-seventh of its largest magnitude.

    Returns (N, K) int8 and (N,) float32 scales; their product is within half a scale of the values.
    """
    scales = values.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (values / scales[:, None]).round().to(torch.int8), scales


def quantize_groups(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round groups of 32 neighbours of a row of (N, K) to multiples, -8 to 7, of the scale with the least error.

    Returns (N, K) int8, and (N, groups) bfloat16 scales, positive or negative.
    """
    num_rows, width = values.shape
    groups = torch.nn.functional.pad(values, (0, -width % GROUP)).view(num_rows, -1, GROUP)
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))  # with its sign: -8 has no opposite
    best_error = torch.full_like(largest, torch.inf)
    rounded, scales = torch.zeros_like(groups), torch.zeros_like(largest)
    for share in SCALES_TRIED:
        tried = (largest * (share / -8)).bfloat16().float()
        tried = torch.where(tried == 0, 1.0, tried)
        steps = (groups / tried).round().clamp(-8, 7)
        error = (steps * tried - groups).square().sum(dim=2, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        rounded, scales = torch.where(is_better, steps, rounded), torch.where(is_better, tried, scales)
    return rounded.view(num_rows, -1)[:, :width].to(torch.int8), scales[..., 0].bfloat16()


def can_pack(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether the device supports oneDNN's packed matmuls in a dtype (x86 and ARM builds of torch, no GPUs)."""
    has_library = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return has_library and (dtype != torch.bfloat16 or has_bfloat16_onednn())


def pack_linears(model: GPT, quantize: Quantization | None = None, weight_dtype: torch.dtype | None = None) -> None:
    """Replace a model's linear layers, in place, by packed ones for inference; elsewhere than on CPU nothing changes.

    With a C++ compiler installed they are those of model/decode_kernel.py, with the decode step in one call; elsewhere
    oneDNN's. "int8" rounds weights and inputs of the linear layers to 8 bits, "int4" weights to 4 bits and inputs to 8;
    both raise UserError without our kernel. A `weight_dtype` of bfloat16 keeps float32 matrices in it where our kernel
    multiplies them, in float32: half the memory is read for each token.
    """
    obstacle = kernel_obstacle(model)
    if quantize is not None and obstacle:
        raise UserError(f"quantize: {quantize} needs the C++ kernel, which is not used: {obstacle}; leave quantize out")
    if obstacle and not can_pack(model.device, model.compute_dtype):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # gates of nanochat are too small to pack, and the model takes the smear gate's weight for a sum
            if isinstance(child, nn.Linear) and name not in ("smear_gate", "ve_gate"):
                weight = child.weight
                packed = PackedLinear(weight) if obstacle else _kernel_linear(weight, quantize, weight_dtype)
                setattr(parent, name, packed)
    if not obstacle:
        model.decode_kernel = DecodeKernel(model)


def describe_kernel(model: GPT) -> str:
    """Return the implementation of a model's decode steps, and why it is not our kernel if it is not."""
    if model.decode_kernel is not None:
        return f"{kernel_name()} (C++), weights in {cast('KernelLinear', model.lm_head).stored_as}"
    return f"PyTorch; not the C++ kernel: {kernel_obstacle(model) or 'the model is not packed'}"


def _kernel_linear(weight: Tensor, quantize: Quantization | None, weight_dtype: torch.dtype | None) -> KernelLinear:
    if quantize is None:
        return KernelLinear(weight.to(weight_dtype or weight.dtype))
    return KernelLinear(*(quantize_rows if quantize == "int8" else quantize_groups)(weight.detach().float()))
