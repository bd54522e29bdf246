"""The place in the files: exact for the same readers, and nothing lost or read twice when their number changes."""

import collections
import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.cursor import BlockCursor
from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.source import Mixture, SplitSource


def write(folder, num_files=5, rows=37, group=8):
    """Files of 37 documents in 5 row groups, the last of them smaller; every 10th row is null."""
    folder.mkdir()
    for file in range(num_files):
        texts = [None if row % 10 == 9 else f"{file}-{row}" for row in range(rows)]
        pq.write_table(pa.table({"text": texts}), folder / f"{file}.parquet", row_group_size=group)
    return folder


def source(folder, window=None):
    found = FileSource(folder, seed=3)
    found.window = window
    return found


@pytest.fixture(params=[None, 1, 2], ids=["all_files", "one_file", "two_files"])
def files(request, tmp_path):
    return source(write(tmp_path / "texts"), request.param)


@pytest.fixture(params=["files", "one_file", "list"])
def either(request, tmp_path):
    """A source with blocks, and one that gives items in turns."""
    if request.param == "list":
        return Texts([f"text {number}" for number in range(160)])
    return source(write(tmp_path / "texts"), None if request.param == "files" else 1)


def take(cursor, count, iterator=None):
    """Items that go into a buffer."""
    items = []
    for item in itertools.islice(iterator or iter(cursor), count):
        cursor.take()
        items.append(item)
    return items


@pytest.mark.parametrize("world_size", [1, 3, 40])
def test_every_epoch_is_dealt_out_whole_and_in_another_order(files, world_size):
    wanted = sorted(files.documents("train"))
    orders = []
    for epoch in range(3):
        shares = [list(files.iterate("train", epoch, rank, world_size)) for rank in range(world_size)]
        assert sorted(itertools.chain(*shares)) == wanted
        orders.append(shares)
    assert orders[0] != orders[1] != orders[2]
    assert len({tuple(text.split("-")[0] for text in shares[0]) for shares in orders}) > 1, "of files, too"


@pytest.mark.parametrize("world_size", [1, 3, 40])
def test_a_reader_comes_back_to_its_place(either, world_size):
    """At any item of more than two epochs, with up to 128 items read ahead."""
    files = either
    rank = world_size // 2
    whole = take(files.cursor("train", rank, world_size), 300)
    for count in [0, 1, 8, 133, 250]:
        cursor = files.cursor("train", rank, world_size)
        iterator = iter(cursor)
        assert take(cursor, count, iterator) == whole[:count]
        list(itertools.islice(iterator, count % 13))  # read ahead and not taken
        resumed = files.cursor("train", rank, world_size)
        resumed.load_state_dict(json.loads(json.dumps(cursor.state_dict())))
        middle = take(resumed, 7)
        again = files.cursor("train", rank, world_size)
        again.load_state_dict(resumed.state_dict())
        assert middle + take(again, 300 - count - 7) == whole[count:]


def test_coming_back_reads_nothing_before_the_place(tmp_path, monkeypatch):
    files = source(write(tmp_path / "texts", num_files=9), window=1)
    cursor = files.cursor("train", 0, 1)
    take(cursor, 200)
    opened = []
    fresh = source(tmp_path / "texts", window=1)
    monkeypatch.setattr(type(fresh), "opened", lambda self, file: opened.append(file) or self.files[file])
    resumed = fresh.cursor("train", 0, 1)
    resumed.load_state_dict(cursor.state_dict())
    take(resumed, 1)
    assert len(set(opened)) == 1


