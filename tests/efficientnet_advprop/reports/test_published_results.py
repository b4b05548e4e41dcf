"""Published figures: against the papers' tables and sums over them."""

import statistics

import pytest

from efficientnet_advprop.data.corruptions import CORRUPTIONS
from efficientnet_advprop.evaluation.metrics import (
    mean_corruption_error,
    relative_mean_corruption_error,
)
from efficientnet_advprop.reports import published_results
from efficientnet_advprop.reports.published_results import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    find_published,
)


def test_alexnet_is_one_hundred():
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS)
    assert mean_corruption_error(ALEXNET_ERRORS, ALEXNET_ERRORS) == pytest.approx(1.0)
    assert relative_mean_corruption_error(
        ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR
    ) == pytest.approx(1.0)
    # Hendrycks & Dietterich, table 1, row AlexNet, as printed: whole per cent.
    printed = (89, 89, 92, 82, 83, 79, 80, 87, 83, 82, 56, 85, 65, 72, 61)
    assert [round(100 * errors[0]) for errors in ALEXNET_ERRORS.values()] == list(printed)
    assert statistics.fmean(errors[0] for errors in ALEXNET_ERRORS.values()) == pytest.approx(
        0.789, abs=5e-4
    )


def test_torchvisions_resnet50():
    # CE of ResNet-50 by corruption, whole per cent, as recalled; their mean must be the
    # published mCE within rounding.
    printed = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
    errors = {
        name: [ce / 100 * alexnet[0]] * 5
        for ce, (name, alexnet) in zip(printed, ALEXNET_ERRORS.items())
    }
    assert mean_corruption_error(errors, ALEXNET_ERRORS) == pytest.approx(0.767, abs=2e-3)


def test_figures():
    assert find_published("b3-advprop", "imagenet_c").value == 57.8
    assert find_published("b7-autoaugment", "imagenet_a").value == 37.7
    assert find_published("b0-advprop", "stylized").value == 14.6
    assert find_published("b8-advprop", "imagenet").value == 85.5
    assert (
        find_published("b0-advprop", "imagenet").evidence,
        find_published("b0-advprop", "imagenet_c").evidence,
    ) == (
        "read",
        "recalled",
    )
    assert "again" in find_published("b0-autoaugment", "stylized").note
    for checkpoint, suite in (
        ("b8-advprop", "imagenet_c"),
        ("b0-noisystudent", "imagenet_a"),
        (None, "imagenet"),
    ):
        assert find_published(checkpoint, suite) is None
    assert all(len(row) == 8 for rows in published_results._PAPER_FIGURES.values() for row in rows)


def test_advprop_is_better_everywhere():
    # The paper's claim; a slip of a finger in the table would most likely break it.
    for suite, (vanilla, advprop) in published_results._PAPER_FIGURES.items():
        sign = -1 if suite == "imagenet_c" else 1
        assert all(sign * (after - before) > 0 for before, after in zip(vanilla, advprop)), suite
