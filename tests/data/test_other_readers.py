"""Streams that go on with another number of ranks or workers: what becomes of the documents, buffers included.

The bound: no document is read twice. With documents cropped none is skipped; with documents split those are skipped of
which a piece, but not all, had been used, and of these there are at most as many as a buffer holds, for each reader.
(With loader workers the batches since a worker's last snapshot, at most 31 a worker, are read again besides.)
"""

import collections
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.data.hub_files import HubStream
from nanochat_lit.data.loader import merged
from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.source import Mixture
from nanochat_lit.data.stream import ChatStream, PretrainStream

NUM_DOCUMENTS = 240
BUFFER = 12


@pytest.fixture
def folder(tmp_path):
    """Documents of one to twelve words that have a number, in row groups of 16."""
    texts = [f"d{number:03d}x " + "cat " * (number % 12) for number in range(NUM_DOCUMENTS)]
    for file in range(3):
        part = texts[file * 80 : file * 80 + 80]
        pq.write_table(pa.table({"text": part}), tmp_path / f"{file}.parquet", row_group_size=16)
    pq.write_table(pa.table({"text": ["validation"]}), tmp_path / "val.parquet")
    return tmp_path


def take(stream, count, tokenizer, seen):
    iterator = iter(stream)
    for _ in range(count):
        batch = next(iterator)
        for row in batch["inputs"]:
            seen.update(int(found) for found in re.findall(r"d(\d\d\d)x", tokenizer.decode(row.tolist())))
    return stream.state_dict()


def positions(states):
    return [{"readers": [{"state": state, "since": 0}], "next_reader": 0} for state in states]


def rest_of_epoch(source, state):
    """What one reader reads from this place until the next epoch."""
    reader = source.cursor("train", 0, 1)
    reader.load_state_dict(state)
    items = []
    for item in reader:
        place = reader.take()
        if place[-4 if len(place) > 2 else 0] > 0:
            return items
        items.append(item)
    raise AssertionError("training data are endless")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("long_documents", ["split", "crop"])
@pytest.mark.parametrize("source", ["files", "mixture", "stream"])
@pytest.mark.parametrize(("num_readers", "num_batches"), [(1, 9), (3, 0), (3, 6), (4, 3)])
def test_nothing_is_read_twice_and_what_was_buffered_comes_again(
    folder, tokenizer, monkeypatch, long_documents, source, num_readers, num_batches
):
    """Rows of 16 tokens, so that many documents are cropped, or have several pieces."""
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))

    def texts():
        files = FileSource(folder, seed=1)
        if source == "stream":
            paths = [str(file.path) for file in files.files[:-1]]
            return HubStream("parquet", data_files=paths, val_split="train", buffer_size=50)
        return files if source == "files" else Mixture({"files": files}, {"files": 1.0})

    def stream(rank, world_size):
        return PretrainStream(
            texts=texts(), tokenizer=tokenizer, sequence_len=16, micro_batch_size=4, rank=rank, world_size=world_size,
            buffer_size=BUFFER, long_documents=long_documents,
        )  # fmt: skip

    seen = collections.Counter()
    states = [take(stream(rank, num_readers), num_batches + 1, tokenizer, seen) for rank in range(num_readers)]
    merged_place = merged(stream(0, 1), positions(states), 1, 1)
    cursor = merged_place["readers"][0]["state"]["cursor"]
    again = rest_of_epoch(texts(), cursor)
    again = [int(re.match(r"d(\d\d\d)x ", text)[1]) for text in again]
    assert len(set(again)) == len(again)
    assert not set(again) & set(seen), "a document that was used came again"
    taken = sum(state["packer"]["counts"]["items"] for state in states)
    waiting = [state["places"].shape[0] for state in states]
    buffered = [len(state["packer"]["buffer"]["items"]["lengths"]) for state in states]
    assert len(again) == NUM_DOCUMENTS - taken + sum(waiting)
    assert sum(waiting) > 0
    if long_documents == "crop":
        assert waiting == buffered, "nothing is skipped"
    else:
        assert NUM_DOCUMENTS - len(again) - len(seen) <= sum(buffered)


