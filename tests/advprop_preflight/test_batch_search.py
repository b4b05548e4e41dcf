"""The search against networks whose memory is known: linear, padded to tiles, or more
than there is.
"""

import pytest

from advprop_preflight.preflight_results import find_largest_batch, grid

CAPACITY = 16 * 2**30
# Name → bytes by batch, and the most trials that are fair: a trial is a compilation of
# many minutes.
NETWORKS = {
    "small": (lambda batch: 0.4e9 + 5e7 * batch, 3),
    "middling": (lambda batch: 0.5e9 + 2e8 * batch, 3),
    "huge": (lambda batch: 1e9 + 4e9 * batch, 3),
    "tiles of 8": (lambda batch: 1e9 + 2.4e8 * (-(-batch // 8) * 8), 6),
    "too large": (lambda batch: 2e10 + batch, 3),
}


@pytest.mark.parametrize("first", [1, 8, 32, 512])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_finds_the_largest_batch_of_the_grid_in_few_trials(name, multiple, first):
    needed_bytes, most_trials = NETWORKS[name]
    tried = []

    def try_batch(batch):
        tried.append(batch)
        return needed_bytes(batch) <= CAPACITY, int(needed_bytes(batch))

    found = find_largest_batch(try_batch, capacity_bytes=CAPACITY, first=first, multiple=multiple)
    best = max(
        (batch for batch in range(multiple, 1000, multiple) if needed_bytes(batch) <= CAPACITY),
        default=None,
    )
    assert len(set(tried)) == len(tried) <= most_trials
    assert all(batch % multiple == 0 for batch in tried)
    if best is None:
        assert found is None
    else:
        assert found in tried and best - max(grid(best), multiple) < found <= best


def test_failures_that_tell_no_size_end_too():
    """A compiler may only say that memory ran out."""

    def try_batch(batch):
        return (batch <= 5, None)

    assert find_largest_batch(try_batch, capacity_bytes=CAPACITY, first=64) == 5
