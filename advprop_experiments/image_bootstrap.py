"""Intervals over training sets *and* test images, by the two-way bootstrap.

    interval = bootstrap_interval(differences)      # [seeds, images] → (low, high)

Student's interval over seeds speaks of other trainings, on the same test images. Here
seeds and images are drawn anew, each with replacement, as A. B. Owen does it ("The
pigeonhole bootstrap", Annals of Applied Statistics 2007), who shows that the result is,
if anything, too wide.
"""

from typing import Mapping, Sequence

import numpy as np

from advprop_experiments.estimates import CONFIDENCE, common_seeds
from advprop_experiments.run_scores import unpack_images

_NUM_DRAWS = 2000
_SEED = 0


def image_accuracy(packed: Mapping[str, Mapping]) -> np.ndarray:
    """Returns float64 [images]: the mean over test sets of the same images of whether each
    is classified correctly.

    Args:
        packed: test set → `run_scores.pack_images`.
    """
    return np.mean([unpack_images(one) for one in packed.values()], axis=0)


def contrast_by_image(
    weights: Mapping[str, float], accuracies: Mapping[str, Mapping[int, np.ndarray]]
) -> np.ndarray:
    """Returns float64 [seeds, images]: the weighted sum over the arms, for the seeds that all
    of them have.

    Args:
        weights: arm → weight.
        accuracies: arm → seed → float64 [images].
    """
    return np.array(
        [
            sum(weight * accuracies[arm][seed] for arm, weight in weights.items())
            for seed in common_seeds(weights, accuracies)
        ]
    )


def bootstrap_interval(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of [seeds, images]; (nan, nan) with
    fewer than two seeds.
    """
    values = np.asarray(values)
    if len(values) < 2:
        return (float("nan"), float("nan"))
    num_seeds, num_images = values.shape
    generator = np.random.default_rng(_SEED)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), _NUM_DRAWS)
    means = []
    for drawn in seeds:  # one after the other: [draws, images] would not fit
        images = generator.multinomial(num_images, np.full(num_images, 1 / num_images))
        means.append((drawn @ values) @ images / (num_seeds * num_images))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
