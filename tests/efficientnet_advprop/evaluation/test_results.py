"""Results: what goes in comes back, and the summaries are sums by hand."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Results, attacked, corrupted, weights_digest


def make_results():
    """Two models, two corruptions at two severities, one attack; 100 images each."""
    correct = {
        "clean": (90, 95), "fog/2": (50, 60), "fog/1": (70, 80), "snow/1": (80, 80), "snow/2": (60, 70), "pgd/8": (10, 40)
    }  # fmt: skip
    scores = {name: {"a": Score(100, a, 100), "b": Score(100, b, 100)} for name, (a, b) in correct.items()}
    return Results({"seed": 0}, {"a": "1f", "b": "2e"}, scores)


def test_json_round_trip():
    results = make_results()
    assert Results.from_json(results.to_json()) == results


@pytest.mark.parametrize(
    "text", ["", "[]", '{"scores": {}}', '{"about": {}, "digests": {}, "scores": {"clean": {"a": {"num": 1}}}}']
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="no results"):
        Results.from_json(text)


def test_only_the_same_weights_and_conditions_go_on():
    results = make_results()
    assert results.is_same_measurement(Results({"seed": 0}, {"a": "1f", "b": "2e"}))
    assert not results.is_same_measurement(Results({"seed": 1}, {"a": "1f", "b": "2e"}))
    assert not results.is_same_measurement(Results({"seed": 0}, {"a": "1f", "b": "2f"}))


def test_names_and_groups():
    results = make_results()
    assert (corrupted("fog", 2), attacked(8.0), attacked(0.5)) == ("fog/2", "pgd/8", "pgd/0.5")
    assert results.corruptions() == ["fog", "snow"]
    assert results.epsilons() == [8.0]
    assert [score.num_top1 for score in results.severities("fog", "a")] == [70, 50]  # by severity, not as they came


def test_summaries():
    results = make_results()
    assert results.mean_corrupted_accuracy("a") == pytest.approx((0.7 + 0.5 + 0.8 + 0.6) / 4)
    assert results.mean_corrupted_accuracy("b", "fog") == pytest.approx(0.7)
    # fog (0.2 + 0.4)/(0.3 + 0.5) = 0.75; snow (0.2 + 0.3)/(0.2 + 0.4) = 5/6
    assert results.corruption_errors("b", "a") == pytest.approx({"fog": 0.75, "snow": 5 / 6})
    assert results.mean_corruption_error("b", "a") == pytest.approx((0.75 + 5 / 6) / 2)
    assert results.mean_corruption_error("a", "a") == pytest.approx(1.0)


def test_digest_sees_values_and_names_and_nothing_else():
    make = lambda value, name="v": [tf.Variable(np.full([2], value, np.float32), name=name)]  # noqa: E731
    assert weights_digest(make(1.0)) == weights_digest(make(1.0))
    assert len({weights_digest(make(1.0)), weights_digest(make(1.5)), weights_digest(make(1.0, "w"))}) == 3
