import itertools
import threading

import pytest

from nanochat_lit.data.loader import read_ahead


def test_items_come_in_order_and_no_more_than_asked_for():
    read = []
    ahead = read_ahead((read.append(n) or n for n in itertools.count()), 3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    ahead.close()
    assert 5 <= len(read) <= 5 + 3
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_error_and_the_end_come_in_their_turn():
    def items():
        yield 1
        raise ValueError("broken")

    ahead = read_ahead(items(), 4)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    assert list(read_ahead(iter([1, 2]), 4)) == [1, 2]


def test_the_thread_ends_with_the_object():
    before = threading.active_count()
    ahead = read_ahead(itertools.count(), 2)
    assert next(ahead) == 0
    assert threading.active_count() == before + 1
    del ahead
    assert threading.active_count() == before
