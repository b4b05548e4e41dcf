import math

import numpy as np
import pytest
from scipy import stats

from advprop_experiments.estimates import (
    Estimate,
    bootstrap_interval,
    contrast_by_image,
    contrast_values,
    detectable_difference,
    image_accuracy,
    power,
    verdict,
)
from advprop_experiments.plan import pack_images, unpack_images


def test_interval_and_paired_test_are_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.9, 0.02, 6), rng.normal(0.92, 0.02, 6)
    estimate = Estimate.of(list(second - first))
    wanted = stats.ttest_rel(second, first)
    assert estimate.p_value == pytest.approx(wanted.pvalue, rel=1e-9)
    np.testing.assert_allclose(estimate.interval, wanted.confidence_interval(0.95), rtol=1e-9)


def test_interval_by_hand():
    # Mean 2, standard deviation 1, t(0.975; 2) = 4.302653: 2 ± 4.302653/√3.
    estimate = Estimate.of([1.0, 2.0, 3.0])
    np.testing.assert_allclose(estimate.interval, (2 - 2.484138, 2 + 2.484138), atol=1e-6)


def test_what_has_no_spread():
    assert Estimate.of([0.5, 0.5]).interval == (0.5, 0.5) and Estimate.of([0.5, 0.5]).p_value == 0.0
    assert Estimate.of([0.0, 0.0]).p_value == 1.0
    assert math.isnan(Estimate.of([0.5]).p_value) and math.isnan(Estimate.of([0.5]).interval[0])
    with pytest.raises(ValueError, match="`values` is empty"):
        Estimate.of([])


def test_contrasts_are_paired_by_seed():
    accuracies = {"a": {1: 0.9, 2: 0.8, 3: 0.7}, "b": {2: 0.5, 1: 0.6}}
    found = contrast_values({"a": 1.0, "b": -1.0}, accuracies)
    assert list(found) == [1, 2]
    np.testing.assert_allclose(list(found.values()), [0.3, 0.3])
    assert contrast_values({"a": 1.0, "c": -1.0}, accuracies) == {}


def test_power_is_that_of_the_textbooks():
    # Cohen's table, two-sided 5 %: an effect of half a deviation needs 34 pairs for a
    # power of 0.8, one of a whole deviation 10.
    assert power(0.5, 1.0, 33, 0.05) < 0.8 < power(0.5, 1.0, 34, 0.05)
    assert power(1.0, 1.0, 9, 0.05) < 0.8 < power(1.0, 1.0, 10, 0.05)
    assert power(0.0, 1.0, 10, 0.05) == pytest.approx(0.05)
    assert detectable_difference(3.0, 34, 0.05) == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(
    "values, expected, p_value, said",
    [
        ([0.02, 0.03, 0.025], 1, 0.01, "shown"),
        ([0.02, 0.03, 0.025], 1, 0.2, "suggested"),
        ([0.02, 0.03, 0.025], -1, 0.01, "opposite"),
        ([0.02, 0.03, 0.025], 0, math.nan, "different"),
        ([0.02, -0.03, 0.025], 1, 0.01, "not shown"),
        ([0.02, -0.03, 0.025], 0, math.nan, "no difference shown"),
        ([0.02], 1, math.nan, "too few seeds"),
    ],
)
def test_verdicts(values, expected, p_value, said):
    assert verdict(Estimate.of(values), expected, p_value) == said


def test_intervals_have_the_width_of_both_sources_of_variation():
    generator = np.random.default_rng(1)
    num_seeds, num_images = 200, 300
    values = (
        generator.normal(scale=0.05, size=(num_seeds, 1))
        + generator.normal(scale=0.1, size=(1, num_images))
        + generator.normal(scale=0.1, size=(num_seeds, num_images))
    )
    low, high = bootstrap_interval(values)
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
    both = image_accuracy(packed)
    np.testing.assert_array_equal(both, (right["a"].astype(float) + right["b"]) / 2)
    accuracies = {"x": {1: both, 2: both}, "y": {2: right["a"].astype(float), 3: both}}
    contrast = contrast_by_image({"x": 1.0, "y": -1.0}, accuracies)
    np.testing.assert_array_equal(contrast, [both - right["a"]])
