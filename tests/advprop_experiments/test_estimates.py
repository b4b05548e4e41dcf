import math

import numpy as np
import pytest
from scipy import stats

from advprop_experiments.estimates import (
    Estimate,
    contrast_values,
    detectable_difference,
    power,
    verdict,
)


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
