"""Stages in threads of their own: order, errors, and how they end."""

import threading
import time
from contextlib import closing
from contextvars import ContextVar

import pytest

from latentsync.runtime.prefetch import consumer_gone, prefetch


class Source:
    """Numbers, made in whatever thread asks; it remembers which, how many, and whether it ended."""

    def __init__(self, count, wrong=None):
        self.count, self.wrong = count, wrong
        self.made, self.threads, self.closed = 0, set(), False

    def items(self):
        try:
            for number in range(self.count):
                self.threads.add(threading.get_ident())
                self.made += 1
                if number == self.wrong:
                    raise ZeroDivisionError(f"at {number}")
                yield number
        finally:
            self.closed = True


def test_the_items_come_in_order_from_one_other_thread():
    source = Source(50)
    assert list(prefetch(source.items(), 3)) == list(range(50))
    assert len(source.threads) == 1
    assert source.threads.isdisjoint({threading.get_ident()})
    assert source.closed


def test_it_is_so_far_ahead_and_no_further():
    source = Source(50)
    items = prefetch(source.items(), 3)
    assert next(items) == 0
    time.sleep(0.2)  # it would make all 50 in that time
    assert source.made == 5  # one taken, three waiting, one that finds no room
    items.close()


def test_an_error_comes_after_the_items_before_it():
    source, seen = Source(9, wrong=4), []
    with pytest.raises(ZeroDivisionError, match="at 4"):
        seen.extend(prefetch(source.items(), 2))
    assert seen == [0, 1, 2, 3]
    assert source.closed


@pytest.mark.parametrize("thrown", [KeyboardInterrupt, None])
def test_who_wants_no_more_stops_the_thread_and_closes_the_source(thrown):
    source = Source(10**9)
    before = threading.active_count()
    items = prefetch(source.items(), 2)
    assert next(items) == 0
    if thrown:
        with pytest.raises(thrown):
            items.throw(thrown)
    else:
        items.close()
    assert source.closed
    assert threading.active_count() == before


def test_stages_in_a_row_end_together():
    first = Source(10**9)

    def plus_one(numbers):
        with closing(numbers):
            for number in numbers:
                yield number + 1

    second = prefetch(plus_one(prefetch(first.items())))
    third = prefetch(plus_one(second))
    assert [next(third) for _ in range(3)] == [2, 3, 4]
    third.close()
    assert first.closed


def test_only_the_stages_before_one_that_ended_are_abandoned():
    told = {}

    def stage(name, numbers, wrong=None):
        with closing(numbers):
            for number in numbers:
                while number == 2 and name == "first" and not consumer_gone():
                    time.sleep(0.01)  # a long step, cut short only by that
                if number == wrong:
                    raise ZeroDivisionError(name)
                yield number
                told[name] = consumer_gone()

    first = prefetch(stage("first", prefetch(Source(10**9).items())))
    second = prefetch(stage("second", first, wrong=1))
    third = prefetch(stage("third", second))
    with pytest.raises(ZeroDivisionError, match="second"):
        list(third)
    assert told["third"] is False
    assert not consumer_gone()


def test_it_knows_the_callers_context():
    name: ContextVar[str] = ContextVar("name", default="nobody")
    name.set("prediction 7")
    assert list(prefetch(name.get() for _ in range(2))) == ["prediction 7"] * 2
