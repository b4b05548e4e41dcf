"""Whether a network's confidence, the probability of its top-1 class, matches its accuracy
(C. Guo et al., ICML 2017, section 2, equations 2, 3 and 5).

    CalibrationBins.count(confidences, is_correct).expected_calibration_error    # 0 is perfect
"""

import dataclasses
from typing import Iterator, Sequence

import numpy as np

NUM_BINS = 15  # as in the paper, and usual since


def bin_index(confidences: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Returns the bin of each confidence in [0, 1], int64: bin m holds (m / bins, (m + 1) / bins],
    the first one also 0.
    """
    bins = np.ceil(np.asarray(confidences, np.float64) * num_bins).astype(np.int64) - 1
    return np.clip(bins, 0, num_bins - 1)


@dataclasses.dataclass(frozen=True)
class CalibrationBins:
    """Sums over the images of each bin; bins of disjoint sets of images add up."""

    num_images: Sequence[int]
    total_confidence: Sequence[float]
    num_correct: Sequence[int]

    def __post_init__(self):
        if not len(self.num_images) == len(self.total_confidence) == len(self.num_correct) > 0:
            raise ValueError(
                f"`num_images`, `total_confidence` and `num_correct` have {len(self.num_images)},"
                f" {len(self.total_confidence)} and {len(self.num_correct)} bins, but must have the"
                " same number, at least one."
            )

    @classmethod
    def count(
        cls, confidences: np.ndarray, is_correct: np.ndarray, num_bins: int = NUM_BINS
    ) -> "CalibrationBins":
        """Counts images by their confidences [images]; raises a ValueError outside [0, 1]."""
        confidences = np.asarray(confidences, np.float64)
        if confidences.size and not (confidences.min() >= 0.0 and confidences.max() <= 1.0):
            raise ValueError(
                f"`confidences` span {confidences.min()} … {confidences.max()}, but must lie in"
                " [0, 1]."
            )
        index = bin_index(confidences, num_bins)
        sums = [
            np.bincount(index, weights, num_bins)
            for weights in (None, confidences, np.asarray(is_correct, np.float64))
        ]
        return cls(sums[0].tolist(), sums[1].tolist(), sums[2].astype(np.int64).tolist())

    def __add__(self, other: "CalibrationBins") -> "CalibrationBins":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return CalibrationBins(
            *([left + right for left, right in zip(a, b, strict=True)] for a, b in pairs)
        )

    @property
    def expected_calibration_error(self) -> float:
        """ECE in [0, 1]: the mean distance of accuracy from confidence, weighted by images."""
        if not sum(self.num_images):
            raise ValueError(
                "`num_images` is 0 in every bin, but a calibration error needs at least one image."
            )
        distances = (
            abs(correct - total) for correct, total in zip(self.num_correct, self.total_confidence)
        )
        return float(sum(distances) / sum(self.num_images))

    def reliability_points(self) -> Iterator[tuple[float, float, int]]:
        """Yields (mean confidence, accuracy, images) of each bin that has any, the lowest first."""
        bins = zip(self.num_images, self.total_confidence, self.num_correct)
        for num_images, total, correct in bins:
            if num_images:
                yield total / num_images, correct / num_images, num_images
