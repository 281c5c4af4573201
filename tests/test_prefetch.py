"""Inputs of steps made ahead, in a thread, are those made one after the other."""

import threading
import time

import pytest

from ijepa.distributed import prefetched


def numbers(count, made, closed=None, fails_at=None):
    try:
        for number in range(count):
            if number == fails_at:
                raise ValueError("no such picture")
            made.append((number, threading.current_thread()))
            yield number
    finally:
        if closed is not None:
            closed.append(threading.current_thread())


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_items_come_in_order_from_a_thread_that_is_only_so_far_ahead(ahead):
    made, seen = [], []
    for item in prefetched(numbers(20, made), ahead):
        time.sleep(0.002)
        seen.append(item)
        assert len(made) <= item + 1 + ahead  # those seen, and those that wait
    assert seen == list(range(20))
    assert {thread for _, thread in made}.isdisjoint({threading.current_thread()})


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_thread_works_ahead_while_an_item_is_used(ahead):
    made = []
    items = prefetched(numbers(20, made), ahead)
    assert next(items) == 0
    until = time.monotonic() + 30
    while len(made) < 1 + ahead:
        assert time.monotonic() < until, "the thread makes an item only when it is asked for"
        time.sleep(0.001)
    items.close()


def test_what_fails_in_the_thread_fails_where_the_items_are_used():
    seen, closed = [], []
    with pytest.raises(ValueError, match="no such picture"):
        seen.extend(prefetched(numbers(9, [], closed, fails_at=4), 2))
    assert len(closed) == 1


def test_closing_ends_the_thread_and_closes_what_makes_the_items():
    made, closed = [], []
    items = prefetched(numbers(10**9, made, closed), 2)
    assert next(items) == 0
    items.close()
    assert len(closed) == 1
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 4
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
