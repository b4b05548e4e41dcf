"""The demo's page: accuracies by method, one sentence on them, and what the attack does."""

import html.parser
import json

import numpy as np
import pytest

from advprop_experiments import demonstration, report
from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.reports.pages import Page, Section, render_html

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


class _Links(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.targets = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link")
        self.targets += [value for name, value in attributes if name in ("src", "href") and value]


def test_accuracies_are_the_scores():
    """The charts' rows: means over the seeds, and the intervals as the tables have them."""
    summary = summarize(SCORES)
    autoattack = {"vanilla": Score(20, 0, 9), "advprop": Score(20, 16, 20)}
    cards = demonstration.accuracy_cards(summary, autoattack)
    titles = ("On clean images", "On corrupted images", "Under AutoAttack")
    assert [card.title for card in cards] == list(titles)
    for column, card in enumerate(cards[:2]):
        for arm, of_seeds in SCORES.items():
            mean = np.mean([seed[column] for seed in of_seeds])
            assert f"{demonstration.NAMES[arm]} {100 * mean:.1f}" in card.svg
    # t(0.975; 2) = 4.30265 times the standard error of 0.80, 0.82, 0.84 is 0.04968.
    assert report.arms_table(summary).rows[0][2].text == "82.0 (77.0 … 87.0)"
    assert "AdvProp 80.0" in cards[2].svg and "seed 91; 20 images" in cards[2].note


def test_a_picture_and_the_training():
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3) % 256
    arms = demonstration.NAMES
    card = demonstration.picture_card(image, image + 1, 16, 3, dict.fromkeys(arms, (3, 8)))
    assert [caption for _, caption in card.images] == [
        "clean: 3",
        "perturbation × 16",
        "adversarial",
    ]
    assert all(uri.startswith("data:image/png") for uri, _ in card.images)
    assert card.lines[1].text == "AdvProp: 3 → 8 ✗"
    history = [
        {"step": s, "epoch": s / 6, "clean_loss": 2.0 / s, "images_per_second": 50.0 * s}
        for s in (1, 2, 3)
    ]
    (card,) = demonstration.training_section(dict.fromkeys(arms, history), 91).cards
    assert card.lines[1].text == "AdvProp, 100 images per second"  # the median of 50, 100, 150
    page = render_html(Page("T", [Section("S", cards=[card])]))
    assert all(target.startswith(("data:", "#")) for target in _Links(page).targets)


def test_the_sentence_counts():
    assert demonstration.tell(summarize(SCORES)) == (
        "AdvProp is ahead of vanilla training on clean images with 2 of 3 seeds (+0.8 points on "
        "average), on corrupted images with 2 of 3 (+5.0) and under AutoAttack with 1 of 1 "
        "(+80.0); it is ahead of training on the same images without auxiliary batch norms on "
        "clean images with 3 of 3 (+2.7) and on corrupted images with 2 of 3 (−2.0)."
    )


def test_the_sentence_is_true_of_the_opposite():
    """Level is not ahead; and who is behind is ahead with no seed."""
    level = demonstration.tell(summarize({**SCORES, "advprop": SCORES["vanilla"]}))
    assert "on clean images with 0 of 3 seeds (+0.0 points on average)" in level
    worse = {**SCORES, "advprop": [(0.5, 0.4, 0.0), (0.5, 0.4), (0.5, 0.4)]}
    sentence = demonstration.tell(summarize(worse))
    assert "on clean images with 0 of 3 seeds (−46.0 points on average)" in sentence
    assert sentence.endswith(
        "images with 0 of 3 (−44.1) and on corrupted images with 0 of 3 (−49.0)."
    )


@pytest.mark.parametrize("epsilon, gain", [(1, 16), (8, 16), (9, 8), (64, 2), (200, 1)])
def test_perturbations_are_shown_sixteen_times_unless_that_leaves_the_range(epsilon, gain):
    assert demonstration.perturbation_gain(np.array([-0.5, epsilon])) == gain


def test_the_runs_differ_in_method_and_seed_alone():
    configs = [
        json.loads(run.config.to_json())
        for run in demonstration.make_study(digits_config(), autoattack_images=40).runs()
    ]
    of_runs = [(c["training"].pop("method"), c["training"].pop("seed")) for c in configs]
    assert len(set(of_runs)) == 9 and all(config == configs[0] for config in configs)
