"""Prefetching: results are computed ahead and come in order."""

import threading
import time

import pytest

from image_data.prefetching import AHEAD, prefetched


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetching")]


def test_results_come_in_order_and_are_made_in_one_other_thread():
    makers = set()

    def make(i):
        makers.add(threading.get_ident())
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(prefetched(make, range(20))) == [i * i for i in range(20)]
    assert len(makers) == 1
    assert threading.get_ident() not in makers
    assert not threads()


def test_a_few_are_made_before_they_are_asked_for():
    made = []
    enough = threading.Event()

    def make(i):
        made.append(i)
        if len(made) == 1 + AHEAD:
            enough.set()

    results = prefetched(make, range(100))
    next(results)
    assert enough.wait(10)
    assert made == list(range(1 + AHEAD))
    results.close()
    assert not threads()


def test_an_error_is_raised_where_its_result_is_asked_for():
    results = prefetched(lambda i: 1 // (2 - i), range(5))
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()