def test_the_number_of_readers_can_change_again_before_anything_is_read(folder, tokenizer):
    def stream(rank, world_size):
        return PretrainStream(
            texts=FileSource(folder, seed=1), tokenizer=tokenizer, sequence_len=16, micro_batch_size=4, rank=rank,
            world_size=world_size, buffer_size=BUFFER,
        )  # fmt: skip

    states = [take(stream(rank, 3), 4, tokenizer, collections.Counter()) for rank in range(3)]
    once = stream(0, 1).merge(states, 2)
    twice = stream(0, 1).merge([once, once], 1)
    rest = [sorted(rest_of_epoch(FileSource(folder, seed=1), state["cursor"])) for state in (once, twice)]
    assert rest[0] == rest[1] != []


def test_a_resumed_stream_still_knows_where_its_buffer_came_from(folder, tokenizer):
    def stream():
        return PretrainStream(
            texts=FileSource(folder, seed=1), tokenizer=tokenizer, sequence_len=8, micro_batch_size=4,
            buffer_size=BUFFER, long_documents="split",
        )  # fmt: skip

    seen = collections.Counter()
    whole = stream()
    iterator = iter(whole)
    for _ in range(9):
        next(iterator)
    state = whole.state_dict()
    for _ in range(3):
        next(iterator)
    resumed = stream()
    resumed.load_state_dict(state)
    assert take(resumed, 3, tokenizer, seen)["places"].tolist() == whole.state_dict()["places"].tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_mixture_of_files_and_a_stream_goes_on_likewise(folder, tokenizer, monkeypatch):
    """Their places differ in length."""
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))

    def mixture():
        other = HubStream("parquet", data_files=str(folder / "2.parquet"), val_split="train")
        files = FileSource(folder, seed=1, validation="2.parquet")  # leaves val.parquet out
        return Mixture({"files": files, "stream": other}, {"files": 2.0, "stream": 1.0})

    def stream(rank, world_size):
        return PretrainStream(
            texts=mixture(), tokenizer=tokenizer, sequence_len=40, micro_batch_size=4, rank=rank, world_size=world_size,
            buffer_size=BUFFER,
        )  # fmt: skip

    seen = collections.Counter()
    states = [take(stream(rank, 3), 3, tokenizer, seen) for rank in range(3)]
    cursors = stream(0, 1).merge(states, 1)["cursor"]["cursors"]
    again = [text for name, source in mixture().sources.items() for text in rest_of_epoch(source, cursors[name])]
    taken = sum(state["packer"]["counts"]["items"] for state in states)
    waiting = [state["places"].shape for state in states]
    assert len(again) == NUM_DOCUMENTS - taken + sum(rows for rows, _ in waiting)
    assert {columns for _, columns in waiting} == {7}, "of both, in one tensor"
    numbers = [int(found[1]) for text in again if (found := re.match(r"d(\d\d\d)x ", text))]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & set(seen)


def test_conversations_go_on_likewise(tmp_path, tokenizer):
    rows = [
        {"messages": [{"role": "user", "content": f"d{n:03d}x "}, {"role": "assistant", "content": "cat " * (n % 7)}]}
        for n in range(100)
    ]
    for name, part in (("a", rows), ("b", rows[:1])):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"{name}.parquet", row_group_size=16)

    def stream(rank, world_size):
        return ChatStream(
            conversations=FileSource(tmp_path, "messages", seed=1), tokenizer=tokenizer, sequence_len=100,
            micro_batch_size=1, rank=rank, world_size=world_size, buffer_size=10,
        )  # fmt: skip

    seen = collections.Counter()
    states = [take(stream(rank, 3), 2, tokenizer, seen) for rank in range(3)]
    again = rest_of_epoch(FileSource(tmp_path, "messages", seed=1), stream(0, 1).merge(states, 1)["cursor"])
    again = [int(row["messages"][0]["content"][1:4]) for row in again]
    assert sorted([*again, *seen]) == list(range(100))
