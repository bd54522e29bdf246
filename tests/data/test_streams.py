import itertools
import json
import logging
import re

import pytest
import torch
from torch.utils.data import DataLoader

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.packing import BestFitRows, PaddedRows
from nanochat_lit.data.source import TextSource
from nanochat_lit.data.stream import ChatStream, PretrainStream, as_source
from nanochat_lit.tokenizer import Tokenizer, render_conversation

T = 32


def texts(count):
    return [f"story {index}: " + "the red boat sails on " * (index % 9) for index in range(count)]


def chats(count):
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {index}:"},
                {"role": "assistant", "content": "yes " * (index % 7)},
            ]
        }
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(texts(50), vocab_size=320)


def pretrain(tokenizer, **options):
    return PretrainStream(**{
        "texts": texts(200), "tokenizer": tokenizer, "sequence_len": T, "micro_batch_size": 4, "buffer_size": 20, **options
    })  # fmt: skip


def chat(tokenizer, **options):
    return ChatStream(**{
        "conversations": chats(200), "tokenizer": tokenizer, "sequence_len": T, "micro_batch_size": 4, "buffer_size": 20,
        **options,
    })  # fmt: skip


MAKERS = [pretrain, chat]


def rows_of(stream, count):
    """The first `count` rows, as (inputs, targets) lists."""
    pairs = (
        (i, t) for batch in stream for i, t in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True)
    )
    return list(itertools.islice(pairs, count))


def test_text_batches_are_the_packed_rows_shifted_by_one(tokenizer):
    stream = pretrain(tokenizer, texts=lambda: texts(200), split="all")
    batches = list(stream)
    assert all(batch["inputs"].shape == batch["targets"].shape == (4, T) for batch in batches[:-1])
    assert batches[0]["inputs"].dtype == batches[0]["targets"].dtype == torch.int64
    expected = list(BestFitRows([tokenizer.encode(text, prepend_bos=True) for text in texts(200)], T + 1, 20))
    assert rows_of(stream, 10**6) == [(row[:-1].tolist(), row[1:].tolist()) for row in expected]
    assert stream.counts.rows == len(expected)


def test_chat_targets_are_the_next_token_where_trained(tokenizer):
    stream = chat(tokenizer, conversations=lambda: chats(200), split="val")
    rendered = [render_conversation(tokenizer, conversation) for conversation in chats(200)]
    expected = list(PaddedRows(rendered, T + 1, tokenizer.bos_id, 20))
    got = rows_of(stream, 10**6)
    assert len(got) == len(expected)
    for (inputs, targets), (token_ids, loss_mask) in zip(got, expected, strict=True):
        assert inputs == token_ids[:-1].tolist()
        assert targets == [
            t if trained else -1 for t, trained in zip(token_ids[1:].tolist(), loss_mask[1:].tolist(), strict=True)
        ]


@pytest.mark.parametrize("make", MAKERS)
def test_rows_do_not_depend_on_the_batch_size(tokenizer, make):
    assert rows_of(make(tokenizer, micro_batch_size=1), 40) == rows_of(make(tokenizer, micro_batch_size=7), 40)
    assert rows_of(make(tokenizer), 40) == rows_of(make(tokenizer), 40)
    assert rows_of(make(tokenizer, seed=1), 40) != rows_of(make(tokenizer), 40)


def numbers(tokenizer, rows):
    """How often each item occurs, by the number in its text."""
    found = re.findall(r"(?:story|question) (\d+):", " ".join(tokenizer.decode(inputs) for inputs, _ in rows))
    return [int(number) for number in found]


def test_chat_ranks_and_epochs_cover_everything_once(tokenizer):
    ranks = [
        numbers(tokenizer, rows_of(chat(tokenizer, split="all", rank=rank, world_size=3), 10**6)) for rank in range(3)
    ]
    assert sorted(itertools.chain(*ranks)) == list(range(200))
    train = numbers(tokenizer, rows_of(chat(tokenizer), 600))
    assert len(train) > 3 * 198  # endless: more than three epochs
    assert set(train) == set(range(198))  # and validation items never come up


@pytest.mark.parametrize("make", MAKERS)
def test_loader_workers_do_not_repeat_data(tokenizer, make):
    loader = DataLoader(make(tokenizer, split="all"), batch_size=None, num_workers=2)
    seen = numbers(tokenizer, rows_of(loader, 10**6))
    assert len(seen) == len(set(seen))
    if make is chat:
        assert sorted(seen) == list(range(200))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("num_batches", [0, 1, 9, 120])
def test_a_stream_continues_exactly_from_its_state(tokenizer, make, num_batches):
    expected = rows_of(make(tokenizer), 4 * (num_batches + 80))
    stream = make(tokenizer)
    iterator = iter(stream)
    for _ in range(num_batches):
        next(iterator)
    resumed = make(tokenizer)
    resumed.load_state_dict(stream.state_dict())
    iterator = iter(resumed)
    middle = [next(iterator) for _ in range(30)]
    again = make(tokenizer)
    again.load_state_dict(resumed.state_dict())
    head = [pair for batch in middle for pair in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True)]
    assert head + rows_of(again, 4 * 50) == expected[4 * num_batches :]


def test_a_conversation_longer_than_the_row_is_cut_and_reported(tokenizer, caplog):
    long = {"messages": [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "never seen"}]}
    stream = chat(tokenizer, conversations=[*chats(3), long, long], split="all")
    with caplog.at_level(logging.WARNING):
        batches = list(stream)
    assert stream.counts.items_cut == 2
    assert "2 of 5 conversations were truncated to sequence_len 32" in caplog.text
    hidden = [targets for batch in batches for targets in batch["targets"] if bool((targets == -1).all())]
    assert len(hidden) == 2  # whole rows without a target: the loss counts them as 0


def test_sources_of_every_kind(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(200)))
    from_file = rows_of(pretrain(tokenizer, texts=tmp_path / "a.jsonl", split="all"), 50)
    assert from_file == rows_of(pretrain(tokenizer, texts=texts(200), split="all"), 50)

    class World(TextSource):
        def iterate(self, split, epoch, rank, world_size):
            return itertools.islice(
                (f"{split} {epoch} {number}" for number in itertools.count()), rank, None, world_size
            )

    assert len(rows_of(pretrain(tokenizer, texts=World()), 30)) == 30
    for wrong in (iter(["a"]), 5, []):
        with pytest.raises(UserError):
            as_source(wrong)


def test_impossible_settings_and_starving_readers(tokenizer):
    with pytest.raises(UserError, match="sequence_len is 0"):
        pretrain(tokenizer, sequence_len=0)
    with pytest.raises(UserError, match="rank 2 is not one of 2"):
        chat(tokenizer, rank=2, world_size=2)
    with pytest.raises(UserError, match="no item for reader 3 of 4"):
        next(iter(pretrain(tokenizer, texts=texts(4), rank=3, world_size=4)))
    with pytest.raises(UserError, match="no item for reader 0 of 1"):
        next(iter(pretrain(tokenizer, texts=list)))
