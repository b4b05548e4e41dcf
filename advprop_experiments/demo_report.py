"""Renders the page of the demo: accuracies by training method, and what the attack does.

Usage:

    sentence = tell(demo.summary)
    page = render_html(demo)            # a `DemoReport`
"""

import dataclasses
import statistics
from typing import Iterable, Mapping, Sequence

import numpy as np

from advprop_experiments.estimates import Estimate
from advprop_experiments.report import Finding, Summary, as_interval, format_estimate
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.reports import charts
from efficientnet_advprop.reports.evaluation_report import COLORS
from efficientnet_advprop.reports.page_templates import open_templates

_PLACES = {
    "clean": "on clean images",
    "corrupted": "on corrupted images",
    "autoattack": "under AutoAttack",
}
_MAX_PERTURBATION_GAIN = 16


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and its adversarial version.

    Args:
        image, adversarial_image: float [height, width, 3], pixels in [0, 255].
        label: the true class.
        answers: arm → (prediction for the clean image, for the adversarial image).
    """

    image: np.ndarray
    adversarial_image: np.ndarray
    label: str
    answers: Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """The contents of the page.

    Args:
        summary: of the study, whose arms are "vanilla", "advprop" and "adversarial".
        names, descriptions: arm → how the page calls it; what it is.
        by_corruption: corruption → arm → accuracy over the seeds.
        autoattack: arm → score under AutoAttack, of the first seed's network alone.
        samples: corruption → a corrupted image, uint8 [height, width, 3].
        histories: arm → the reports of its first training run, as in `metrics.jsonl`.
        pictures: images with the training attack.
        picture_note: a description of that attack.
        facts: name → value of what a reader needs to reproduce the results.
        configs: arm → its config as JSON.
    """

    summary: Summary
    names: Mapping[str, str]
    descriptions: Mapping[str, str]
    by_corruption: Mapping[str, Mapping[str, Estimate]]
    autoattack: Mapping[str, Score]
    samples: Mapping[str, np.ndarray]
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    pictures: Sequence[Picture]
    picture_note: str
    facts: Mapping[str, str]
    configs: Mapping[str, str]

    @property
    def colors(self) -> dict[str, str]:
        """Arm → CSS colour."""
        return dict(zip(self.names, COLORS))


def tell(summary: Summary) -> str:
    """What was measured, in one sentence: with how many seeds AdvProp is ahead of the
    other methods, and by how many percentage points on average.

    It counts, and infers nothing: the words hold whatever the figures are.
    """
    gains = _list_counts(summary, "vanilla", _PLACES)
    gains = gains.replace(" (", " seeds (", 1).replace(")", " points on average)", 1)
    against_same = _list_counts(summary, "adversarial", ("clean", "corrupted"))
    return (
        f"AdvProp is ahead of vanilla training {gains}; it is ahead of training on the same "
        f"images without auxiliary batch norms {against_same}."
    )


def _list_counts(summary: Summary, other: str, metrics: Iterable[str]) -> str:
    """Where AdvProp is ahead of another method, and how often."""
    *places, last = [
        f"{_PLACES[metric]} with {_count(_find(summary, 'advprop', other, metric))}"
        for metric in metrics
    ]
    return f"{', '.join(places)} and {last}"


def _find(summary: Summary, first: str, second: str, metric: str) -> Finding:
    """What was found for `first` − `second`."""
    (finding,) = [
        finding
        for claim in summary.claims
        for finding in claim.findings
        if finding.weights == {first: 1.0, second: -1.0} and finding.metric == metric
    ]
    return finding


def _count(finding: Finding) -> str:
    """How often a difference is positive, and its mean: "2 of 3 (+0.4)"."""
    values = finding.estimate.values
    points = f"{100 * finding.estimate.mean:+.1f}".replace("-", "−")
    return f"{sum(value > 0 for value in values)} of {len(values)} ({points})"


def images_per_second(history: Sequence[Mapping[str, float]]) -> float:
    """The median speed of a training run, from its reports; nan if they contain no
    speed.
    """
    speeds = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    return statistics.median(speeds) if speeds else float("nan")


def render_html(demo: DemoReport) -> str:
    """The page, as one HTML file without links to other files."""
    environment = open_templates("advprop_experiments", "efficientnet_advprop.reports")
    environment.filters["estimate"] = format_estimate
    gain = perturbation_gain(demo.pictures)
    return environment.get_template("demo.html.jinja").render(
        demo=demo,
        sentence=tell(demo.summary),
        headlines=[_headline(demo, metric) for metric in _PLACES],
        differences=charts.interval_chart(_differences(demo.summary)),
        corruptions=[
            dict(
                title=corruption.replace("_", " "),
                image=charts.png_uri(demo.samples[corruption]),
                rows=_rows(demo, by_arm),
            )
            for corruption, by_arm in demo.by_corruption.items()
        ],
        speeds={arm: images_per_second(history) for arm, history in demo.histories.items()},
        loss_chart=_loss_chart(demo),
        pictures=[_picture(picture, gain) for picture in demo.pictures],
        gain=gain,
    )


def _differences(summary: Summary) -> list[charts.Interval]:
    """Those of several seeds: of a single one there is no interval."""
    return [
        as_interval(finding)
        for claim in summary.claims
        for finding in claim.findings
        if finding.num_seeds > 1
    ]


def _headline(demo: DemoReport, metric: str) -> dict:
    """Bars of the accuracies: over the seeds, or of one network over the images."""
    place = _PLACES[metric]
    if metric == "autoattack":
        num_images = next(iter(demo.autoattack.values())).num_images
        seed = demo.summary.seeds[0]
        note = f"seed {seed}; {num_images} images, over which the intervals are (Wilson’s)"
        rows = [
            _row(demo, arm, score.top1, score.interval(), ())
            for arm, score in demo.autoattack.items()
        ]
    else:
        note = demo.summary.metrics[metric]
        rows = _rows(demo, {arm: of[metric] for arm, of in demo.summary.arms.items()})
    return dict(title=place[0].upper() + place[1:], note=note, rows=rows)


def _rows(demo: DemoReport, by_arm: Mapping[str, Estimate]) -> list[dict]:
    return [
        _row(demo, arm, estimate.mean, estimate.span, estimate.values)
        for arm, estimate in by_arm.items()
    ]


def _row(
    demo: DemoReport,
    arm: str,
    mean: float,
    interval: tuple[float, float],
    values: Sequence[float],
) -> dict:
    """An arm's bar, in per cent of its track: mean, interval and single seeds."""
    return dict(
        name=demo.names[arm],
        color=demo.colors[arm],
        mean=100 * mean,
        low=100 * max(interval[0], 0.0),
        high=100 * min(interval[1], 1.0),
        values=[100 * value for value in values],
    )


def _loss_chart(demo: DemoReport) -> str:
    curves = []
    for name, kind in (("clean_loss", ""), ("adversarial_loss", ", adversarial")):
        for arm, history in demo.histories.items():
            entries = [entry for entry in history if name in entry]
            if entries:
                curves.append(
                    charts.Curve(
                        f"{demo.names[arm]}{kind}",
                        demo.colors[arm],
                        [entry[name] for entry in entries],
                        x=[entry["epoch"] for entry in entries],
                        dashed=bool(kind),
                    )
                )
    return charts.line_chart(
        range(99),
        curves,
        x_label="epoch",
        y_label="cross-entropy",
        scale=1.0,
        y_range=None,
        markers=False,
    )


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
