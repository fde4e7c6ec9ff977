import gc
import threading
import time

import pytest

from frcnn.data.threads import map_in_threads


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("frcnn-data")]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    gc.collect()
    assert not threads()


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (1, 3), (4, 0), (4, 10)])
def test_results_come_in_the_order_of_the_items(workers, ahead):
    def slow_first(number):
        time.sleep(0.002 * (number % 3 == 0))
        return number * number

    assert list(map_in_threads(slow_first, iter(range(20)), workers, ahead)) == [number**2 for number in range(20)]


def test_no_items():
    assert list(map_in_threads(len, [], 2, 2)) == []


def test_it_works_in_threads_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)  # passed only when three calls run at once
    places = list(map_in_threads(lambda _: meeting.wait() >= 0 and threading.current_thread().name, range(3), 3, 0))
    assert all(place.startswith("frcnn-data") for place in places)


def test_items_are_read_lazily_and_a_bounded_number_ahead():
    read = []

    def items():
        for number in range(1000):
            read.append(number)
            yield number

    results = map_in_threads(str, items(), 2, 3)
    assert not read  # nothing before the first result is asked for
    for number in range(10):
        assert next(results) == str(number)
        assert len(read) == number + 1 + 2 + 3
    results.close()
    assert len(read) == 15


def test_an_exception_is_raised_at_its_items_turn_and_ends_the_threads():
    def fail_at_three(number):
        if number == 3:
            raise ValueError("item 3 is broken")
        return number

    results, seen = map_in_threads(fail_at_three, range(100), 2, 4), []
    with pytest.raises(ValueError, match="item 3 is broken"):
        seen.extend(results)
    assert seen == [0, 1, 2]
    assert not threads()


def test_an_exception_of_the_items_is_raised_too():
    def items():
        yield 1
        raise ValueError("no more items")

    with pytest.raises(ValueError, match="no more items"):
        list(map_in_threads(str, items(), 1, 1))
    assert not threads()


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_abandoned_generator_ends_its_threads_and_cancels_what_waits(end):
    calls = []

    def work(number):
        calls.append(number)
        time.sleep(0.01)
        return number

    results = map_in_threads(work, range(100), 1, 50)
    assert next(results) == 0
    assert threads()
    if end == "close":
        results.close()
    del results
    gc.collect()
    assert not threads()
    assert len(calls) < 20
