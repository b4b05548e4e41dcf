"""Calibration: against scikit-learn's curve, and sums by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from efficientnet_advprop.evaluation.calibration import CalibrationBins, bin_index


def constructed(num_images=5000):
    """Answers of an overconfident network: right with the probability confidence²."""
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.05, 1.0, num_images)
    return confidences, rng.random(num_images) < confidences**2


def test_reliability_points_are_scikit_learns():
    confidences, is_correct = constructed()
    accuracies, means = calibration_curve(is_correct, confidences, n_bins=15, strategy="uniform")
    points = list(CalibrationBins.count(confidences, is_correct).reliability_points())
    np.testing.assert_allclose(
        [point[:2] for point in points], np.stack([means, accuracies], -1), rtol=1e-12
    )


def test_ece_follows_from_scikit_learns_curve():
    confidences, is_correct = constructed()
    accuracies, means = calibration_curve(is_correct, confidences, n_bins=15, strategy="uniform")
    weights = np.histogram(confidences, 15, (0, 1))[0] / len(confidences)
    weights = weights[weights > 0]
    expected = np.sum(weights * np.abs(accuracies - means))
    assert CalibrationBins.count(
        confidences, is_correct
    ).expected_calibration_error == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(
        0.174, abs=0.01
    )  # ∫ (c − c²) dc / 0.95 over [0.05, 1]: the construction


def test_ece_by_hand():
    # Bins of a half: {0.3 wrong, 0.5 right}, {0.9 right, 0.7 wrong, 0.8 right}: (|1 −
    # 0.8| + |2 − 2.4|) / 5
    bins = CalibrationBins.count(
        [0.3, 0.5, 0.9, 0.7, 0.8], [False, True, True, False, True], num_bins=2
    )
    assert (bins.num_images, bins.num_correct) == ([2, 3], [1, 2])
    assert bins.expected_calibration_error == pytest.approx(0.12)


def test_bins_are_closed_above():
    assert bin_index([0.0, 1e-9, 0.2, 0.2 + 1e-9, 1.0], 5).tolist() == [0, 0, 0, 1, 4]


def test_parts_add_up():
    confidences, is_correct = constructed()
    whole = CalibrationBins.count(confidences, is_correct)
    parts = CalibrationBins.count(confidences[:99], is_correct[:99]) + CalibrationBins.count(
        confidences[99:], is_correct[99:]
    )
    assert (parts.num_images, parts.num_correct) == (whole.num_images, whole.num_correct)
    assert parts.expected_calibration_error == pytest.approx(whole.expected_calibration_error)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="`num_images` is 0"):
        _ = CalibrationBins([0], [0.0], [0]).expected_calibration_error
    with pytest.raises(ValueError, match="2 bins|and 2"):
        CalibrationBins([0], [0.0], [0, 1])
    for value in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="`confidences`"):
            CalibrationBins.count([0.5, value], [True, True])
