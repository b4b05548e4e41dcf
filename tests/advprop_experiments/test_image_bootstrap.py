"""The two-way bootstrap against the closed form of the variance of a mean over both."""

import numpy as np

from advprop_experiments import image_bootstrap
from advprop_experiments.run_scores import pack_images, unpack_images


def test_intervals_have_the_width_of_both_sources_of_variation():
    generator = np.random.default_rng(1)
    num_seeds, num_images = 200, 300
    values = (
        generator.normal(scale=0.05, size=(num_seeds, 1))
        + generator.normal(scale=0.1, size=(1, num_images))
        + generator.normal(scale=0.1, size=(num_seeds, num_images))
    )
    low, high = image_bootstrap.bootstrap_interval(values)
    # The variance of the mean, as if rows, columns and the rest were known.
    deviation = np.sqrt(
        0.05**2 / num_seeds + 0.1**2 / num_images + 0.1**2 / (num_seeds * num_images)
    )
    np.testing.assert_allclose((high - low) / 2, 1.96 * deviation, rtol=0.1)
    np.testing.assert_allclose((high + low) / 2, values.mean(), atol=0.2 * deviation)


def test_contrasts_are_of_the_seeds_and_images_that_all_have():
    right = {name: np.arange(9) % step == 0 for name, step in (("a", 2), ("b", 3))}
    packed = {name: pack_images(values) for name, values in right.items()}
    for name, values in right.items():
        np.testing.assert_array_equal(unpack_images(packed[name]), values)
    both = image_bootstrap.image_accuracy(packed)
    np.testing.assert_array_equal(both, (right["a"].astype(float) + right["b"]) / 2)
    accuracies = {"x": {1: both, 2: both}, "y": {2: right["a"].astype(float), 3: both}}
    contrast = image_bootstrap.contrast_by_image({"x": 1.0, "y": -1.0}, accuracies)
    np.testing.assert_array_equal(contrast, [both - right["a"]])
