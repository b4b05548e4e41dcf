"""The demo's page: the report of an evaluation, with the training and the attack beside
it.
"""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.reports.comparison import compare, read_measured
from efficientnet_advprop.reports.evaluation_report import Report
from efficientnet_advprop.studies import demo_report
from tests.efficientnet_advprop.evaluation.constructed_results import write_results

MODELS = {
    "Vanilla": (0.9, 0.3),
    "AdvProp": (0.9, 0.8),
    "No aux BN": (0.6, 0.8),
}  # accuracy as they are, under attack


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folders = []
    for seed, (model, (clean, attacked)) in enumerate(MODELS.items()):
        folders.append(str(tmp_path_factory.mktemp("demo")))
        accuracies = {"digits": clean, "pgd/4": 0.9, "pgd/8": attacked, "digits_c": clean}
        attack = {
            "attack": dict(
                epsilon=8.0, step_size=2.0, num_steps=10, targeted=False, random_start=1.0
            )
        }
        conditions = {"pgd/4": attack, "pgd/8": attack}
        write_results(
            folders[-1], model, accuracies, seed=seed, suites=("digits_c",), conditions=conditions
        )
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3) % 256
    history = [
        {"step": s, "epoch": s / 6, "clean_loss": 2.0 / s, "images_per_second": 50.0 * s}
        for s in (1, 2, 3)
    ]
    history.append({"step": 3, "epoch": 0.5, "eval_top1": 0.9})
    report = Report(
        "Digits",
        compare(read_measured(folders)),
        descriptions=dict.fromkeys(MODELS, "a description"),
        featured="AdvProp",
        samples={"fog": [image.astype(np.uint8)] * 5},
        facts={"evaluation attack": "PGD as ever.", "seed": "0"},
    )
    return demo_report.DemoReport(
        report,
        "digits",
        "digits_c",
        dict.fromkeys(MODELS, history),
        [demo_report.Picture(image, image + 1, "3", dict.fromkeys(MODELS, ("3", "8")))],
        "An attack.",
        dict.fromkeys(MODELS, '{"a": 1}'),
    )


class _Links(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.targets = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link")
        self.targets += [value for name, value in attributes if name in ("src", "href") and value]


def test_page(demo):
    page = re.sub(r"\s+", " ", demo_report.render_html(demo))
    assert all(target.startswith(("data:", "#")) for target in _Links(page).targets)
    score = demo.report.comparison.first.results.test_sets["digits"].score
    assert f"<b>{100 * score.top1:.1f}<small> %</small></b>" in page
    # Ninety against sixty of a hundred, eighty against thirty: beyond chance. Two of
    # the same skill: not.
    assert (
        "Digits, top-1: AdvProp is level with Vanilla" in page
        and "No aux BN is worse than Vanilla" in page
    )
    assert "Under PGD, ε = 8, top-1: AdvProp is better than Vanilla" in page
    assert "The yardstick of Digits, corrupted’s mCE (= 100) is Vanilla." in page
    assert "PGD as ever." in page and "AdvProp 100" in page  # the median of 50, 100, 150
    # corruptions: bars, severities, fifteen; attack; calibration of clean and corrupted
    # images; training
    assert page.count("<svg") == 2 + 15 + 1 + 2 + 2
    assert page.count('alt="fog, severity') == 5 and page.count("a description") == 3


@pytest.mark.parametrize("epsilon, gain", [(1, 16), (8, 16), (9, 8), (64, 2), (200, 1)])
def test_perturbations_are_shown_sixteen_times_unless_that_leaves_the_range(demo, epsilon, gain):
    picture = dataclasses.replace(
        demo.pictures[0], adversarial_image=demo.pictures[0].image + epsilon
    )
    assert demo_report.perturbation_gain([picture]) == gain


def test_opens_with_what_was_measured(demo):
    assert demo.test_sets() == ["digits", "digits_c", "pgd/8"]
    only_clean = demo.report.comparison.first.results
    names = [name for name in only_clean.test_sets if name == "digits"]
    fewer = dataclasses.replace(
        only_clean, test_sets={name: only_clean.test_sets[name] for name in names}
    )
    first = dataclasses.replace(demo.report.comparison.first, results=fewer)
    report = dataclasses.replace(demo.report, comparison=compare([first]))
    assert dataclasses.replace(demo, report=report).test_sets() == ["digits"]


def test_autoattack_stands_beside_pgd(demo):
    """Of the model that it was tried on alone."""
    first, second, *others = demo.report.comparison.measured
    attacked = second.results.test_sets["pgd/8"]
    attack = {"name": "Square", "norm": "linf", "epsilon": 8.0, "num_queries": 5000}
    conditions = dataclasses.replace(attacked.conditions, attack=attack)
    stages = [f"autoattack/linf_8/{name}" for name in ("apgd_ce", "apgd_t", "fab_t", "square")]
    more = {
        name: dataclasses.replace(attacked, score=Score(50, 40 - number, 50), conditions=conditions)
        for number, name in enumerate(stages)
    }
    held = dataclasses.replace(second.results, test_sets={**second.results.test_sets, **more})
    comparison = compare([first, dataclasses.replace(second, results=held), *others])
    shown = dataclasses.replace(
        demo, report=dataclasses.replace(demo.report, comparison=comparison)
    )
    assert shown.test_sets() == ["digits", "digits_c", "pgd/8", stages[-1]]
    page = re.sub(r"\s+", " ", demo_report.render_html(shown))
    block = page.partition("<h3>Under AutoAttack</h3>")[2].partition("</section>")[0]
    assert "all its attacks, ε = 8, on 50 of the images" in block
    assert block.count('class="bar"') == 1 and f"<span>{second.name}</span>" in block
    assert "<b>74.0<small> %</small></b>" in block  # 37 of 50
    assert "AutoAttack, L∞ ε = 8, all attacks together" in page
