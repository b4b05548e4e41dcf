"""Tests whether two networks differ: McNemar's test, paired bootstrap, Holm's correction.

Both networks see the same images, so only the images on which they disagree distinguish
them. Overlapping intervals of the two accuracies do not show that there is no difference.
"""

from typing import Mapping, Sequence

import numpy as np
from scipy import stats

# With this number of bootstrap samples, the ends of a 95 % interval vary between seeds
# by a few hundredths of its width.
NUM_RESAMPLES = 2000
_CHUNK_ELEMENTS = 1 << 24  # values that are resampled at once; 128 MB


def count_discordant(
    first_is_correct: np.ndarray, second_is_correct: np.ndarray
) -> tuple[int, int]:
    """Returns how many images only the first, and only the second of two networks gets right:
    bool [images] twice, in one order.
    """
    first = np.asarray(first_is_correct, bool)
    second = np.asarray(second_is_correct, bool)
    if first.shape != second.shape or not first.size:
        raise ValueError(
            f"`first_is_correct` has shape {first.shape} and `second_is_correct` "
            f"{second.shape}, but a paired comparison needs the same images, at least one."
        )
    return int((first & ~second).sum()), int((second & ~first).sum())


def mcnemar_p_value(num_only_first: int, num_only_second: int) -> float:
    """Returns the p-value of McNemar's test (1947), exact and two-sided.

    Under the null hypothesis, each network is right in half of the disagreements; without one
    the value is 1.0. The exact test never exceeds its nominal error rate.
    """
    num_discordant = num_only_first + num_only_second
    if not num_discordant:
        return 1.0
    return float(stats.binomtest(num_only_first, num_discordant, 0.5).pvalue)


def difference_interval(
    num_images: int, num_only_first: int, num_only_second: int
) -> tuple[float, float]:
    """Returns the bootstrap interval of the second accuracy minus the first."""
    num_level = num_images - num_only_first - num_only_second
    values = np.repeat([-1.0, 1.0, 0.0], [num_only_first, num_only_second, num_level])
    return bootstrap_mean_interval(values)


def corruption_contributions(
    is_wrong: Mapping[str, Sequence[np.ndarray]], baseline_errors: Mapping[str, Sequence[float]]
) -> np.ndarray:
    """Returns the contribution of each image to mCE, float64 [images]: their mean is mCE.

    The same images occur in all test sets of ImageNet-C, so these are not independent
    measurements: an interval comes from resampling images with all their answers.

    Args:
        is_wrong: corruption → bool [images] by severity, in one order everywhere.
        baseline_errors: as in `metrics.mean_corruption_error`.
    """
    if (
        set(is_wrong) != set(baseline_errors)
        or len({len(answers) for sets in is_wrong.values() for answers in sets}) != 1
    ):
        raise ValueError(
            f"`is_wrong` holds {', '.join(is_wrong) or 'nothing'}, but must hold the corruptions "
            f"of `baseline_errors`, {', '.join(baseline_errors)}, and the same images in each of "
            "their sets."
        )
    parts = [
        np.sum(np.asarray(sets, np.float64), axis=0)
        / (len(is_wrong) * sum(baseline_errors[corruption]))
        for corruption, sets in is_wrong.items()
    ]
    return np.sum(parts, axis=0)


def bootstrap_mean_interval(
    values: np.ndarray,
    confidence: float = 0.95,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval (Efron 1979) of the mean of float [images]."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"`values` has shape {values.shape}, but must be [images] with at least one."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"`confidence` is {confidence!r}, but must lie in (0, 1), for instance 0.95."
        )
    if values.size == 1:  # SciPy requires two values; resampling one value returns it
        return float(values[0]), float(values[0])
    ends = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, _CHUNK_ELEMENTS // values.size),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(ends.low), float(ends.high)


def paired_t_test(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of Student's paired t-test of float [images]; 1.0 of zeros."""
    differences = np.asarray(differences, np.float64)
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if np.any(differences) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values (1979), in the given order; they hold for all tests
    together, however the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
