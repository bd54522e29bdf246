"""Packing against a naive implementation on plain lists, and the accounts of every token."""

import io
import itertools
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.packing import BestFitRows, FitBuffer, PaddedRows, split_document

BOS = 0


def to_documents(lengths):
    """Documents of these lengths with tokens that occur once in all of them."""
    documents, token = [], 1
    for length in lengths:
        documents.append([BOS, *range(token, token + length - 1)])
        token += length
    return documents


def through_a_checkpoint(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def to_conversations(lengths):
    documents = to_documents(lengths)
    return [(ids, [int(token % 3 == 0 and token > 0) for token in ids]) for ids in documents]


def naive_best_fit(documents, row_len, buffer_size):
    waiting, buffer, rows = list(documents), [], []
    while True:
        row = []
        while len(row) < row_len:
            while len(buffer) < buffer_size and waiting:
                buffer.append(waiting.pop(0))
            if not buffer:
                return rows, len(row)
            space = row_len - len(row)
            fitting = [document for document in buffer if len(document) <= space]
            # max and min return the first of equals, which is the oldest
            chosen = max(fitting, key=len) if fitting else min(buffer, key=len)
            buffer.pop(next(index for index, document in enumerate(buffer) if document is chosen))
            row += chosen[:space]
        rows.append(row)


def naive_padded(conversations, row_len, buffer_size):
    waiting, buffer, rows = [(ids[:row_len], mask[:row_len]) for ids, mask in conversations], [], []
    while waiting or buffer:
        ids, mask = [], []
        while True:
            while len(buffer) < buffer_size and waiting:
                buffer.append(waiting.pop(0))
            fitting = [pair for pair in buffer if len(pair[0]) <= row_len - len(ids)]
            if not fitting:
                break
            chosen = max(fitting, key=lambda pair: len(pair[0]))
            buffer.pop(next(index for index, pair in enumerate(buffer) if pair is chosen))
            ids, mask = ids + chosen[0], mask + chosen[1]
        rows.append((ids + [99999] * (row_len - len(ids)), mask + [0] * (row_len - len(mask))))
    return rows


lengths_of = st.lists(st.integers(1, 30), max_size=60)
row_lens = st.integers(2, 20)
buffer_sizes = st.integers(1, 12)


@settings(max_examples=500, deadline=None)
@given(lengths=lengths_of, row_len=row_lens, buffer_size=buffer_sizes)
def test_best_fit_equals_the_naive_form_and_accounts_for_every_token(lengths, row_len, buffer_size):
    documents = to_documents(lengths)
    rows = BestFitRows(iter(documents), row_len, buffer_size)
    got = [row.tolist() for row in rows]
    expected, unfinished = naive_best_fit(documents, row_len, buffer_size)
    assert got == expected
    counts = rows.counts
    assert all(len(row) == row_len and row[0] == BOS for row in got)
    assert (counts.items, counts.rows, counts.used) == (len(documents), len(got), sum(map(len, got)))
    assert counts.unfinished == unfinished
    assert counts.read == sum(lengths) == counts.used + counts.cropped + counts.unfinished
    text_tokens = [token for row in got for token in row if token != BOS]
    assert len(text_tokens) == len(set(text_tokens))  # nothing twice


@settings(max_examples=300, deadline=None)
@given(lengths=lengths_of, row_len=row_lens, buffer_size=buffer_sizes)
def test_splitting_long_documents_equals_packing_their_pieces(lengths, row_len, buffer_size):
    documents = to_documents(lengths)
    rows = BestFitRows(documents, row_len, buffer_size, long_documents="split")
    got = [row.tolist() for row in rows]
    counts = rows.counts
    assert counts.read + counts.added == counts.used + counts.cropped + counts.unfinished
    assert all(row[0] == BOS and len(row) == row_len for row in got)
    text_tokens = [token for row in got for token in row if token != BOS]
    assert len(text_tokens) == len(set(text_tokens))
    total = sum(length - 1 for length in lengths)
    if counts.unfinished == counts.cropped == 0:
        assert len(text_tokens) == total


def test_splitting_wastes_almost_nothing_and_scatters_the_pieces():
    documents = to_documents([10 * 50 + 7] * 40)
    rows = BestFitRows(documents, 10, 500, long_documents="split")
    got = list(rows)
    assert rows.counts.cropped < 0.01 * rows.counts.read
    starts = [row[1] // 507 for row in got[: 50 * 20]]  # the document that a row begins with
    neighbours = sum(a == b for a, b in itertools.pairwise(starts)) / len(starts)
    assert neighbours < 0.2  # by age it would be 0.98; ten documents in the buffer give 0.1


@given(length=st.integers(1, 50), max_len=st.integers(2, 20))
def test_pieces_of_a_document_lose_nothing(length, max_len):
    (document,) = to_documents([length])
    pieces = [piece.tolist() for piece in split_document(np.array(document), max_len)]
    assert all(piece[0] == BOS and 2 <= len(piece) <= max_len for piece in pieces) or length == 1
    assert [token for piece in pieces for token in piece if token] == [token for token in document if token]
    assert all(len(piece) == max_len for piece in pieces[:-1])


@settings(max_examples=500, deadline=None)
@given(lengths=lengths_of, row_len=row_lens, buffer_size=buffer_sizes)
def test_padded_rows_equal_the_naive_form_and_cut_nothing_silently(lengths, row_len, buffer_size):
    conversations = to_conversations(lengths)
    rows = PaddedRows(conversations, row_len, 99999, buffer_size)
    got = [tuple(row.tolist()) for row in rows]
    assert got == naive_padded(conversations, row_len, buffer_size)
    counts = rows.counts
    assert counts.items_cut == sum(length > row_len for length in lengths)
    assert counts.read == sum(lengths) == counts.used + counts.cropped
    assert counts.padding == sum(ids.count(99999) for ids, _ in got)
    for ids, mask in got:
        assert len(ids) == len(mask) == row_len
        assert ids[0] == BOS
        # the mask stays with its token, and padding is never trained on
        assert mask == [int(token % 3 == 0 and 0 < token < 99999) for token in ids]
    assert sum(token not in (99999,) for ids, _ in got for token in ids) == sum(min(n, row_len) for n in lengths)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_of, stop=st.integers(0, 20), padded=st.booleans(), split=st.booleans())
def test_packing_continues_from_a_saved_state(lengths, stop, padded, split):
    items = to_conversations(lengths) if padded else to_documents(lengths)

    def pack(remaining):
        if padded:
            return PaddedRows(remaining, 10, 99999, 4)
        return BestFitRows(remaining, 10, 4, "split" if split else "crop")

    def listed(rows):
        return [row.tolist() for row in rows]

    whole = pack(items)
    expected = listed(whole)
    first = pack(items)
    head = listed(row for _, row in zip(range(stop), first, strict=False))
    state = through_a_checkpoint(first.state_dict())
    second = pack(items[first.counts.items :])
    second.load_state_dict(state)
    assert head + listed(second) == expected
    assert asdict(second.counts) == asdict(whole.counts)


def test_ties_go_to_the_oldest():
    buffer = FitBuffer()
    for name, length in ((1, 5), (2, 3), (3, 5), (4, 3)):
        buffer.add([np.full(length, name)])
    assert [buffer.pop_largest(9)[0], buffer.pop_shortest()[0], buffer.pop_largest(4)[0]] == [1, 2, 4]
    assert buffer.pop_largest(4) is None


def test_an_example_by_hand():
    # Space 6: the 5 fits best, then the single 1 left nothing fits, so the shortest (3) is cropped to 1.
    documents = [[0, 1, 2], [0, 3, 4, 5, 6], [0, 7, 8, 9]]
    assert [row.tolist() for row in BestFitRows(documents, 6)] == [[0, 3, 4, 5, 6, 0]]
    rows = PaddedRows([(d, [1] * len(d)) for d in documents], 6, -7)
    assert [tuple(row.tolist()) for row in rows] == [
        ([0, 3, 4, 5, 6, -7], [1, 1, 1, 1, 1, 0]),
        ([0, 7, 8, 9, -7, -7], [1, 1, 1, 1, 0, 0]),
        ([0, 1, 2, -7, -7, -7], [1, 1, 1, 0, 0, 0]),
    ]


def test_impossible_sizes():
    with pytest.raises(UserError, match="sequence of 1"):
        BestFitRows([], 1)
    with pytest.raises(UserError, match="buffer_size is 0"):
        PaddedRows([], 5, 0, buffer_size=0)
    with pytest.raises(UserError, match="long_documents is 'drop'"):
        BestFitRows([], 5, long_documents="drop")  # type: ignore[arg-type]
