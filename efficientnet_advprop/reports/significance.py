"""Whether two networks differ on the same images: McNemar's test, paired bootstrap intervals, Holm's correction.

    pairs = PairedCounts.of(is_correct, other_is_correct)         # bool [images], the same images in the same order
    pairs.difference, pairs.p_value, pairs.interval()
    bootstrap_mean_interval(contributions - other_contributions)  # of a difference in mCE: see `corruption_contributions`
    adjusted = holm([0.01, 0.04, 0.03])

Both networks see the same images, so only the images on which they disagree tell them apart; intervals of the two accuracies
that overlap say nothing against a difference.
"""

import dataclasses
from typing import Mapping, Sequence

import numpy as np
from scipy import stats

NUM_RESAMPLES = 2000  # of the bootstrap: the ends of a 95 % interval then repeat to some hundredths of its width
_CHUNK_ELEMENTS = 1 << 24  # resampled at once; 128 MB


@dataclasses.dataclass(frozen=True)
class PairedCounts:
    """How often two networks are right on the same images.

    Args:
        num_images: all of them.
        num_only_first: that only the first one gets right.
        num_only_second: that only the second one gets right.
    """

    num_images: int
    num_only_first: int
    num_only_second: int

    def __post_init__(self):
        if (
            min(self.num_only_first, self.num_only_second) < 0
            or self.num_only_first + self.num_only_second > self.num_images
        ):
            raise ValueError(
                f"`num_only_first` = {self.num_only_first} and `num_only_second` = {self.num_only_second} must be ≥ 0 and "
                f"together at most `num_images` = {self.num_images}."
            )

    @classmethod
    def of(cls, first_is_correct: np.ndarray, second_is_correct: np.ndarray) -> "PairedCounts":
        """From what each says of each image: bool [images] twice, in the same order.

        Raises:
            ValueError: they have different lengths, or none.
        """
        first, second = np.asarray(first_is_correct, bool), np.asarray(second_is_correct, bool)
        if first.shape != second.shape or not first.size:
            raise ValueError(
                f"`first_is_correct` has shape {first.shape} and `second_is_correct` {second.shape}, but a paired comparison "
                "needs the same images, at least one."
            )
        return cls(first.size, int((first & ~second).sum()), int((second & ~first).sum()))

    @property
    def difference(self) -> float:
        """The second's accuracy minus the first's, in [−1, 1]."""
        return (self.num_only_second - self.num_only_first) / self.num_images

    @property
    def p_value(self) -> float:
        """McNemar's test (1947), exact and two-sided: were both equally good, each disagreement would be a coin's toss.

        Exact rather than with χ² or the mid-p value: it never claims more than it may, and where disagreements are many, as
        here, all three agree. 1.0 without a disagreement.
        """
        num_discordant = self.num_only_first + self.num_only_second
        return (
            float(stats.binomtest(self.num_only_first, num_discordant, 0.5).pvalue)
            if num_discordant
            else 1.0
        )

    def interval(
        self, confidence: float = 0.95, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrap interval of `difference`; see `bootstrap_mean_interval`."""
        kinds = [self.num_only_first, self.num_only_second]
        values = np.repeat([-1.0, 1.0, 0.0], [*kinds, self.num_images - sum(kinds)])
        return bootstrap_mean_interval(values, confidence, num_resamples=num_resamples, seed=seed)


def corruption_contributions(
    is_wrong: Mapping[str, Sequence[np.ndarray]], baseline_errors: Mapping[str, Sequence[float]]
) -> np.ndarray:
    """What each image adds to mCE: the mean of these over the images *is* mCE.

    The same images recur in all sets of ImageNet-C, so that its sets are no independent measurements; one resamples images with
    all their answers, hence these numbers, to get an interval of mCE or of the difference of two.

    Args:
        is_wrong: corruption → bool [images] by severity; the same images in the same order everywhere.
        baseline_errors: as in `metrics.mean_corruption_error`.

    Returns:
        float64 [images].

    Raises:
        ValueError: sets of different size, or a corruption that the other argument lacks.
    """
    if (
        set(is_wrong) != set(baseline_errors)
        or len({len(answers) for sets in is_wrong.values() for answers in sets}) != 1
    ):
        raise ValueError(
            f"`is_wrong` holds {', '.join(is_wrong) or 'nothing'}, but must hold the corruptions of `baseline_errors`, "
            f"{', '.join(baseline_errors)}, and the same images in each of their sets."
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
    """Percentile bootstrap interval (Efron 1979) of the mean of `values`, float [images].

    Raises:
        ValueError: there is no value.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"`values` has shape {values.shape}, but must be [images] with at least one."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"`confidence` is {confidence!r}, but must lie in (0, 1), for instance 0.95."
        )
    if values.size == 1:  # SciPy wants two; one value resampled is always itself
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
    """Two-sided p-value of Student's paired test that the mean of `differences`, float [images], is 0; 1.0 if all are."""
    differences = np.asarray(differences, np.float64)
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if np.any(differences) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: compared with α they hold for all tests together, however these
    depend on each other."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
