import itertools
import threading

import pytest

from nanochat_lit.data.loader import ReadAhead


def test_items_come_in_order_and_no_more_than_asked_for():
    read = []
    ahead = ReadAhead((read.append(n) or n for n in itertools.count()), 3, lambda n: n * n)
    assert [next(ahead) for _ in range(5)] == [0, 1, 4, 9, 16]
    ahead.close()
    assert 5 <= len(read) <= 5 + 3 + 1  # one in the thread's hands
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_error_and_the_end_come_in_their_turn():
    def items():
        yield 1
        raise ValueError("broken")

    ahead = ReadAhead(items(), 4, lambda n: n)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(ahead)
    assert list(ReadAhead(iter([1, 2]), 4, lambda n: n)) == [1, 2]


def test_the_thread_ends_with_the_object():
    before = threading.active_count()
    ahead = ReadAhead(itertools.count(), 2, lambda n: n)
    assert next(ahead) == 0
    assert threading.active_count() == before + 1
    del ahead
    assert threading.active_count() == before
