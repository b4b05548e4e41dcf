"""Renders the page of the demo: the evaluation, the training curves and attacked
images.

Usage:

    page = render_html(DemoReport(report, "digits", "digits_c", histories, pictures, note, configs))

`reports` shows all measured results; this module adds the beginning and the end of the
page.
"""

import dataclasses
import statistics
from typing import Mapping, Sequence

import numpy as np

from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.test_set_name import TestSetName, is_passed
from efficientnet_advprop.reports import charts, evaluation_report
from efficientnet_advprop.reports.evaluation_report import Report

_MAX_PERTURBATION_GAIN = 16


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and its adversarial version.

    Args:
        image, adversarial_image: float [height, width, 3], pixels in [0, 255].
        label: the true class.
        answers: model → (prediction for the clean image, for the adversarial image).
    """

    image: np.ndarray
    adversarial_image: np.ndarray
    label: str
    answers: Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """The contents of the page.

    Args:
        report: the results of the evaluation.
        clean, corrupted: the names of the clean test set and of the corrupted suite.
        histories: model → the reports of its training run, as in `metrics.jsonl`.
        pictures: images with the training attack.
        picture_note: a description of that attack.
        configs: model → its config as JSON.
    """

    report: Report
    clean: str
    corrupted: str
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    pictures: Sequence[Picture]
    picture_note: str
    configs: Mapping[str, str]

    def test_sets(self) -> list[str]:
        """The test sets at the top of the page: clean, corrupted, under the strongest
        PGD, and under all attacks of AutoAttack.
        """
        results = self.report.comparison.first.results
        found = [self.clean] + [
            suite for suite in results.corrupted_suites() if suite == self.corrupted
        ]
        found += [TestSetName.attacked(epsilon) for epsilon in sorted(results.epsilons())[-1:]]
        names = dict.fromkeys(
            name
            for measured in self.report.comparison.measured
            for name in measured.results.test_sets
        )
        return found + [name for name in names if name.chain and not is_passed(name, names)]


def images_per_second(history: Sequence[Mapping[str, float]]) -> float:
    """The median speed of a training run, from its reports; nan if they contain no
    speed.
    """
    speeds = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    return statistics.median(speeds) if speeds else float("nan")


def render_html(demo: DemoReport) -> str:
    """The page, as one HTML file without links to other files."""
    gain = perturbation_gain(demo.pictures)
    findings = [
        evaluation_report.describe_tests(demo.report.comparison, suite)
        for suite in demo.test_sets()
    ]
    return evaluation_report.render_html(
        demo.report,
        "demo.html.jinja",
        "efficientnet_advprop.studies",
        demo=demo,
        headlines=[_headline(demo, name) for name in demo.test_sets()],
        findings=list(filter(None, findings)),
        speeds={model: images_per_second(history) for model, history in demo.histories.items()},
        training_charts=_training_charts(demo),
        pictures=[_picture(picture, gain) for picture in demo.pictures],
        gain=gain,
    )


def _headline(demo: DemoReport, name: str) -> dict:
    """Bars of the accuracies of the models that measured it, on a test set or on
    average over a corrupted suite.
    """
    of = demo.report.comparison.measured
    if name != demo.corrupted:
        of = [measured for measured in of if name in measured.results.test_sets]
    if name == demo.clean:
        title, note = "Clean images", "as they are"
    elif name == demo.corrupted:
        num_corruptions = len(demo.report.comparison.first.results.corruptions(name))
        title, note = "Corrupted images", f"mean of {num_corruptions} corruptions × 5 severities"
    elif TestSetName(name).chain:
        result = of[0].results.test_sets[name]
        title = "Under AutoAttack"
        note = (
            f"all its attacks, ε = {result.conditions.attack['epsilon']:g}, on "
            f"{result.score.num_images:,} of the images"
        )
    else:
        title, note = "Under attack", f"PGD on the main branch, ε = {TestSetName(name).variant}"
    rows = []
    for measured in of:
        if name == demo.corrupted:
            rows.append(
                dict(
                    model=measured.name,
                    value=measured.results.mean_corrupted_accuracy(name),
                    low=None,
                    high=None,
                )
            )
        else:
            score: Score = measured.results.test_sets[name].score
            low, high = score.interval()
            rows.append(dict(model=measured.name, value=score.top1, low=low, high=high))
    return dict(title=title, note=note, rows=rows)


def _training_charts(demo: DemoReport) -> list[dict]:
    def curves(name, dashed=False):
        for model, history in demo.histories.items():
            entries = [entry for entry in history if name in entry]
            if entries:
                x = [entry["epoch"] for entry in entries]
                values = [entry[name] for entry in entries]
                label = f"{model}, adversarial" if dashed else model
                yield charts.Curve(label, demo.report.colors[model], values, x=x, dashed=dashed)

    losses = [*curves("clean_loss"), *curves("adversarial_loss", dashed=True)]
    plain = dict(x_label="epoch", markers=False)
    return [
        dict(
            title="Training loss",
            note="solid: clean images, dashed: adversarial ones",
            svg=charts.line_chart(
                range(99), losses, y_label="cross-entropy", scale=1.0, y_range=None, **plain
            ),
        ),
        dict(
            title="Test accuracy while training",
            note="averaged weights, main branch",
            svg=charts.line_chart(
                range(99), list(curves("eval_top1")), y_label="top-1 accuracy, %", **plain
            ),
        ),
    ]


def _perturbation(picture: Picture) -> np.ndarray:
    return np.asarray(picture.adversarial_image, np.float32) - np.asarray(picture.image, np.float32)


def perturbation_gain(pictures: Sequence[Picture]) -> int:
    """The factor by which the pictures amplify perturbations.

    It is 16, or the largest smaller power of two at which no perturbation, drawn around
    mid-gray, leaves the range of pixels.
    """
    largest = max(
        (float(np.abs(_perturbation(picture)).max()) for picture in pictures), default=0.0
    )
    gain = _MAX_PERTURBATION_GAIN
    while gain > 1 and gain * largest > 128.0:
        gain //= 2
    return gain


def _picture(picture: Picture, gain: int) -> dict:
    def as_bytes(pixels):
        return charts.png_uri(np.clip(np.round(pixels), 0, 255).astype(np.uint8))

    return dict(
        label=picture.label,
        answers=picture.answers,
        clean=as_bytes(picture.image),
        perturbation=as_bytes(127.5 + gain * _perturbation(picture)),
        adversarial=as_bytes(picture.adversarial_image),
    )
