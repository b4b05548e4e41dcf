"""Paired comparisons: closed forms, published examples, and scipy's bootstrap."""

import math

import numpy as np
import pytest
from scipy import stats

from efficientnet_advprop.evaluation.metrics import mean_corruption_error
from efficientnet_advprop.reports.significance import (
    bootstrap_mean_interval,
    corruption_contributions,
    count_discordant,
    difference_interval,
    holm,
    mcnemar_p_value,
)


def test_counts():
    first, second = [True, True, False, False, True], [True, False, True, True, True]
    assert count_discordant(first, second) == (1, 2)


@pytest.mark.parametrize("first, second", [(0, 1), (3, 10), (10, 3), (7, 7), (59, 16)])
def test_mcnemar_is_the_binomial_sum(first, second):
    num = first + second
    tail = sum(math.comb(num, k) for k in range(min(first, second) + 1)) / 2**num
    assert mcnemar_p_value(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_mcnemar_agresti():
    # A. Agresti, Categorical Data Analysis, table 10.1 (approval of the prime
    # minister): 150 and 86 of 1,600; z² = 17.36.
    p_value = mcnemar_p_value(150, 86)
    assert p_value == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.35)  # the exact one is careful
    assert p_value < 1e-4 and mcnemar_p_value(0, 0) == 1.0


def test_interval_of_a_difference_is_its_closed_form():
    difference = (52 - 31) / 400
    deviation = math.sqrt((83 / 400 - difference**2) / 400)
    expected = (difference - 1.96 * deviation, difference + 1.96 * deviation)
    assert difference_interval(400, 31, 52) == pytest.approx(expected, abs=0.006)
    values = np.repeat([-1.0, 1.0, 0.0], [31, 52, 317])
    assert bootstrap_mean_interval(values) == difference_interval(400, 31, 52)
    assert bootstrap_mean_interval(values) != bootstrap_mean_interval(values, seed=1)
    assert bootstrap_mean_interval([0.25]) == (0.25, 0.25)


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    from efficientnet_advprop.reports import significance

    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean_interval(values)
    monkeypatch.setattr(significance, "_CHUNK_ELEMENTS", 7 * 50)
    assert bootstrap_mean_interval(values) == pytest.approx(
        whole, abs=0.08
    )  # other draws, the same interval
    assert bootstrap_mean_interval(np.full(9, 0.25)) == pytest.approx((0.25, 0.25))


def test_contributions_average_to_mce():
    rng = np.random.default_rng(0)
    wrong = {
        name: [rng.random(200) < error for error in (0.2, 0.5)] for name in ("fog", "snow", "frost")
    }
    baseline = {"fog": (0.8, 0.9), "snow": (0.7, 0.7), "frost": (0.5, 0.6)}
    errors = {name: [answers.mean() for answers in sets] for name, sets in wrong.items()}
    contributions = corruption_contributions(wrong, baseline)
    assert contributions.shape == (200,)
    assert contributions.mean() == pytest.approx(mean_corruption_error(errors, baseline), rel=1e-12)


def test_holm():
    # S. Holm 1979 as in R's p.adjust: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    # gives 0.03 0.06 0.06 0.02.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: count_discordant([True], [True, False]), "second_is_correct"),
        (lambda: count_discordant([], []), "first_is_correct"),
        (lambda: bootstrap_mean_interval([0.5, 1.0], 95), "confidence"),
        (lambda: bootstrap_mean_interval([]), "values"),
        (lambda: corruption_contributions({"fog": [[True]]}, {"snow": (0.5,)}), "is_wrong"),
        (
            lambda: corruption_contributions({"fog": [[True], [True, False]]}, {"fog": (0.5, 0.5)}),
            "is_wrong",
        ),
    ],
)
def test_what_is_wrong_is_named(call, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()
