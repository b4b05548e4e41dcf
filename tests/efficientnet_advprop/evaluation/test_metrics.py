"""Metrics against figures from elsewhere: published examples, closed forms, and sums by
hand.
"""

import numpy as np
import pytest

from efficientnet_advprop.evaluation.metrics import (
    Score,
    corruption_errors,
    mean_corruption_error,
    relative_mean_corruption_error,
    wilson_interval,
)


@pytest.mark.parametrize(
    "num_correct, num_images", [(0, 10), (10, 10), (1, 3), (953, 1000), (27, 50), (38000, 50000)]
)
@pytest.mark.parametrize("confidence, z", [(0.9, 1.644853627), (0.95, 1.959963985)])
def test_wilson_interval_is_its_closed_form(num_correct, num_images, confidence, z):
    """E. B. Wilson, JASA 22 (1927): the roots of (p̂ − p)² = z² p (1 − p) / n in p."""
    share = num_correct / num_images
    roots = np.roots([1 + z**2 / num_images, -2 * share - z**2 / num_images, share**2])
    assert wilson_interval(num_correct, num_images, confidence) == pytest.approx(
        sorted(roots.real), abs=1e-7
    )


def test_wilson_interval_stays_within_zero_and_one():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((1, 0), "num_images"),
        ((-1, 5), "num_correct"),
        ((6, 5), "num_correct"),
        ((1, 5, 95), "confidence"),
    ],
)
def test_wilson_interval_names_what_is_wrong(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        wilson_interval(*arguments)


def test_score():
    score = Score(num_images=200, num_top1=150, num_top5=190)
    assert (score.top1, score.top5, score.error) == pytest.approx((0.75, 0.95, 0.25))
    assert score.interval() == wilson_interval(150, 200)


def test_scores_of_parts_add_up():
    assert Score(100, 60, 90) + Score(28, 28, 28) == Score(128, 88, 118)


# torchvision's ResNet-50 on two of ImageNet-C's corruptions would not give round
# numbers; these do.
ERRORS = {"fog": [0.1, 0.2, 0.3], "snow": [0.4, 0.4, 0.4]}
BASELINE = {"fog": [0.2, 0.4, 0.6], "snow": [0.2, 0.3, 0.3]}


def test_corruption_errors_sum_over_severities_before_dividing():
    # fog 0.6/1.2; snow 1.2/0.8. (The mean of ratios per severity would be 1.556 for
    # snow.)
    assert corruption_errors(ERRORS, BASELINE) == pytest.approx({"fog": 0.5, "snow": 1.5})
    assert mean_corruption_error(ERRORS, BASELINE) == pytest.approx(1.0)


def test_baseline_itself_is_one():
    assert mean_corruption_error(BASELINE, BASELINE) == pytest.approx(1.0)
    assert relative_mean_corruption_error(BASELINE, 0.1, BASELINE, 0.1) == pytest.approx(1.0)


def test_relative_mean_corruption_error():
    # fog (0.6 − 0.15)/(1.2 − 0.3) = 0.5; snow (1.2 − 0.15)/(0.8 − 0.3) = 2.1
    assert relative_mean_corruption_error(ERRORS, 0.05, BASELINE, 0.1) == pytest.approx(1.3)


def test_alexnet_against_itself_by_published_constants():
    # Hendrycks & Dietterich's AlexNet figures for the blurs; a model with half the
    # error has CE 0.5 everywhere.
    alexnet = {"defocus_blur": [0.819880], "glass_blur": [0.826268], "motion_blur": [0.785948]}
    half = {name: [values[0] / 2] for name, values in alexnet.items()}
    assert mean_corruption_error(half, alexnet) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "errors, baseline, message",
    [
        ({}, {}, "no corruption"),
        ({"fog": [0.1]}, {"snow": [0.1]}, "fog"),
        ({"fog": [0.1]}, {"fog": [0.1, 0.2]}, "1 severities of 'fog'"),
        ({"fog": [0.1]}, {"fog": [0.0]}, "must be > 0"),
    ],
)
def test_corruption_errors_names_what_does_not_fit(errors, baseline, message):
    with pytest.raises(ValueError, match=message):
        corruption_errors(errors, baseline)
