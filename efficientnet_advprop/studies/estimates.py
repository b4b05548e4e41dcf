"""Means over seeds with their intervals, and the paired test of a contrast.

    estimate = Estimate.of([0.012, 0.004, 0.009, 0.015, 0.011])
    estimate.mean, estimate.interval, estimate.p_value

The seeds are the sample: an interval speaks of other seeds on the same images, not of other images.
"""

import dataclasses
import math
import statistics
from typing import Mapping, Sequence

from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        values: one per seed.
        mean: of them.
        interval: Student's t-interval of the mean, 95 %; (nan, nan) with fewer than two values.
        p_value: two-sided t-test of the mean against zero, which for a contrast is the test paired by seed; nan likewise.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    p_value: float

    @property
    def span(self) -> tuple[float, float]:
        """What to draw: the interval, or the mean alone where there is none."""
        return (self.mean, self.mean) if math.isnan(self.interval[0]) else self.interval

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Raises a `ValueError` if there is no value."""
        if not values:
            raise ValueError("`values` is empty, but a mean needs at least one.")
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(tuple(values), mean, (math.nan, math.nan), math.nan)
        if len(set(values)) == 1:  # there is no spread to judge by
            return cls(tuple(values), mean, (mean, mean), 1.0 if mean == 0.0 else 0.0)
        test = stats.ttest_1samp(values, 0.0)
        ends = test.confidence_interval(CONFIDENCE)
        interval = (float(ends.low), float(ends.high))
        return cls(tuple(values), mean, interval, float(test.pvalue))


def contrast_values(
    weights: Mapping[str, float], accuracies: Mapping[str, Mapping[int, float]]
) -> dict[int, float]:
    """seed → the weighted sum of the arms' accuracies, for the seeds that all of them have.

    Args:
        weights: arm → weight.
        accuracies: arm → seed → accuracy.
    """
    seeds = set.intersection(*(set(accuracies.get(arm, ())) for arm in weights))
    return {
        seed: math.fsum(weight * accuracies[arm][seed] for arm, weight in weights.items())
        for seed in sorted(seeds)
    }


def verdict(estimate: Estimate, expected: int, adjusted_p_value: float) -> str:
    """What a contrast says of a claim.

    Args:
        estimate: of the contrast.
        expected: the claim's sign; 0: that there is no difference.
        adjusted_p_value: for the number of tests; `significance.holm`.

    Returns:
        "shown": on the claim's side, after the adjustment; "suggested": its own interval excludes zero on that side, which may
        be chance among so many tests; "not shown" (for `expected` 0 "no difference shown"): the interval holds zero; "opposite"
        (for 0 "different"): it excludes zero otherwise; "too few seeds".
    """
    low, high = estimate.interval
    if math.isnan(low):
        return "too few seeds"
    if low <= 0.0 <= high:
        return "not shown" if expected else "no difference shown"
    if expected == 0:
        return "different"
    if (estimate.mean > 0) != (expected > 0):
        return "opposite"
    return "shown" if adjusted_p_value < 1 - CONFIDENCE else "suggested"
