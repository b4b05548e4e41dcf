"""Means over seeds with intervals, paired tests of contrasts, and their power.

The seeds are the sample: Student's interval describes other seeds on the same images, not
other images. `bootstrap_interval` describes both.
"""

import dataclasses
import math
import statistics
from typing import Any, Iterable, Mapping, Optional, Sequence

import numpy as np
from scipy import optimize, stats

from advprop_experiments.plan import unpack_images

CONFIDENCE = 0.95
_NUM_DRAWS = 2000
_DRAWING_SEED = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        values: one value per seed.
        mean: the mean of the values.
        interval: Student's 95 % t-interval of the mean; (nan, nan) with fewer than two
            values.
        p_value: two-sided t-test of the mean against zero, which for a contrast is the
            test paired by seed; nan with fewer than two values.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    p_value: float

    @property
    def span(self) -> tuple[float, float]:
        """The interval to draw; only the mean if there is no interval."""
        return (self.mean, self.mean) if math.isnan(self.interval[0]) else self.interval

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Returns the estimate from at least one value."""
        if not values:
            raise ValueError("`values` is empty, but a mean needs at least one.")
        mean = statistics.fmean(values)
        count = len(values)
        if count < 2:
            return cls(tuple(values), mean, (math.nan, math.nan), math.nan)
        if len(set(values)) == 1:  # the t-test needs values that differ
            return cls(tuple(values), mean, (mean, mean), 1.0 if mean == 0.0 else 0.0)
        test = stats.ttest_1samp(values, 0.0)
        ends = test.confidence_interval(CONFIDENCE)
        interval = (float(ends.low), float(ends.high))
        return cls(tuple(values), mean, interval, float(test.pvalue))


def common_seeds(arms: Iterable[str], accuracies: Mapping[str, Mapping[int, Any]]) -> list[int]:
    """Returns the seeds, in order, that all arms have."""
    return sorted(set.intersection(*(set(accuracies.get(arm, ())) for arm in arms)))


def contrast_values(
    weights: Mapping[str, float], accuracies: Mapping[str, Mapping[int, float]]
) -> dict[int, float]:
    """Returns seed → weighted sum over the arms, for the seeds that all of them have.

    Args:
        weights: arm → weight.
        accuracies: arm → seed → accuracy.
    """
    return {
        seed: math.fsum(weight * accuracies[arm][seed] for arm, weight in weights.items())
        for seed in common_seeds(weights, accuracies)
    }


def image_accuracy(packed: Mapping[str, Mapping], name: Optional[str] = None) -> np.ndarray:
    """Returns float64 [images]: the mean over test sets of the same images, or of one of them,
    of whether each is classified correctly.

    Args:
        packed: test set → `plan.pack_images`.
    """
    sets = packed.values() if name is None else [packed[name]]
    return np.mean([unpack_images(one) for one in sets], axis=0)


def contrast_by_image(
    weights: Mapping[str, float], accuracies: Mapping[str, Mapping[int, np.ndarray]]
) -> np.ndarray:
    """Does as `contrast_values` for accuracies float64 [images]: float64 [seeds, images]."""
    return np.array(
        [
            sum(weight * accuracies[arm][seed] for arm, weight in weights.items())
            for seed in common_seeds(weights, accuracies)
        ]
    )


def bootstrap_interval(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of [seeds, images]; (nan, nan) with
    fewer than two seeds.

    Seeds and images are drawn anew, each with replacement, as A. B. Owen does it ("The
    pigeonhole bootstrap", Annals of Applied Statistics 2007), who shows that the result
    is, if anything, too wide.
    """
    values = np.asarray(values)
    if len(values) < 2:
        return (math.nan, math.nan)
    num_seeds, num_images = values.shape
    generator = np.random.default_rng(_DRAWING_SEED)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), _NUM_DRAWS)
    means = []
    for drawn in seeds:  # one after the other: [draws, images] would not fit
        images = generator.multinomial(num_images, np.full(num_images, 1 / num_images))
        means.append((drawn @ values) @ images / (num_seeds * num_images))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def power(difference: float, deviation: float, num_seeds: int, significance: float) -> float:
    """Returns the probability that a two-sided paired t-test over seeds finds a difference.

    Args:
        difference: the true mean of the contrast.
        deviation: standard deviation of the contrast over seeds, > 0.
        num_seeds: ≥ 2.
        significance: the level of the test, such as 0.05; with Holm's method the first
            of n tests has 0.05 / n.
    """
    freedom = num_seeds - 1
    critical = stats.t.isf(significance / 2, freedom)
    shift = abs(difference) / deviation * math.sqrt(num_seeds)
    found = stats.nct.sf(critical, freedom, [shift, -shift])  # on the true side, and on the other
    return float(sum(found))


def detectable_difference(
    deviation: float, num_seeds: int, significance: float, wanted_power: float = 0.8
) -> float:
    """Returns the true difference that the test of `power` finds with `wanted_power`."""

    def excess(difference):
        return power(difference, deviation, num_seeds, significance) - wanted_power

    high = deviation / math.sqrt(num_seeds)
    while excess(high) < 0.0:  # not from far above, where SciPy's distribution is not a number
        high *= 2.0
    return float(optimize.brentq(excess, 0.0, high))


def verdict(estimate: Estimate, expected: int, adjusted_p_value: float) -> str:
    """Returns whether a contrast confirms a claim, a key of `report.VERDICTS`.

    Args:
        expected: the sign that the claim gives it; 0: no difference.
        adjusted_p_value: corrected for the number of tests by `significance.holm`.
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
