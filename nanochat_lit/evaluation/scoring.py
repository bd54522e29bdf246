"""Losses of given continuations, with shared prefixes computed once.

An example is a few token sequences with a common prefix and a scored end, for example the choices of a question. The
prefix is computed once; its keys and values are reused for all sequences. Examples with equal prefix lengths, rounded
down to BUCKET tokens, are batched. No sequence is thus padded on the left, and the model needs no mask. Logits are
computed only for the scored tokens.

Shapes: N sequences, P shared tokens, S tokens after them, C channels, V vocabulary.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import padded_length
from nanochat_lit.model import GPT, KVCache

BUCKET = 8
"""Shared prefixes are rounded down to a multiple of this many tokens; the remainder is computed per sequence."""

MIN_SHARED = 16
"""Minimum length of a shared prefix, tokens; shorter ones are not worth a second forward pass."""

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 16384}
"""Tokens per forward pass by device type; limited by memory."""

CACHED_PASSES = 4
"""Maximum size of the KV cache, including repeated prefixes, in multiples of the tokens per pass."""

LOGITS_PER_PASS = 1 << 25
"""Number of logits to compute at a time (128 MB in float32)."""


class Example(NamedTuple):
    """Token sequences whose ends are scored."""

    rows: list[np.ndarray]  # token ids of each sequence, beginning with <|bos|>, (length,) int32
    starts: list[int]  # start of the scored part of each sequence, at least 1; it extends to the end


class RowScore(NamedTuple):
    """Result of the scored part of a sequence."""

    mean_loss: float  # mean loss of its tokens, nats
    is_greedy: bool  # whether each of its tokens is the most likely one


class RowScorer(ABC):
    """Scores sequences with a causal model; subclasses implement `read`, `states` and `logits`."""

    shares = True
    """Whether keys and values of a shared prefix can be reused for several sequences."""

    def __init__(
        self, device: torch.device, sequence_len: int, vocab_size: int, tokens_per_pass: int | None = None
    ) -> None:
        self.device, self.sequence_len, self.vocab_size = device, sequence_len, vocab_size
        self.tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, 4096)

    @abstractmethod
    def read(self, beginnings: Tensor, owners: Tensor, room: int) -> Any:
        """Return keys and values of one prefix per sequence, with `room` tokens each.

        `beginnings`, (B, P), are computed once each; `owners`, (N,), has the index of each sequence's prefix.
        """

    @abstractmethod
    def states(self, inputs: Tensor, cache: Any, rows: Tensor, columns: Tensor) -> Tensor:
        """Return hidden states of selected tokens, (K, C), of inputs (N, S), padded on the right, as input of `logits`.

        The cache, of `read`, has the preceding tokens; None without any. Rows and columns, (K,), select the tokens.
        """

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """Return logits of the next token, (K, V) float32."""

    def score(self, examples: Sequence[Example]) -> list[list[RowScore]]:
        """Return the score of every sequence of every example; no sequence is longer than `sequence_len`."""
        scores: list[list[RowScore]] = [[] for _ in examples]
        shared = [shared_length(example) if self.shares else 0 for example in examples]
        lengths = [
            padded_length(max(map(len, example.rows)) - 1 - own, self.sequence_len - own)  # the last is only a target
            for example, own in zip(examples, shared, strict=True)
        ]

        def joins(members: list[int], index: int) -> bool:
            beginning, length = shared[members[0]], lengths[members[0]]
            num_rows = sum(len(examples[member].rows) for member in (*members, index))
            sizes = ((len(members) + 1) * beginning, num_rows * length, num_rows * (beginning + length) / CACHED_PASSES)
            return shared[index] == beginning and max(sizes) <= self.tokens_per_pass

        # equal shared lengths and similar remainders, longest first (to fail early)
        order = sorted(range(len(examples)), key=lambda index: (shared[index], lengths[index]), reverse=True)
        for members in grouped(order, joins):
            batch = [examples[index] for index in members]
            row_scores = iter(self._score_batch(batch, shared[members[0]], lengths[members[0]]))
            for index, example in zip(members, batch, strict=True):
                scores[index] = [next(row_scores) for _ in example.rows]
        return scores

    @torch.inference_mode()
    def _score_batch(self, batch: list[Example], shared: int, length: int) -> list[RowScore]:
        """Score all sequences of examples with `shared` common tokens each, padding the rest to `length`."""
        rows = [row for example in batch for row in example.rows]
        starts = [start for example in batch for start in example.starts]
        cache = None
        if shared:
            beginnings = np.stack([example.rows[0][:shared] for example in batch])
            owners = [number for number, example in enumerate(batch) for _ in example.rows]
            cache = self.read(self._on_device(beginnings), torch.tensor(owners, device=self.device), shared + length)
        inputs = np.zeros((len(rows), length), dtype=np.int64)  # padding is on the right, ignored by causal attention
        for number, row in enumerate(rows):
            inputs[number, : len(row) - 1 - shared] = row[shared:-1]
        counts = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        columns = np.concatenate(
            [np.arange(start, len(row)) - 1 - shared for row, start in zip(rows, starts, strict=True)]
        )
        numbers = np.repeat(np.arange(len(rows)), counts)
        states = self.states(self._on_device(inputs), cache, self._on_device(numbers), self._on_device(columns))
        targets = np.concatenate([row[start:] for row, start in zip(rows, starts, strict=True)])
        losses, hits = self._target_losses(states, self._on_device(targets))
        return _row_scores(losses, hits, counts)

    def _on_device(self, token_ids: np.ndarray) -> Tensor:
        return torch.from_numpy(token_ids).long().to(self.device)

    def _target_losses(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each target and whether it is the most likely token, (K,) each, from states (K, C)."""
        losses, hits = [], []
        chunk = max(1, LOGITS_PER_PASS // self.vocab_size)
        for some, wanted in zip(states.split(chunk), targets.split(chunk), strict=True):
            logits = self.logits(some)
            losses.append(F.cross_entropy(logits, wanted, reduction="none"))
            hits.append(logits.argmax(dim=-1) == wanted)
        return torch.cat(losses), torch.cat(hits)


class GPTScorer(RowScorer):
    """Scores sequences with a GPT, on its device and in its compute dtype."""

    def __init__(self, model: GPT, tokens_per_pass: int | None = None) -> None:
        super().__init__(model.device, model.config.sequence_len, model.config.vocab_size, tokens_per_pass)
        self.model = model

    def read(self, beginnings: Tensor, owners: Tensor, room: int) -> KVCache:
        """Return the keys and values of the prefixes, one per sequence."""
        cache = KVCache(self.model.config, len(beginnings), room, self.device, self.model.compute_dtype)
        self.model.features(beginnings, cache)
        cache.keep_rows(owners)
        return cache

    def states(self, inputs: Tensor, cache: KVCache | None, rows: Tensor, columns: Tensor) -> Tensor:
        """Return hidden states of the last layer, (K, C)."""
        return self.model.features(inputs, cache)[rows, columns]

    def logits(self, states: Tensor) -> Tensor:
        """(K, V) float32."""
        return self.model.cap_logits(self.model.unembed(states))


def shared_length(example: Example) -> int:
    """Return the length of the unscored common prefix: 0 or a multiple of BUCKET.

    At least one token before each scored part is excluded: its state predicts the first scored token.
    """
    if len(example.rows) == 1:
        return 0
    limit = min(common_prefix(example.rows), *example.starts) - 1
    return 0 if limit < MIN_SHARED else limit // BUCKET * BUCKET


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Return the length of the common prefix."""
    shortest = min(map(len, rows))
    differs = np.zeros(shortest, dtype=bool)
    for row in rows[1:]:
        differs |= row[:shortest] != rows[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def grouped(order: Iterable[int], joins: Callable[[list[int], int], bool]) -> Iterator[list[int]]:
    """Yield batches of consecutive indices; `joins` returns whether an index fits into the batch of the given ones."""
    members: list[int] = []
    for index in order:
        if members and not joins(members, index):
            yield members
            members = []
        members.append(index)
    if members:
        yield members


def _row_scores(losses: Tensor, hits: Tensor, counts: list[int]) -> list[RowScore]:
    all_losses, all_hits = losses.cpu().double().numpy(), hits.cpu().numpy()  # MPS has no float64
    if not np.isfinite(all_losses).all():
        raise UserError("losses are not finite; the model's weights are damaged")
    bounds = np.cumsum([0, *counts])
    return [
        RowScore(mean_loss=float(all_losses[start:stop].mean()), is_greedy=bool(all_hits[start:stop].all()))
        for start, stop in itertools.pairwise(bounds)
    ]
