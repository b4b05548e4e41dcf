"""The report says what the results hold, needs no other file, and claims no difference that the intervals do not allow."""

import base64
import dataclasses
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.data.corruptions import CORRUPTIONS
from efficientnet_advprop.evaluation import figures, reports
from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Conditions, Results, TestSetResult

BY_SET = {  # correct of 1000
    "digits": (970, 976, 944), "pgd/4": (800, 950, 955), "pgd/8": (651, 912, 915),
    **{f"digits_c/{name}/{i}": (960 - 60 * i, 962 - 10 * i, 945 - 10 * i) for name in CORRUPTIONS for i in range(1, 6)},
}  # fmt: skip
MODELS = ("vanilla", "advprop", "adversarial")


def make_results(model, correct):
    nothing = CalibrationBins.count([], [])
    test_sets = {
        name: TestSetResult(Score(1000, num, 1000), nothing, Conditions("ab", 32, "none")) for name, num in zip(BY_SET, correct)
    }
    return Results(model, "ab", test_sets=test_sets)


@pytest.fixture(scope="module")
def report():
    results = {model: make_results(model, [correct[i] for correct in BY_SET.values()]) for i, model in enumerate(MODELS)}
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3) % 256
    history = [{"step": s, "epoch": s / 6, "clean_loss": 2.0 / s, "images_per_second": 50.0 * s} for s in (1, 2, 3)]
    history.append({"step": 3, "epoch": 0.5, "eval_top1": 0.9})
    return reports.Report(
        title="A title <&>", introduction="What it is.", results=results,
        clean="digits", corrupted="digits_c",
        names=dict(zip(MODELS, ("Vanilla", "AdvProp", "No aux BN"))), descriptions=dict.fromkeys(MODELS, "a description"),
        baseline="vanilla", featured="advprop", histories=dict.fromkeys(MODELS, history),
        samples={"fog": [image.astype(np.uint8)] * 5},
        pictures=[reports.Picture(image, image + 1, "3", {m: ("3", "8") for m in MODELS})], picture_note="An attack.",
        facts={"evaluation attack": "PGD.", "seed": "0"}, configs=dict.fromkeys(MODELS, '{"a": 1}'),
    )  # fmt: skip


def test_comparisons_follow_the_intervals():
    # Wilson, n = 1000: 970 → 95.7–97.9, 976 → 96.5–98.4, 944 → 92.8–95.7 (scipy's to one place)
    assert reports.compare(Score(1000, 976, 1000), Score(1000, 970, 1000)) == "level with"
    assert reports.compare(Score(1000, 976, 1000), Score(1000, 944, 1000)) == "above"
    assert reports.compare(Score(1000, 944, 1000), Score(1000, 976, 1000)) == "below"


def test_console_table(report):
    lines = {line.split("  ")[0].strip(): line.split() for line in reports.format_table(report).splitlines() if line}
    assert "97.0 (95.7–97.9)  97.6 (96.5–98.4)  94.4 (92.8–95.7)" in " ".join(lines["clean"]).replace(") ", ")  ")
    assert lines["corrupted, mean"][-3:] == ["78.0", "93.2", "91.5"]
    # errors over severities, the same for both corruptions: vanilla .10 … .34 = 1.10, AdvProp .048 … .088 = .34, third .425
    assert lines["mCE (Vanilla = 100)"][-3:] == ["100.0", "30.9", "38.6"]


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.targets += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset") and value]


@pytest.fixture(scope="module")
def page(report):
    return reports.render_html(report)


def without_corruptions(report):
    """A page of few charts, which take their time."""
    kept = {
        model: dataclasses.replace(
            results, test_sets={name: found for name, found in results.test_sets.items() if "/" not in name}
        )
        for model, results in report.results.items()
    }
    return dataclasses.replace(report, results=kept)


def test_page_needs_nothing_beside_itself(page):
    parser = _Links()
    parser.feed(page)
    assert parser.targets and all(target.startswith(("data:", "#")) for target in parser.targets)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert "@import" not in page and "url(http" not in page


def test_page_says_what_was_measured(page):
    page = re.sub(r"\s+", " ", page)
    assert "A title &lt;&amp;&gt;" in page
    assert "AdvProp is right in 97.6 %, level with Vanilla (97.0 %) and above No aux BN (94.4 %)" in page
    assert "it keeps 91.2 %, above Vanilla (65.1 %) and level with No aux BN (91.5 %)" in page
    assert "fewer errors than Vanilla on 75 of the 75 corrupted sets and more on 0" in page
    assert "<td>30.9</td>" in page and "<td>100</td>" in page  # speed: the median of 50, 100, 150
    assert page.count("<svg") == 15 + 1 + 2  # corruptions, attack, training


@pytest.mark.parametrize("epsilon, gain", [(1, 16), (8, 16), (9, 8), (64, 2), (200, 1)])
def test_perturbations_are_shown_sixteen_times_unless_that_leaves_the_range(report, epsilon, gain):
    picture = dataclasses.replace(report.pictures[0], adversarial_image=report.pictures[0].image + epsilon)
    page = reports.render_html(dataclasses.replace(without_corruptions(report), pictures=[picture]))
    assert f"perturbation × {gain}<" in page


def test_page_without_attacks_or_corruptions(report):
    page = reports.render_html(without_corruptions(report))
    assert "level with Vanilla" in page and "mean corruption error is" not in page


def test_charts_are_the_same_bytes_each_time_and_well_formed():
    curves = [figures.Curve("A & B", "#123456", [0.5, 0.75], [(0.4, 0.6), (0.7, 0.8)])]
    first, second = (figures.line_chart([1, 2], curves, y_label="top-1") for _ in range(2))
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")


def test_png_comes_back():
    image = np.random.default_rng(0).integers(0, 256, [5, 4, 3], np.uint8)
    uri = figures.png_uri(image)
    decoded = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(decoded), image)
