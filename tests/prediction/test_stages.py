"""Stages in threads: order, bounded queues, errors and the end of all threads."""

import threading
import time

import pytest

from transformers_detrpose.prediction.stages import Stages


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def failing(items, number, error):
    for index, item in enumerate(items):
        if index == number:
            raise error
        yield item


def test_items_come_in_order_through_several_stages():
    with Stages() as stages:
        squares = stages.run((item * item for item in stages.run(range(100), 2)), 3)
        assert list(squares) == [item * item for item in range(100)]


def test_stages_overlap():
    """The second stage can only pass its first item once the first stage works on its second."""
    second_began = threading.Event()

    def items():
        yield 0
        second_began.set()
        yield 1

    with Stages() as stages:
        passed = (second_began.wait(timeout=10) and item for item in stages.run(items(), 1))
        assert list(stages.run(passed, 1)) == [0, 1]


def test_a_stage_runs_ahead_no_further_than_it_may():
    made = []

    def items():
        for index in range(1000):
            made.append(index)
            yield index

    with Stages() as stages:
        ready = stages.run(items(), 3)
        for taken in range(5):
            next(ready)
            time.sleep(0.02)
            assert len(made) <= taken + 1 + 3 + 1  # taken, ready, and in the hands of the stage


def test_a_live_stage_drops_the_oldest():
    done = threading.Event()

    def items():
        yield from range(100)
        done.set()

    with Stages() as stages:
        ready = stages.run(items(), 3, drop_oldest=True)
        assert done.wait(timeout=10)
        assert list(ready) == [97, 98, 99]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing_stage", [0, 1, 2])
def test_an_error_in_any_stage_reaches_the_end_after_what_came_before(error, failing_stage):
    seen = []
    with pytest.raises(type(error)), Stages() as stages:
        items = iter(range(1000))
        for number in range(3):
            if number == failing_stage:
                items = failing(items, 5, error)
            items = stages.run(items, 2)
        seen.extend(item for item in items if seen.append(item))
    assert seen == [0, 1, 2, 3, 4]


def test_an_error_of_the_one_who_takes_ends_all_stages():
    """Also where one of them has no end, and others wait for it."""
    with pytest.raises(OSError, match="disk is full"), Stages() as stages:
        endless = stages.run(iter(int, 1), 1)
        for _ in stages.run((item for item in stages.run(endless, 1)), 1):
            raise OSError("disk is full")
