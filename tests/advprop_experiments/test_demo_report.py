"""The demo's page: accuracies by method, one sentence on them, and what the attack does."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from advprop_experiments import demo_report, demonstration, report
from advprop_experiments.estimates import Estimate
from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.evaluation.metrics import Score

METRICS = ("clean", "corrupted", "autoattack")
# Method → accuracies of the three seeds: clean, corrupted; of the first one under AutoAttack.
SCORES = {
    "vanilla": [(0.960, 0.80, 0.0), (0.970, 0.82), (0.950, 0.84)],
    "advprop": [(0.965, 0.90, 0.8), (0.968, 0.91), (0.970, 0.80)],
    "adversarial": [(0.930, 0.88, 0.9), (0.940, 0.89), (0.952, 0.90)],
}


def summarize(scores):
    study = demonstration.make_study(digits_config(), autoattack_images=40)
    by_run = {
        f"{arm}/seed_{seed}": {**dict(zip(METRICS, values)), "processor_seconds": 1.0}
        for arm, of_seeds in scores.items()
        for seed, values in zip(study.seeds, of_seeds)
    }  # the scores of the second and third seed hold no AutoAttack
    return report.summarize(study, by_run)


def digits_config():
    config = ExperimentConfig()
    config.data.source = "digits"
    return config


@pytest.fixture(scope="module")
def demo():
    arms = demonstration.NAMES
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3) % 256
    history = [
        {"step": s, "epoch": s / 6, "clean_loss": 2.0 / s, "images_per_second": 50.0 * s}
        for s in (1, 2, 3)
    ]
    return demo_report.DemoReport(
        summary=summarize(SCORES),
        names=arms,
        descriptions=demonstration.DESCRIPTIONS,
        by_corruption={"glass_blur": dict.fromkeys(arms, Estimate.of([0.5, 0.625, 0.75]))},
        autoattack={"vanilla": Score(20, 0, 9), "advprop": Score(20, 16, 20)},
        samples={"glass_blur": image.astype(np.uint8)},
        histories=dict.fromkeys(arms, history),
        pictures=[demo_report.Picture(image, image + 1, "3", dict.fromkeys(arms, ("3", "8")))],
        picture_note="An attack.",
        facts={"machine": "a <machine>"},
        configs=dict.fromkeys(arms, '{"a": 1}'),
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
    cards = page.split('<section class="card">')[1:4]
    titles = ("On clean images", "On corrupted images", "Under AutoAttack")
    for column, (card, title) in enumerate(zip(cards[:2], titles)):
        assert f"<h3>{title}</h3>" in card
        means = [np.mean([seed[column] for seed in of_seeds]) for of_seeds in SCORES.values()]
        assert re.findall(r"<b>([\d.]+)<small> %", card) == [f"{100 * mean:.1f}" for mean in means]
        assert card.count("<i style") == 9  # a mark for each seed of each method
    # t(0.975; 2) = 4.30265 times the standard error of 0.80, 0.82, 0.84 is 0.04968.
    assert "82.0 (77.0 … 87.0)" in page and "left:77.03%;width:9.94%" in cards[1]
    # Wilson's interval of 16 of 20: 0.5840 … 0.9193; of 0 of 20: 0 … 0.1611.
    assert "<h3>Under AutoAttack</h3>" in cards[2] and "<b>80.0<small> %" in cards[2]
    assert "left:58.40%;width:33.54%" in cards[2] and "left:0.00%;width:16.11%" in cards[2]
    assert "seed 91; 20 images" in cards[2] and "<i style" not in cards[2]
    assert demo_report.tell(demo.summary) in page
    assert "glass blur" in page and "62.5<small>" in page
    assert "a &lt;machine&gt;" in page and "AdvProp 100" in page  # the median of 50, 100, 150
    assert page.count("<svg") == 2
    (label,) = re.findall(r'aria-label="percentage points of ([^"]*)"', page)
    assert label.count(", clean") == label.count(", corrupted") == 3 and "autoattack" not in label


def test_the_sentence_counts(demo):
    assert demo_report.tell(demo.summary) == (
        "AdvProp is ahead of vanilla training on clean images with 2 of 3 seeds (+0.8 points on "
        "average), on corrupted images with 2 of 3 (+5.0) and under AutoAttack with 1 of 1 "
        "(+80.0); it is ahead of training on the same images without auxiliary batch norms on "
        "clean images with 3 of 3 (+2.7) and on corrupted images with 2 of 3 (−2.0)."
    )


def test_the_sentence_is_true_of_the_opposite():
    """Level is not ahead; and who is behind is ahead with no seed."""
    level = demo_report.tell(summarize({**SCORES, "advprop": SCORES["vanilla"]}))
    assert "on clean images with 0 of 3 seeds (+0.0 points on average)" in level
    worse = {**SCORES, "advprop": [(0.5, 0.4, 0.0), (0.5, 0.4), (0.5, 0.4)]}
    sentence = demo_report.tell(summarize(worse))
    assert "on clean images with 0 of 3 seeds (−46.0 points on average)" in sentence
    assert sentence.endswith(
        "images with 0 of 3 (−44.1) and on corrupted images with 0 of 3 (−49.0)."
    )


@pytest.mark.parametrize("epsilon, gain", [(1, 16), (8, 16), (9, 8), (64, 2), (200, 1)])
def test_perturbations_are_shown_sixteen_times_unless_that_leaves_the_range(demo, epsilon, gain):
    picture = dataclasses.replace(
        demo.pictures[0], adversarial_image=demo.pictures[0].image + epsilon
    )
    assert demo_report.perturbation_gain([picture]) == gain


def test_the_runs_differ_in_method_and_seed_alone():
    configs = [
        json.loads(run.config.to_json())
        for run in demonstration.make_study(digits_config(), autoattack_images=40).runs()
    ]
    of_runs = [(c["training"].pop("method"), c["training"].pop("seed")) for c in configs]
    assert len(set(of_runs)) == 9 and all(config == configs[0] for config in configs)
