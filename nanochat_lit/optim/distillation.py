"""Losses of learning from a teacher's distributions, as pure functions.

Shapes: N tokens, V vocabulary.

Reference:
    Hinton et al. 2015, Distilling the Knowledge in a Neural Network. https://arxiv.org/abs/1503.02531
    Agarwal et al. 2024, On-Policy Distillation of Language Models. https://arxiv.org/abs/2306.13649
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Function from log-probabilities of the student and the teacher, (N, V), to divergences, (N,)."""


def forward_kl(student: Tensor, teacher: Tensor, top_k: int = 0) -> Tensor:
    """Return KL(teacher || student) of every token, (N,) nats, from log-probabilities, (N, V).

    With top_k, all tokens but the teacher's top_k most likely ones count as one outcome, so that the result is the
    exact divergence of the coarser distributions: at most that over all tokens, and 0 only if they agree. 0 uses all
    tokens.
    """
    if top_k and top_k < student.shape[-1]:
        teacher, chosen = teacher.topk(top_k, dim=-1)
        student = student.gather(-1, chosen)
        student, teacher = (torch.cat([part, _rest(part)], dim=-1) for part in (student, teacher))
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(student || teacher) of every token, (N,) nats, from log-probabilities, (N, V), of sampled tokens."""
    return (student.exp() * (student - teacher)).sum(-1)


def _rest(logprobs: Tensor) -> Tensor:
    """Log-probability of all other tokens, (N, 1), from (N, k)."""
    total = logprobs.logsumexp(-1, keepdim=True)
    return torch.log1p(-total.exp().clamp(max=1.0 - 1e-6))


def chunked_divergence(
    student: Tensor,
    teacher: Tensor,
    unembed: Callable[[Tensor], Tensor],
    teacher_unembed: Callable[[Tensor], Tensor],
    divergence: Divergence,
    chunk: int = 1024,
) -> Tensor:
    """Return the divergence of every token, (N,) nats, without holding all logits; backward computes them again.

    The final states of the student, (N, C), and of the teacher, (N, C') without gradient, become float32 logits, (n,
    V), by `unembed` and `teacher_unembed`.
    """

    def of_chunk(rows: Tensor, teacher_rows: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher_unembed(teacher_rows).log_softmax(-1)
        return divergence(unembed(rows).log_softmax(-1), wanted)

    parts = zip(student.split(chunk), teacher.split(chunk), strict=True)
    return torch.cat([checkpoint(of_chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
