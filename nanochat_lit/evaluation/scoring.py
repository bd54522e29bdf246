"""Losses of given continuations, computed once for what they share.

An example is a few rows of tokens that begin alike and end with what is to be scored: the choices of a question, say. The
shared beginning goes through the model once; its keys and values then serve all rows, of which only the rest is computed.
Examples whose shared parts are equally long, rounded down to BUCKET tokens, run together: so no row is padded on the left,
and the model needs no mask. Logits are made only for the tokens that are scored.

Shapes: N rows, P shared tokens, S tokens after them, C channels, V vocabulary.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.lengths import padded_length
from nanochat_lit.model import GPT, KVCache
from nanochat_lit.model.loss import softcap

BUCKET = 8
"""Shared beginnings are cut to a multiple of this many tokens; what is cut off is computed in every row."""

MIN_SHARED = 16
"""A shorter shared beginning is not worth a second forward pass."""

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 16384}
"""Tokens of a forward pass: enough to keep the device busy, few enough for its memory."""

CACHED_PASSES = 4
"""The cache of all rows, shared beginnings repeated, holds at most this many passes' tokens."""

LOGITS_PER_PASS = 1 << 25
"""Logits made at a time (128 MB in float32)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Rows of tokens whose ends are scored."""

    rows: list[np.ndarray]
    """Token ids of each row, <|bos|> first, (length,) int32."""
    starts: list[int]
    """Where the scored part of each row begins, at least 1; it goes to the row's end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScore:
    """What a model makes of the scored part of a row."""

    mean_loss: float
    """Mean over its tokens, nats."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one."""


class Scorer(Protocol):
    """Anything that can score rows: our model, another library's, a stand-in with known answers."""

    sequence_len: int
    """Longest row in tokens."""

    def score(self, examples: Sequence[Example]) -> list[list[RowScore]]:
        """The score of every row of every example."""
        ...


