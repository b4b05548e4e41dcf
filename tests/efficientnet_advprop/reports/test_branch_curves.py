"""Accuracy over the share of the auxiliary branch, from results alone."""

from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.reports.comparison import Measured, compare
from efficientnet_advprop.reports.evaluation_report import branch_curves, make_page
from efficientnet_advprop.reports.pages import render_html, render_markdown
from tests.efficientnet_advprop.evaluation.constructed_results import scored

ATTACK = {"name": "Square", "norm": "linf", "epsilon": 4.0, "num_queries": 5000}


def measured(branch, clean, robust, model="b3", more=()):
    """Clean accuracy, that after two attacks of a chain, and other test sets, of 100
    images.
    """
    numbers = {
        "imagenet": clean,
        "autoattack/linf_4/apgd_ce": robust + 5,
        "autoattack/linf_4/square": robust,
        **dict(more),
    }
    test_sets = {
        name: scored(number, 100, branch=branch, attack=None if name[0] == "i" else ATTACK)
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
    found = {
        key: {
            share: {name: score.num_top1 for name, score in own.items()}
            for share, own in by_share.items()
        }
        for key, by_share in branch_curves(RESULTS).items()
    }
    names = ("imagenet", "autoattack/linf_4/square")
    points = {
        ("b3", "aux", "main"): {0.0: (80, 10), 0.6: (70, 30), 1.0: (60, 35)},
        ("b3", "aux", "aux"): {0.5: (66, 33), 1.0: (65, 40)},
    }
    assert found == {
        key: {share: dict(zip(names, numbers)) for share, numbers in own.items()}
        for key, own in points.items()
    }


def test_branches_alone_are_no_curve():
    assert branch_curves([RESULTS[1], RESULTS[3]]) == {}


def test_they_are_shown():
    report = make_page("title", compare(RESULTS[:3]))
    text = render_markdown(report)
    assert "\nb3: main mixed with aux, moving statistics of main\n" in text
    assert "| 0.6 | 70.0 (60.4 … 78.1) | 30.0 (21.9 … 39.6) |" in text
    page = render_html(report)
    assert "Between the batch norms" in page and "share of aux in gamma and beta" in page
