"""Accuracies with their intervals, and the corruption errors of ImageNet-C.

score = Score(num_images=1000, num_top1=953, num_top5=999)
score.top1, score.interval()                     # 0.953, (0.938, 0.964)
# Both are {corruption: [error per severity]}, of a model and of a baseline.
mean_corruption_error(errors, baseline_errors)
"""

import dataclasses
import statistics
from typing import Mapping, Sequence

from scipy import stats

# Corruption → error in [0, 1] at each severity, the mildest first.
CorruptionErrors = Mapping[str, Sequence[float]]


def wilson_interval(
    num_correct: int, num_images: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion (1927), in [0, 1].

    It holds near 0 and 1, where ±1.96 standard errors does not.

    Raises:
        ValueError: an argument is out of its range.
    """
    if num_images < 1:
        raise ValueError(
            f"`num_images` is {num_images!r}, but a proportion needs at least one image."
        )
    if not 0 <= num_correct <= num_images:
        raise ValueError(
            f"`num_correct` is {num_correct!r}, but must lie in [0, `num_images` = {num_images}]."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            f"`confidence` is {confidence!r}, but must lie in (0, 1), for instance 0.95."
        )
    ends = stats.binomtest(num_correct, num_images).proportion_ci(confidence, method="wilson")
    return float(ends.low), float(ends.high)


# Of fewer classes the five highest are no choice.
MIN_CLASSES_FOR_TOP5 = 10


@dataclasses.dataclass(frozen=True)
class Score:
    """Counts over a set of images; scores of disjoint sets add up."""

    num_images: int  # that were evaluated
    num_top1: int  # with the true class as their highest logit
    num_top5: int  # with it among the five highest
    # The sum of their cross-entropies, in nats; rounded, hence not compared.
    total_loss: float = dataclasses.field(default=0.0, compare=False)

    def __add__(self, other: "Score") -> "Score":
        return Score(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    @property
    def top1(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return self.num_top1 / self.num_images

    @property
    def top5(self) -> float:
        """Top-5 accuracy in [0, 1]."""
        return self.num_top5 / self.num_images

    @property
    def error(self) -> float:
        """Top-1 error in [0, 1]."""
        return 1.0 - self.top1

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return self.total_loss / self.num_images

    def interval(self) -> tuple[float, float]:
        """Returns Wilson's 95 % interval of the top-1 accuracy."""
        return wilson_interval(self.num_top1, self.num_images)


def corruption_errors(
    errors: CorruptionErrors, baseline_errors: CorruptionErrors
) -> dict[str, float]:
    """Returns the CE of each corruption: Σ over severities of the error, divided by the
    baseline's sum (Hendrycks & Dietterich, ICLR 2019); 1 is as bad as the baseline.

    Raises:
        ValueError: corruptions or severities do not match, or a baseline has no errors.
    """
    if not errors:
        raise ValueError("`errors` holds no corruption, but a mean needs at least one.")
    if set(errors) != set(baseline_errors):
        raise ValueError(
            f"`errors` holds {', '.join(sorted(errors))} but `baseline_errors`"
            f" {', '.join(sorted(baseline_errors))}; a ratio needs both for each corruption."
        )
    ratios = {}
    for corruption, values in errors.items():
        baseline = baseline_errors[corruption]
        if not values or len(values) != len(baseline):
            raise ValueError(
                f"`errors` has {len(values)} severities of {corruption!r} and `baseline_errors` "
                f"{len(baseline)}, but both need the same, at least one."
            )
        if sum(baseline) <= 0.0:
            raise ValueError(
                f"`baseline_errors` of {corruption!r} come to {sum(baseline):g}, but must be > 0 to"
                " divide by."
            )
        ratios[corruption] = sum(values) / sum(baseline)
    return ratios


def mean_corruption_error(errors: CorruptionErrors, baseline_errors: CorruptionErrors) -> float:
    """Returns mCE, the mean of `corruption_errors`."""
    return statistics.fmean(corruption_errors(errors, baseline_errors).values())


def relative_mean_corruption_error(
    errors: CorruptionErrors,
    clean_error: float,
    baseline_errors: CorruptionErrors,
    baseline_clean_error: float,
) -> float:
    """Returns relative mCE: mCE of what each corruption adds to the clean error.

    Raises:
        ValueError: as in `corruption_errors`, or a corruption adds nothing to the baseline's error.
    """

    def added(own: CorruptionErrors, clean: float) -> CorruptionErrors:
        return {name: [value - clean for value in values] for name, values in own.items()}

    ratios = corruption_errors(
        added(errors, clean_error), added(baseline_errors, baseline_clean_error)
    )
    return statistics.fmean(ratios.values())