class RowScorer(ABC):
    """Scores rows with a causal model; what a kind of model must be able to do for it is in three methods.

    Args:
        device: Where the model is.
        sequence_len: Longest row in tokens.
        vocab_size: Logits of a token.
        tokens_per_pass: Tokens of a forward pass; None is what suits the device.
    """

    shares = True
    """Whether keys and values of a shared beginning can be kept for several rows."""

    def __init__(
        self, device: torch.device, sequence_len: int, vocab_size: int, tokens_per_pass: int | None = None
    ) -> None:
        self.device, self.sequence_len, self.vocab_size = device, sequence_len, vocab_size
        self.tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, 4096)

    @abstractmethod
    def read(self, beginnings: Tensor, owners: Tensor, room: int) -> Any:
        """Keys and values of beginnings, (B, P) token ids, one for each row.

        Args:
            beginnings: Read once each.
            owners: (N,) which of them each row begins with.
            room: Tokens that a row may have in all.
        """

    @abstractmethod
    def states(self, inputs: Tensor, cache: Any, rows: Tensor, columns: Tensor) -> Tensor:
        """What the model makes of some tokens, (K, C): all that `logits` needs.

        Args:
            inputs: (N, S) token ids, padded on the right.
            cache: What `read` has given, for what stands before them; None is nothing.
            rows: (K,) where in inputs the tokens are.
            columns: (K,) likewise.
        """

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """(K, V) float32 logits of the next token."""

    def score(self, examples: Sequence[Example]) -> list[list[RowScore]]:
        """The score of every row of every example.

        Args:
            examples: In any order; no row longer than `sequence_len`.

        Raises:
            UserError: If the model gives losses that are not numbers.
        """
        scores: list[list[RowScore]] = [[] for _ in examples]
        shared = [shared_length(example) if self.shares else 0 for example in examples]
        lengths = [
            padded_length(max(map(len, example.rows)) - 1 - own, self.sequence_len - own)  # the last is only a target
            for example, own in zip(examples, shared, strict=True)
        ]
        for members in _batches(examples, shared, lengths, self.tokens_per_pass):
            batch = [examples[index] for index in members]
            row_scores = iter(self._score_batch(batch, shared[members[0]], lengths[members[0]]))
            for index, example in zip(members, batch, strict=True):
                scores[index] = [next(row_scores) for _ in example.rows]
        return scores

    @torch.inference_mode()
    def _score_batch(self, batch: list[Example], shared: int, length: int) -> list[RowScore]:
        """Scores of all rows of examples that share `shared` tokens each, in order; the rest is padded to `length`."""
        rows = [row for example in batch for row in example.rows]
        starts = [start for example in batch for start in example.starts]
        cache = None
        if shared:
            beginnings = np.stack([example.rows[0][:shared] for example in batch])
            owners = [number for number, example in enumerate(batch) for _ in example.rows]
            cache = self.read(self._on_device(beginnings), torch.tensor(owners, device=self.device), shared + length)
        inputs = np.zeros((len(rows), length), dtype=np.int64)  # padding is on the right, outside causal attention
        for number, row in enumerate(rows):
            inputs[number, : len(row) - 1 - shared] = row[shared:-1]
        counts = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        columns = np.concatenate(
            [np.arange(start, len(row)) - 1 - shared for row, start in zip(rows, starts, strict=True)]
        )
        numbers = np.repeat(np.arange(len(rows)), counts)
        states = self.states(
            self._on_device(inputs), cache, self._on_device(numbers), self._on_device(columns)
        )  # (K, C)
        targets = np.concatenate([row[start:] for row, start in zip(rows, starts, strict=True)])
        losses, hits = self._target_losses(states, self._on_device(targets))
        return _row_scores(losses, hits, counts)

    def _on_device(self, token_ids: np.ndarray) -> Tensor:
        return torch.from_numpy(token_ids).long().to(self.device)

    def _target_losses(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each target and whether it is the most likely token, (K,) each, of (K, C) states before them."""
        losses, hits = [], []
        chunk = max(1, LOGITS_PER_PASS // self.vocab_size)
        for some, wanted in zip(states.split(chunk), targets.split(chunk), strict=True):
            logits = self.logits(some)
            losses.append(F.cross_entropy(logits, wanted, reduction="none"))
            hits.append(logits.argmax(dim=-1) == wanted)
        return torch.cat(losses), torch.cat(hits)


class GPTScorer(RowScorer):
    """Scores rows with a GPT, on its device and in its compute dtype.

    Args:
        model: In evaluation mode.
        tokens_per_pass: Tokens of a forward pass; None is what suits the device.
    """

    def __init__(self, model: GPT, tokens_per_pass: int | None = None) -> None:
        super().__init__(model.device, model.config.sequence_len, model.config.vocab_size, tokens_per_pass)
        self.model = model

    def read(self, beginnings: Tensor, owners: Tensor, room: int) -> KVCache:
        """Keys and values of beginnings, one for each row."""
        cache = KVCache(self.model.config, len(beginnings), room, self.device, self.model.compute_dtype)
        self.model.features(beginnings, cache)
        cache.keep_rows(owners)
        return cache

    def states(self, inputs: Tensor, cache: KVCache | None, rows: Tensor, columns: Tensor) -> Tensor:
        """(K, C) of the last layer."""
        return self.model.features(inputs, cache)[rows, columns]

    def logits(self, states: Tensor) -> Tensor:
        """(K, V) float32."""
        return softcap(self.model.unembed(states))


def shared_length(example: Example) -> int:
    """How many tokens all rows begin with that need no score: 0, or a multiple of BUCKET.

    At least one token before each scored part stays in the rows: its state predicts the first scored token.

    Args:
        example: With one row there is nothing to share.
    """
    if len(example.rows) == 1:
        return 0
    limit = min(common_prefix(example.rows), *example.starts) - 1
    return 0 if limit < MIN_SHARED else limit // BUCKET * BUCKET


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with.

    Args:
        rows: Token ids.
    """
    shortest = min(map(len, rows))
    differs = np.zeros(shortest, dtype=bool)
    for row in rows[1:]:
        differs |= row[:shortest] != rows[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def _batches(
    examples: Sequence[Example], shared: list[int], lengths: list[int], tokens_per_pass: int
) -> Iterator[list[int]]:
    """Indices of examples with equal shared lengths and similar rests, longest first (what is too large shows at once)."""
    members: list[int] = []
    num_rows = 0
    for index in sorted(range(len(examples)), key=lambda index: (shared[index], lengths[index]), reverse=True):
        if members:
            beginning, length = shared[members[0]], lengths[members[0]]
            rows = num_rows + len(examples[index].rows)
            is_full = (
                (len(members) + 1) * beginning > tokens_per_pass
                or rows * length > tokens_per_pass
                or rows * (beginning + length) > CACHED_PASSES * tokens_per_pass
            )
            if is_full or shared[index] != beginning:
                yield members
                members, num_rows = [], 0
        members.append(index)
        num_rows += len(examples[index].rows)
    if members:
        yield members


def _row_scores(losses: Tensor, hits: Tensor, counts: list[int]) -> list[RowScore]:
    all_losses, all_hits = losses.cpu().double().numpy(), hits.cpu().numpy()  # MPS has no float64
    if not np.isfinite(all_losses).all():
        raise UserError("the model gives losses that are not numbers (NaN or infinite); its weights are damaged")
    bounds = np.cumsum([0, *counts])
    return [
        RowScore(mean_loss=float(all_losses[start:stop].mean()), is_greedy=bool(all_hits[start:stop].all()))
        for start, stop in itertools.pairwise(bounds)
    ]
