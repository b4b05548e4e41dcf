"""The largest batch that fits into a device's memory, in few trials: a trial is a compilation of many minutes.

Usage:

    largest = find_largest_batch(needed_bytes, capacity_bytes=16 * 2**30, first=32)
"""

from typing import Callable, Optional

Trial = tuple[bool, Optional[int]]  # does it fit; how many bytes it needs, where that is known


def grid(batch: int) -> int:
    """The step in which batches of about this size are tried: an eighth of the power of two below, 1 at least."""
    return max(1, 2 ** (max(batch, 1).bit_length() - 1) // 8)


def find_largest_batch(
    try_batch: Callable[[int], Trial], *, capacity_bytes: int, first: int, multiple: int = 1
) -> Optional[int]:
    """The largest batch on the grid that fits, as far as memory grows linearly with the batch.

    Two trials give the line; the rest are at its end. The result has been tried itself; that the next batch on the grid does
    not fit has been tried or follows from the line.

    Args:
        try_batch: batch → whether it fits and what it needs; asked once per batch.
        capacity_bytes: of the device.
        first: where to start, ≥ 1.
        multiple: batches must be multiples of it.

    Returns:
        The batch; None where not even `multiple` fits.
    """
    trials: dict[int, Trial] = {}
    batch = max(multiple, first // multiple * multiple)
    while True:
        trials[batch] = try_batch(batch)
        fitting = [tried for tried, (fits, _) in trials.items() if fits]
        failing = [tried for tried, (fits, _) in trials.items() if not fits]
        low, high = max(fitting, default=0), min(failing, default=None)
        step = max(multiple, grid(low) // multiple * multiple)
        if high is not None and high - low <= step:
            return low or None
        guess = _end_of_line(trials, capacity_bytes)
        if guess is None:  # nothing known but that something fits, or does not
            guess = 2 * low if high is None else (low + high) // 2
        elif high is None and low and guess - low < step and len(trials) > 1:
            return low
        unit = max(multiple, grid(guess) // multiple * multiple)
        guess = guess // unit * unit
        upper = guess if high is None else min(guess, high - multiple)
        batch = max(upper // multiple * multiple, low + step)
        if high is not None and batch >= high:
            batch = max(low + multiple, (low + high) // 2 // multiple * multiple)


def _end_of_line(trials: dict[int, Trial], capacity_bytes: int) -> Optional[int]:
    """Where the line through the two largest measured batches meets the capacity; with one, in proportion."""
    known = sorted((batch, needed) for batch, (_, needed) in trials.items() if needed)
    if not known:
        return None
    batch, needed = known[-1]
    offset, slope = 0.0, needed / batch
    if len(known) > 1:
        slope = (needed - known[-2][1]) / (batch - known[-2][0])
        if slope <= 0:
            return None
        offset = needed - slope * batch
    return int((capacity_bytes - offset) / slope)
