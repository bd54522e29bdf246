"""A start from counts: weights that predict the next token from pairs and triples of tokens before the first step.

Blocks as initialised add nothing, so logits are W · norm(E[token] + B[hash of the token and the one before it]). Counting
a token costs less than a hundredth of training on it, and these three matrices follow from counts in closed form:

- E: left singular vectors of the pointwise mutual information of pairs (Levy and Goldberg 2014,
  https://papers.nips.cc/paper/5477), and a constant channel.
- W: ridge regression of the logarithm of the pairs' frequencies on norm(E).
- B: one damped Newton step on the loss of the triples.
"""

from typing import cast

import torch
from torch import Tensor, nn

from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.transformer import bigram_ids

MIN_TOKENS = 3
"""A triple."""
DISCOUNT = 0.75
"""Subtracted from the count of each pair, as in Kneser-Ney smoothing."""
SEEN_SHIFT = 2.5
"""Added to the logit of a pair that was seen, since the others' logits are those of the single token."""
ROW_DISCOUNT = 50.0
"""Added to the count of each row of the bigram embedding, which shrinks rows seen rarely."""
NEWTON_STEP, DAMPING = 0.5, 1.0
"""Length of the Newton step, and its ridge as a multiple of the mean curvature."""
EMBEDDING_SCALE = 0.8
"""Root mean square of an embedding, that of the random start."""


@torch.no_grad()
def start_from_counts(model: GPT, tokens: Tensor) -> None:
    """Set the embedding, unembedding and bigram embedding of a new model in place.

    Args:
        model: Just initialised, with separate embedding and unembedding.
        tokens: At least MIN_TOKENS training tokens in their order, (N,), int64 on the CPU.
    """
    assert not model.config.tie_embeddings
    assert len(tokens) >= MIN_TOKENS
    vocabulary, width = model.lm_head.weight.shape
    with torch.device("cpu"):  # the Trainer makes models on its own device
        pairs = _counts(tokens[:-1], tokens[1:], vocabulary, vocabulary)
        embedding, unembedding = _weights_of_pairs(pairs, width)
        cast("nn.Embedding", model.transformer["wte"]).weight.copy_(EMBEDDING_SCALE * embedding)
        model.lm_head.weight.copy_(unembedding)
        if num_rows := model.config.num_bigram_rows:
            step = _newton_step(tokens, embedding, unembedding, num_rows)
            cast("nn.Embedding", model.bigram).weight.copy_(EMBEDDING_SCALE * step)


def _weights_of_pairs(pairs: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return norm(E) and W, (V, C) each, of the counts of pairs, (V, V)."""
    (first, second), counts = pairs.indices(), pairs.values()
    as_first, as_second = (torch.zeros(len(pairs)).index_add_(0, side, counts) for side in (first, second))
    information = ((counts - DISCOUNT) * counts.sum() / (as_first[first] * as_second[second])).log()
    information = (information + SEEN_SHIFT).clamp(min=0.0)
    # pairs of frequent tokens count more, or rare ones would take all channels
    balance_first, balance_second = as_first.clamp(min=1.0) ** 0.25, as_second.clamp(min=1.0) ** 0.25
    balanced = _like(pairs, information * balance_first[first] * balance_second[second])
    embedding = _with_constant(_left_factor(balanced, width - 1) / balance_first[:, None], width)
    frequency = (as_second + 0.5).log()
    weighted = embedding * as_first.clamp(min=0.1)[:, None]
    gram = embedding.T @ weighted + as_first.mean() * torch.eye(width)
    moments = torch.outer(weighted.sum(0), frequency - frequency.mean()) + (_like(pairs, information).T @ weighted).T
    return embedding, torch.linalg.solve(gram, moments).T


def _like(matrix: Tensor, values: Tensor) -> Tensor:
    """Return a sparse matrix with other values at the same places."""
    return torch.sparse_coo_tensor(matrix.indices(), values, matrix.shape, is_coalesced=True, check_invariants=False)


def _counts(left: Tensor, right: Tensor, num_left: int, num_right: int) -> Tensor:
    """Return how often each pair of ids occurs as a coalesced sparse matrix, float32."""
    keys, counts = torch.unique(left * num_right + right, return_counts=True)
    indices = torch.stack((keys // num_right, keys % num_right))
    return torch.sparse_coo_tensor(
        indices, counts.float(), (num_left, num_right), is_coalesced=True, check_invariants=False
    )


def _left_factor(matrix: Tensor, rank: int) -> Tensor:
    """Return U · sqrt(S) of a truncated singular value decomposition, scaled to a root mean square of 1."""
    left, values, _ = torch.svd_lowrank(matrix, q=min(rank, *matrix.shape), niter=2)
    factor = left * values.sqrt()
    return factor / factor.square().mean().sqrt()


def _with_constant(factor: Tensor, width: int) -> Tensor:
    """Return the factor with a channel of sqrt(width), rotated at random so that no channel is special, rows of RMS 1."""
    channels = torch.zeros(len(factor), width)
    channels[:, 0], channels[:, 1 : factor.shape[1] + 1] = width**0.5, factor
    rotation, _ = torch.linalg.qr(torch.randn(width, width))
    channels = channels @ rotation
    return channels / channels.square().mean(dim=1, keepdim=True).sqrt()


def _newton_step(tokens: Tensor, embedding: Tensor, unembedding: Tensor, num_rows: int) -> Tensor:
    """Return the change of norm(E) per row of the bigram embedding, (num_rows, C)."""
    chunks = [(chunk @ unembedding.T).softmax(dim=-1) @ unembedding for chunk in embedding.split(1024)]
    expected = torch.cat(chunks)  # mean unembedding of the next token, per token
    before, last, target = tokens[:-2], tokens[1:-1], tokens[2:]
    hashed = bigram_ids(last, before, num_rows)
    gradient = _counts(hashed, target, num_rows, len(unembedding)) @ unembedding
    gradient -= _counts(hashed, last, num_rows, len(embedding)) @ expected
    gradient /= (torch.bincount(hashed, minlength=num_rows) + ROW_DISCOUNT)[:, None]
    share = torch.bincount(target, minlength=len(unembedding))[:, None] / len(target)
    centred = unembedding - (share * unembedding).sum(0)
    curvature = (share * centred).T @ centred
    damping = (DAMPING * curvature.diagonal().mean() + 1e-6) * torch.eye(len(curvature))  # also of a single target
    return NEWTON_STEP * torch.linalg.solve(curvature + damping, gradient.T).T
