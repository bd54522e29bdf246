"""Cross entropy that never holds the (tokens, vocabulary) logits whole; the logits are softcapped unless said otherwise.

Tokens are processed in chunks. The logits of each chunk are computed, softcapped, and converted to losses and to the
gradients with respect to the hidden states and the unembedding, then freed; backward only scales the gradients. Memory:
one chunk of float32 logits instead of all of them (B*T = 4096, V = 32768: 512 MB). The logits are computed only once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nanochat_lit.model.layers import SOFTCAP, softcap
from nanochat_lit.model.loss_kernel import IGNORE_INDEX, add_in_place, has_loss_kernel, loss_and_gradient_in_place

CHUNK_ELEMENTS = 1 << 22
"""Minimum number of logits per chunk (16 MB in float32)."""

CHUNK_ROWS = 1024
"""Minimum tokens per chunk: each chunk adds a gradient of the whole unembedding, which moves 12 bytes per weight."""

FLOAT16_SCALE = 1024.0
"""Factor on the gradients of float16 logits: those of improbable tokens are below float16's smallest number, 6e-8."""

CHUNK_SHARE = 16
"""Lower bound of the chunk size, as a fraction of all positions: large batches can afford larger chunks."""


def token_losses(
    hidden: Tensor, targets: Tensor, unembed: Callable[[Tensor], Tensor], vocab_size: int, *, is_capped: bool = True
) -> Tensor:
    """Compute the loss of every token, (...) float32 nats, 0 where the target is ignored, in chunks.

    `unembed` maps (N, C) of the final states, (..., C), to (N, V) raw logits, which are softcapped if `is_capped`.
    """
    rows, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    chunk = rows_per_chunk(len(rows), vocab_size)
    if rows.device.type == "cpu":  # larger allocations are returned to the system and cleared again for each chunk
        chunk = min(chunk, max(1, CHUNK_ROWS // 8, CHUNK_ELEMENTS // vocab_size))
    losses = [
        chunk_losses(unembed(part), part_targets, is_capped)
        for part, part_targets in zip(rows.split(chunk), flat_targets.split(chunk), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def chunk_losses(logits: Tensor, targets: Tensor, is_capped: bool) -> Tensor:
    """Losses (N,) of raw logits (N, V), which may be overwritten; by the plain formula where gradients are wanted.

    Without them the kernel of training is used where there is one: half of an evaluation on a CPU would be the formula's five
    passes over float32 logits.
    """
    if has_loss_kernel(logits) and not logits.requires_grad:
        return loss_and_gradient_in_place(logits.contiguous(), targets, is_capped=is_capped)
    capped = softcap(logits) if is_capped else logits.float()
    return F.cross_entropy(capped, targets, ignore_index=IGNORE_INDEX, reduction="none")


def reduce_losses(losses: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Losses of tokens as they are ("none"), their "sum", or their "mean" over the kept targets (0 when there are none)."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (targets != IGNORE_INDEX).sum().clamp(min=1)


def softmax_and_slope(logits: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a chunk's loss that touches every logit: softcap, softmax, gradient.

    Returns the float32 sums, (N, 1), of the softcapped logits' exponentials, and the gradient, (N, V), of their
    logarithm with respect to the raw logits, in their dtype and times `gradient_scale`; 0 in ignored rows, where
    `is_kept`, (N, 1), is False.
    """
    # tanh(z) = 1 - 2r with r = 1 / (exp(2z) + 1), so one exponential gives the softcap and its slope 1 - tanh^2 = 4r(1-r):
    # cheaper than tanh on CPU. The softcap bounds the logits by 15, so no exponential overflows and no maximum is needed.
    r = 1.0 / (torch.exp(logits.float() * (2.0 / SOFTCAP)) + 1.0)
    exponentials = torch.exp(SOFTCAP * (1.0 - 2.0 * r))
    total = exponentials.sum(dim=-1, keepdim=True)
    factor = torch.where(is_kept, 4.0 * gradient_scale(logits.dtype) / total, 0.0)
    return total, (exponentials * factor * (r * (1.0 - r))).to(logits.dtype)


def softmax_without_cap(logits: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor]:
    """As `softmax_and_slope` without a softcap; the first result is the logarithm of the sum."""
    wide = logits.float()
    log_total = wide.logsumexp(dim=-1, keepdim=True)
    factor = torch.where(is_kept, gradient_scale(logits.dtype), 0.0)
    return log_total, (torch.exp(wide - log_total) * factor).to(logits.dtype)


ChunkKernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def chunk_loss_and_gradient(
    logits: Tensor, targets: Tensor, kernel: ChunkKernel, is_capped: bool = True, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the losses, (N,) float32, of a chunk, and the gradient of their sum by the raw logits, (N, V).

    On a CPU this is one call of a C++ kernel, if available. Elsewhere the targets' own columns are handled here,
    outside `kernel` (`softmax_and_slope`, `softmax_without_cap` or a compiled twin): a one-hot inside it kept the
    compiler from fusing the rest into one pass over each row. The gradient, times `gradient_scale`, may take the place
    of the contiguous logits; ignored targets count nothing. `factors`, of `sampled_vocabulary`, are for the C++ kernel
    only.
    """
    if has_loss_kernel(logits):
        return loss_and_gradient_in_place(logits, targets, is_capped=is_capped, factors=factors), logits
    is_kept = (targets != IGNORE_INDEX).unsqueeze(1)
    index = targets.clamp(min=0).unsqueeze(1)
    total, gradient = kernel(logits, is_kept)
    own = logits.gather(1, index).float()
    if is_capped:
        squeezed = torch.tanh(own / SOFTCAP)
        at_target = (torch.exp(SOFTCAP * squeezed) / total - 1.0) * (1.0 - squeezed.square()) * is_kept
        losses = (total.log() - SOFTCAP * squeezed) * is_kept
    else:
        at_target = torch.expm1(own - total) * is_kept
        losses = (total - own) * is_kept
    gradient.scatter_(1, index, (at_target * gradient_scale(logits.dtype)).to(gradient.dtype))
    return losses.squeeze(1), gradient


class ChunkMatmuls:
    """The matmuls of the loss of at most `chunk` tokens, in the dtype of the hidden states; the weight is (V, C)."""

    def __init__(self, weight: Tensor, hidden: Tensor, chunk: int) -> None:
        self._weight = weight.to(hidden.dtype)
        # one allocation for all chunks: memory that is given back and fetched again is cleared page by page
        self._logits, self._product = self._weight.new_empty(chunk, len(weight)), torch.empty_like(self._weight)
        self._rows: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) raw logits of (n, C) states; valid until the next call."""
        self._rows = rows
        return torch.mm(rows, self._weight.T, out=self._logits[: len(rows)])

    def add_gradients(self, gradient: Tensor, grad_rows: Tensor, grad_weight: Tensor) -> None:
        """From the gradient of the logits just made: set that of the rows, add that of the weight."""
        _unscaled_product(gradient, self._weight, out=grad_rows)
        add_in_place(grad_weight, _unscaled_product(gradient.T, self._rows, out=self._product))


MakeMatmuls = Callable[[Tensor, Tensor, int], Any]
"""`ChunkMatmuls`, or another callable that returns an object with its methods."""


class _ChunkedLoss(torch.autograd.Function):
    """Sum of the token losses, and the losses without gradient; forward also computes the gradients of the sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        kernel: ChunkKernel,
        make_matmuls: MakeMatmuls,
        is_capped: bool,
        factors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows, index = _rows_that_count(hidden, targets)
        targets = targets if index is None else targets[index]
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        losses = torch.empty(len(rows), dtype=torch.float32, device=hidden.device)
        chunk = rows_per_chunk(rows.shape[0], weight.shape[0])
        matmuls = make_matmuls(weight, rows, chunk)
        for start in range(0, rows.shape[0], chunk):
            part = slice(start, start + chunk)
            losses[part], gradient = chunk_loss_and_gradient(
                matmuls.logits(rows[part]), targets[part], kernel, is_capped, factors
            )
            matmuls.add_gradients(gradient, grad_rows[part], grad_weight)
        total, grad_hidden = losses.sum(), grad_rows
        if index is not None:
            grad_hidden = torch.zeros_like(hidden).index_copy_(0, index, grad_rows)
            losses = losses.new_zeros(len(hidden)).index_copy_(0, index, losses)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        return total, losses

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors  # in place: both are as large as a step's memory is tight
        grad_weight = grad_weight.mul_(grad_output).to(ctx.weight_dtype)
        return grad_hidden.mul_(grad_output.to(grad_hidden.dtype)), grad_weight, None, None, None, None, None


def gradient_scale(dtype: torch.dtype) -> float:
    """Factor on the gradients of logits of a dtype; the matrix multiplications after them divide by it."""
    return FLOAT16_SCALE if dtype == torch.float16 else 1.0


def _unscaled_product(gradient: Tensor, other: Tensor, out: Tensor) -> Tensor:
    """Gradient @ other / gradient_scale, divided before it is rounded to the dtype of out."""
    if gradient.dtype != torch.float16:
        return torch.mm(gradient, other, out=out)
    return torch.addmm(out, gradient, other, beta=0, alpha=1.0 / FLOAT16_SCALE, out=out)


def _rows_that_count(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows whose targets are trained on, and their numbers; all of them, and None, where choosing would not pay.

    In conversations about half the rows are the user's, or padding: their logits need not be made. Some of them fill the rows
    up to an eighth of all: each number of rows costs memory in the library that multiplies. Only where the C++ kernel is used:
    a GPU would have to be waited for, and the compiler would meet new numbers of rows.
    """
    if not has_loss_kernel(hidden):
        return hidden, None
    is_ignored, eighth = targets == IGNORE_INDEX, -(-len(targets) // 8)
    num_rows = -(-int((~is_ignored).sum()) // eighth) * eighth
    if num_rows >= len(targets):
        return hidden, None
    index = is_ignored.to(torch.uint8).argsort(stable=True)[:num_rows]
    return hidden[index], index


def rows_per_chunk(num_rows: int, vocab_size: int) -> int:
    """Return the number of tokens per chunk; chunks have equal size (one shape, one compilation)."""
    most = max(CHUNK_ELEMENTS // vocab_size, CHUNK_ROWS, num_rows // CHUNK_SHARE)
    num_chunks = max(1, -(-num_rows // most))
    return max(1, -(-num_rows // num_chunks))


def softcapped_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    reduction: str = "mean",
    kernel: ChunkKernel = softmax_and_slope,
    make_matmuls: MakeMatmuls = ChunkMatmuls,
    is_capped: bool = True,
    num_sampled: int = 0,
) -> Tensor:
    """Return the float32 cross entropy of softcapped logits in nats, computed in chunks.

    It is of final states, (B, T, C), and an unembedding without padding, (V, C); ignored targets count nothing.
    `reduction` is "mean" over the kept targets (0 when there are none), "sum", or "none" for (B, T). `kernel` touches
    every logit of a chunk and may be compiled; without a softcap (`is_capped`) it is `softmax_without_cap`.
    `num_sampled` tokens beside the targets are in the softmax, if gradients are wanted; see `sampled_vocabulary`. 0 is
    all.
    """
    if reduction == "none":
        compute_weight = weight.to(hidden.dtype)
        unembed = partial(F.linear, weight=compute_weight)
        return token_losses(hidden, targets, unembed, weight.shape[0], is_capped=is_capped)
    total, _ = total_and_token_losses(hidden, weight, targets, kernel, make_matmuls, is_capped, num_sampled)
    return reduce_losses(total, targets, reduction)


def total_and_token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    kernel: ChunkKernel = softmax_and_slope,
    make_matmuls: MakeMatmuls = ChunkMatmuls,
    is_capped: bool = True,
    num_sampled: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses and the loss of each token, (B, T) without gradient; see `softcapped_cross_entropy`."""
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        rows, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        factors = None
        if 0 < num_sampled < weight.shape[0] and has_loss_kernel(rows):
            chosen, flat_targets, factors = sampled_vocabulary(flat_targets, weight.shape[0], num_sampled)
            weight = weight.index_select(0, chosen)
        total, losses = _ChunkedLoss.apply(rows, weight, flat_targets, kernel, make_matmuls, is_capped, factors)
        return total, losses.view(targets.shape)
    losses = softcapped_cross_entropy(hidden, weight, targets, "none", is_capped=is_capped)
    return losses.sum(), losses


def sampled_vocabulary(targets: Tensor, vocab_size: int, num_sampled: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens of a batch's softmax: all targets, (N,), and a uniform sample of at most `num_sampled` others.

    The exponentials of the sample are multiplied by the inverse of its share, so their sum is expected to be the full
    softmax's (Jean et al. 2015. https://arxiv.org/abs/1412.2007). The sample depends on nothing but the targets, so
    resuming repeats it.

    Returns:
        (n,) chosen token ids, (N,) places of the targets among them, and (n,) float32 factors.
    """
    is_kept = targets != IGNORE_INDEX
    is_target = torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, targets[is_kept], value=True)
    own, others = is_target.nonzero().squeeze(1), is_target.logical_not_().nonzero().squeeze(1)
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(int(targets.sum())))
    sample = others[order[:num_sampled]]
    places = torch.empty(vocab_size, dtype=torch.int64).index_copy_(0, own, torch.arange(len(own)))
    factors = torch.ones(len(own) + len(sample))
    factors[len(own) :] = len(others) / max(1, len(sample))
    return torch.cat((own, sample)), torch.where(is_kept, places[targets.clamp(min=0)], IGNORE_INDEX), factors


def chunk_logprobs(
    hidden: Tensor, unembed: Callable[[Tensor], Tensor], targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets of a few rows at a temperature, and the entropies there, which have no gradient."""
    logprobs = torch.log_softmax(unembed(hidden) / temperature, dim=-1)
    entropies = -(logprobs.detach().exp() * logprobs.detach()).sum(dim=-1)
    return logprobs.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1), entropies


def token_logprobs(
    hidden: Tensor, unembed: Callable[[Tensor], Tensor], targets: Tensor, vocab_size: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target, (B, T) float32, for losses with token weights, and the entropies.

    With gradients, the logits of each chunk, which `unembed` maps (N, C) of the final states to, are recomputed in the
    backward pass; the entropies have none. The temperature divides the logits. Both are 0 where the target is ignored.
    """
    rows, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    chunk = rows_per_chunk(rows.shape[0], vocab_size)
    parts = [
        checkpoint(chunk_logprobs, part, unembed, own, temperature, use_reentrant=False, preserve_rng_state=False)
        for part, own in zip(rows.split(chunk), flat_targets.split(chunk), strict=True)
    ]
    is_kept = flat_targets != IGNORE_INDEX
    logprobs, entropies = (torch.cat(column) * is_kept for column in zip(*parts, strict=True))
    return logprobs.view(targets.shape), entropies.view(targets.shape)
