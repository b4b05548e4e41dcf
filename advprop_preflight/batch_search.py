"""Finds the largest batch that fits into the memory of a device, with few compilations.

Each trial is a compilation, which can take many minutes.
"""

from typing import Callable, Optional

Trial = tuple[bool, Optional[int]]  # whether the batch fits; the bytes it needs, if known


def grid(batch: int) -> int:
    """Returns the distance between the batches that are tried: an eighth of the next smaller
    power of two, and at least 1.
    """
    return max(1, 2 ** (max(batch, 1).bit_length() - 1) // 8)


def find_largest_batch(
    try_batch: Callable[[int], Trial], *, capacity_bytes: int, first: int, multiple: int = 1
) -> Optional[int]:
    """Returns the largest batch on the grid that fits, if memory grows linearly with the batch.

    Two trials determine the line; the following trials are close to its end. The result
    has been tried itself. That the next batch on the grid does not fit has been tried,
    or follows from the line.

    Args:
        try_batch: batch → whether it fits and what it needs; called once per batch.
        capacity_bytes: memory of the device.
        first: the first batch to try, ≥ 1.
        multiple: all batches are multiples of it.

    Returns:
        The batch; None if not even `multiple` fits.
    """
    trials: dict[int, Trial] = {}
    batch = max(multiple, first // multiple * multiple)
    while True:
        trials[batch] = try_batch(batch)
        fitting = [tried for tried, (fits, _) in trials.items() if fits]
        failing = [tried for tried, (fits, _) in trials.items() if not fits]
        low = max(fitting, default=0)
        high = min(failing, default=None)
        step = max(multiple, grid(low) // multiple * multiple)
        if high is not None and high - low <= step:
            return low or None
        guess = _end_of_line(trials, capacity_bytes)
        if guess is None:  # no trial has said how many bytes it needs
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
    """Returns where the line through the two largest measured batches (through 0 and the
    only one) reaches capacity.
    """
    known = sorted((batch, needed) for batch, (_, needed) in trials.items() if needed)
    if not known:
        return None
    batch, needed = known[-1]
    offset = 0.0
    slope = needed / batch
    if len(known) > 1:
        slope = (needed - known[-2][1]) / (batch - known[-2][0])
        if slope <= 0:
            return None
        offset = needed - slope * batch
    return int((capacity_bytes - offset) / slope)
