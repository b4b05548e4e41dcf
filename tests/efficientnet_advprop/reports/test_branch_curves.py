"""Accuracy over the share of the auxiliary branch, from results alone."""

import numpy as np

from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Conditions, Results, TestSetResult
from efficientnet_advprop.reports.branch_curves import branch_curves
from efficientnet_advprop.reports.comparison import Measured, compare
from efficientnet_advprop.reports.evaluation_report import make_page
from efficientnet_advprop.reports.pages import render_html, render_markdown

ATTACK = {"name": "Square", "norm": "linf", "epsilon": 4.0, "num_queries": 5000}


def measured(branch, clean, robust, model="b3", more=()):
    """Clean accuracy, that after two attacks of a chain, and other test sets, of 100
    images.
    """
    bins = CalibrationBins.count(np.array([0.5]), np.array([True]))
    numbers = {
        "imagenet": clean,
        "autoattack/linf_4/apgd_ce": robust + 5,
        "autoattack/linf_4/square": robust,
        **dict(more),
    }
    test_sets = {
        name: TestSetResult(
            Score(100, number, 100),
            bins,
            Conditions("d", 224, "released", branch, attack=None if name[0] == "i" else ATTACK),
        )
        for name, number in numbers.items()
    }
    return Measured(f"{model} {branch}", Results(model, "", {"branch": branch}, {}, test_sets))


RESULTS = [
    measured("main:0.4,aux:0.6", 70, 30),
    measured("main", 80, 10, more=[("imagenet_a", 3)]),
    measured("main:0,aux:1", 60, 35),
    measured("aux", 65, 40),
    measured("aux:0.5,main:0.5", 66, 33),
    measured("main:0.5,aux:0.5", 1, 1, model="another"),
]


def test_points_of_the_same_statistics_form_a_curve():
    first, second = branch_curves(RESULTS)
    assert (first.model, first.auxiliary, first.statistics) == ("b3", "aux", "main")
    assert first.shares == [0.0, 0.6, 1.0]
    found = {name: [score.num_top1 for score in scores] for name, scores in first.scores.items()}
    assert found == {"imagenet": [80, 70, 60], "autoattack/linf_4/square": [10, 30, 35]}
    assert (second.statistics, second.shares) == ("aux", [0.5, 1.0])
    assert [score.num_top1 for score in second.scores["imagenet"]] == [66, 65]


def test_branches_alone_are_no_curve():
    assert branch_curves([RESULTS[1], RESULTS[3]]) == []


def test_they_are_shown():
    report = make_page("title", compare(RESULTS[:3]))
    text = render_markdown(report)
    assert "\nb3: main mixed with aux, moving statistics of main\n" in text
    assert "| 0.6 | 70.0 (60.4 … 78.1) | 30.0 (21.9 … 39.6) |" in text
    page = render_html(report)
    assert "Between the batch norms" in page and "share of aux in gamma and beta" in page
