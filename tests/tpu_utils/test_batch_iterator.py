import threading
import time

import pytest

from tpu_utils.batch_iterator import BatchIterator, read_ahead


class Slow:
    """Batches 0, 1, … whose iterator is freed slowly, as TensorFlow's sometimes are."""

    def __init__(self, number):
        self.number, self.events = number, []
        self.may_go = threading.Event()

    def __iter__(self):
        slow = self

        class Iterator:
            left = iter(range(slow.number))

            def __iter__(self):
                return self

            def __next__(self):
                value = next(self.left)
                slow.events.append(f"read {value}")
                return value

            def __del__(self):
                slow.may_go.wait(20)
                slow.events.append("freed")

        return Iterator()


def _wait_until_freed(batches):
    batches.may_go.set()
    deadline = time.monotonic() + 20
    while "freed" not in batches.events and time.monotonic() < deadline:
        time.sleep(0.01)
    assert batches.events[-1] == "freed"


def test_nobody_waits_for_the_end_of_an_iterator():
    batches = Slow(3)
    with BatchIterator(batches) as opened:
        assert next(opened.iterator) == 0
    assert batches.events == ["read 0"]
    _wait_until_freed(batches)


def test_nobody_waits_after_an_error_either():
    batches = Slow(3)
    with pytest.raises(ValueError, match="at the first"):
        with BatchIterator(batches) as opened:
            raise ValueError(f"at the first: {next(opened.iterator)}")
    assert batches.events == ["read 0"]
    _wait_until_freed(batches)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_each_batch_comes_once_and_the_last_with_the_iterator_let_go(number):
    batches, came = Slow(number), []
    for batch in read_ahead(batches):
        came.append(batch)
        if batch < number - 1:
            assert batches.events[-1] == f"read {batch + 1}"
        else:
            _wait_until_freed(batches)
    assert came == list(range(number))
    _wait_until_freed(batches)


def test_whoever_stops_early_does_not_wait():
    batches = Slow(5)
    for batch in read_ahead(batches):
        if batch == 1:
            break
    assert batches.events == ["read 0", "read 1", "read 2"]
    _wait_until_freed(batches)