@pytest.mark.parametrize("sizes", [(4, 1), (3, 5), (8, 2, 3), (2, 40, 6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_other_numbers_of_readers_go_on_without_loss_or_repetition(either, sizes, seed):
    """Readers at random places, changed once or twice: every document of the epochs once, as often as there were epochs."""
    files = either
    rng = random.Random(seed)
    seen = collections.Counter()
    state = None
    for size in sizes:
        cursors = []
        for rank in range(size):
            cursor = files.cursor("train", rank, size)
            if state is not None:
                cursor.load_state_dict(state)
            seen.update(take(cursor, rng.randint(0, 150 // size) if seed else 0))
            cursors.append(cursor)
        states = [json.loads(json.dumps(cursor.state_dict())) for cursor in cursors]
        state = cursors[0].merge(states, 99)
    # One reader more reads on to the end of the epoch that the furthest was in.
    last = files.cursor("train", 0, 1)
    last.load_state_dict(state)
    wanted = list(files.documents("train"))
    num_epochs = state["start"][0] + 1
    seen.update(take(last, num_epochs * len(wanted) - sum(seen.values())))
    assert seen == collections.Counter(dict.fromkeys(wanted, num_epochs))


def test_what_was_buffered_can_be_read_again_by_its_place(files):
    """Places refer to documents: dealt out again with what is left."""
    readers = [files.cursor("train", rank, 3) for rank in range(3)]
    seen, places = [], []
    for cursor in readers:
        for number, item in enumerate(itertools.islice(iter(cursor), 20)):
            place = cursor.take()
            if number % 3 == 0:
                places.append(place)
            else:
                seen.append(item)
    state = readers[0].merge([cursor.state_dict() for cursor in readers], 1, places)
    cursor = files.cursor("train", 0, 1)
    cursor.load_state_dict(state)
    wanted = sorted(files.documents("train"))
    assert sorted(seen + take(cursor, len(wanted) - len(seen))) == wanted


def test_items_of_a_list_can_be_read_again_by_their_number():
    """Dealt out again with what is left, also when readers are in different epochs."""
    texts = Texts([f"text {number}" for number in range(60)])
    readers = [texts.cursor("train", rank, 3) for rank in range(3)]
    seen, places = collections.Counter(), []
    for cursor, count in zip(readers, (18, 25, 70), strict=True):  # the last is in its fourth epoch
        for number, item in enumerate(itertools.islice(iter(cursor), count)):
            place = cursor.take()
            if number % 3 == 0:
                places.append(place)
            else:
                seen[item] += 1
    state = readers[0].merge([cursor.state_dict() for cursor in readers], 2, places)
    state = json.loads(json.dumps(state))
    assert state["start"] == [3, 39], "the end of the round that the furthest reader is in"
    for rank in range(2):
        cursor = texts.cursor("train", rank, 2)
        cursor.load_state_dict(state)
        for item in cursor:
            if cursor.take()[0] == 4:
                break
            seen[item] += 1
    assert seen == collections.Counter(dict.fromkeys(texts.documents("train"), 4))
    with pytest.raises(UserError, match="earlier version or with another kind"):
        texts.cursor("train", 0, 1).load_state_dict({"epoch": 0, "item": 5})


def test_files_that_have_changed_are_noticed(tmp_path):
    folder = write(tmp_path / "texts")
    cursor = source(folder).cursor("train", 0, 1)
    take(cursor, 5)
    pq.write_table(pa.table({"text": ["new"]}), folder / "0a.parquet")
    with pytest.raises(UserError, match=r"texts' are not those that the checkpoint was made with"):
        source(folder).cursor("train", 0, 1).load_state_dict(cursor.state_dict())
    with pytest.raises(UserError, match="earlier version"):
        source(folder).cursor("train", 0, 1).load_state_dict({"epoch": 0, "item": 5})


def test_only_null_rows_are_an_error_not_an_endless_loop(tmp_path):
    pq.write_table(pa.table({"text": pa.array([None, ""], pa.string())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="no item for reader 0 of 1"):
        next(iter(FileSource(tmp_path).cursor("train", 0, 1)))


class Texts(SplitSource):
    """A list whose last text is for validation."""

    def __init__(self, texts):
        super().__init__(texts[:-1], texts[-1:])

    def documents(self, split="all"):
        return iter(sorted(self.iterate(split)))


def mixture(weights, **texts):
    return Mixture({name: Texts(items) for name, items in texts.items()}, weights)


def test_a_mixture_draws_by_weight_of_characters():
    mixed = mixture({"long": 3, "short": 1}, long=["l" * 100] * 50, short=["s" * 7] * 90)
    texts = take(mixed.cursor("train", 0, 1), 4000)
    chars = collections.Counter()
    for number, text in enumerate(texts, 1):
        chars[text[0]] += len(text)
        if number > 100:
            assert abs(chars["l"] - 3 * chars["s"]) <= 300  # right up to a document at any moment
    assert texts == take(mixed.cursor("train", 0, 1), 4000)
    everything = list(mixed.documents("train"))
    assert collections.Counter(text[0] for text in everything) == {"l": 49, "s": 89}
    with pytest.raises(UserError, match="weights are set for a, but the sources are a, b"):
        mixture({"a": 1}, a=["x"], b=["y"])
    with pytest.raises(UserError, match="weight of a is 0"):
        mixture({"a": 0}, a=["x"])


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_mixture_comes_back_to_its_place(files, world_size):
    texts = [f"{number} " * (number % 5 + 1) for number in range(60)]
    mixed = Mixture({"files": files, "list": Texts(texts)}, {"files": 0.3, "list": 0.7})
    whole = take(mixed.cursor("train", 0, world_size), 400)
    for count in [0, 1, 77, 250]:
        cursor = mixed.cursor("train", 0, world_size)
        iterator = iter(cursor)
        take(cursor, count, iterator)
        list(itertools.islice(iterator, 9))
        resumed = mixed.cursor("train", 0, world_size)
        resumed.load_state_dict(json.loads(json.dumps(cursor.state_dict())))
        assert take(resumed, 400 - count) == whole[count:]
    with pytest.raises(UserError, match="sources of the mixture are not the same"):
        Mixture({"files": files}, {"files": 1}).cursor("train", 0, 1).load_state_dict(cursor.state_dict())


def test_a_mixture_of_files_changes_its_readers_without_loss(tmp_path):
    one, two = source(write(tmp_path / "one")), source(write(tmp_path / "two", num_files=3))
    mixed = Mixture({"one": one, "two": two}, {"one": 1, "two": 1})
    seen = collections.Counter()
    cursors = [mixed.cursor("train", rank, 3) for rank in range(3)]
    for rank, cursor in enumerate(cursors):
        seen.update(take(cursor, 10 + rank))
    state = cursors[0].merge([cursor.state_dict() for cursor in cursors], 2)
    for rank in range(2):
        cursor = mixed.cursor("train", rank, 2)
        cursor.load_state_dict(state)
        seen.update(take(cursor, 12))
    assert max(seen.values()) == 2, "the texts of the two folders are the same"
    assert isinstance(one.cursor("train", 0, 1), BlockCursor)
