"""Results for people: a table on the console, and one HTML file that needs nothing beside itself.

    print(format_table(report))
    html = render_html(report)

Every figure in either comes from `Report.results`; sentences that compare say what the intervals allow and no more.
"""

import dataclasses
import statistics
from typing import Mapping, Optional, Sequence

import jinja2
import numpy as np

from efficientnet_advprop.evaluation import figures
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Results, attacked

_COLORS = ("#7b8794", "#0b6bcb", "#e07b00", "#7a3fb0", "#0e8a6d")  # told apart by people with any colour vision
_MAX_PERTURBATION_GAIN = 16


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and what an attack made of it.

    Args:
        image, adversarial_image: float [height, width, 3], pixels in [0, 255].
        label: what it shows.
        answers: model → (class that it sees in the clean image, in the adversarial one).
    """

    image: np.ndarray
    adversarial_image: np.ndarray
    label: str
    answers: Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows.

    Args:
        title, introduction: one line, one paragraph.
        results: model → what was measured of it.
        clean, corrupted: the test set of clean images and the suite of corrupted ones, by name.
        names: model → what to call it, in the order of columns.
        descriptions: model → half a sentence.
        baseline: the model that corruption errors are measured by.
        featured: the model that is compared with the others in words.
        histories: model → the reports of its training run, as in `metrics.jsonl`.
        samples: corruption → one image by severity, uint8 [height, width, 3].
        pictures: of the training attack.
        picture_note: what that attack was.
        facts: what a reader needs to get the same figures: name → value.
        configs: model → its config as JSON.
    """

    title: str
    introduction: str
    results: Mapping[str, Results]
    clean: str
    corrupted: str
    names: Mapping[str, str]
    descriptions: Mapping[str, str]
    baseline: str
    featured: str
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    samples: Mapping[str, Sequence[np.ndarray]]
    pictures: Sequence[Picture]
    picture_note: str
    facts: Mapping[str, str]
    configs: Mapping[str, str]

    @property
    def colors(self) -> dict[str, str]:
        return dict(zip(self.names, _COLORS))

    def scores(self, test_set: str) -> dict[str, Score]:
        """model → its score on a test set."""
        return {model: self.results[model].test_sets[test_set].score for model in self.names}

    @property
    def corruptions(self) -> list[str]:
        return self.results[self.featured].corruptions(self.corrupted)

    @property
    def epsilons(self) -> list[float]:
        return self.results[self.featured].epsilons()

    def mean_corrupted_accuracy(self, model: str, corruption: Optional[str] = None) -> float:
        return self.results[model].mean_corrupted_accuracy(self.corrupted, corruption)

    def mean_corruption_error(self, model: str) -> float:
        """By the errors of `baseline`."""
        return self.results[model].mean_corruption_error(self.corrupted, self.results[self.baseline].errors(self.corrupted))

    def corruption_errors(self, model: str) -> dict[str, float]:
        """By the errors of `baseline`."""
        return self.results[model].corruption_errors(self.corrupted, self.results[self.baseline].errors(self.corrupted))


def compare(score: Score, other: Score) -> str:
    """ "above", "below" or "level with": whether two accuracies differ beyond their 95 % intervals."""
    (low, high), (other_low, other_high) = score.interval(), other.interval()
    return "above" if low > other_high else "below" if high < other_low else "level with"


def percent(value: float, digits: int = 1) -> str:
    """0.9731 → "97.3"; 1 and 0 stay whole."""
    return f"{100 * value:.{digits}f}"


def with_interval(score: Score) -> str:
    """ "97.3 (96.1–98.1)", in percent."""
    low, high = score.interval()
    return f"{percent(score.top1)} ({percent(low)}–{percent(high)})"


def images_per_second(history: Sequence[Mapping[str, float]]) -> float:
    """The median speed of a training run, from its reports; nan where it has none."""
    speeds = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    return statistics.median(speeds) if speeds else float("nan")


def format_table(report: Report) -> str:
    """The main table and the accuracy under each corruption, for a console."""
    rows = [("clean", [with_interval(score) for score in report.scores(report.clean).values()])]
    for epsilon in report.epsilons:
        rows.append((f"PGD, ε = {epsilon:g}", [with_interval(score) for score in report.scores(attacked(epsilon)).values()]))
    if report.corruptions:
        rows.append(("corrupted, mean", [percent(report.mean_corrupted_accuracy(model)) for model in report.names]))
    for corruption in report.corruptions:
        accuracies = [percent(report.mean_corrupted_accuracy(model, corruption)) for model in report.names]
        rows.append((f"  {corruption.replace('_', ' ')}", accuracies))
    if report.corruptions:
        errors = [percent(report.mean_corruption_error(model)) for model in report.names]
        rows.append((f"mCE ({report.names[report.baseline]} = 100)", errors))
    head = ("top-1 accuracy, %", list(report.names.values()))
    first = max(len(name) for name, _ in (head, *rows))
    widths = [max(len(cells[i]) for _, cells in (head, *rows)) for i in range(len(report.names))]
    lines = [
        f"{name:{first}s}  " + "  ".join(f"{cell:>{width}s}" for cell, width in zip(cells, widths))
        for name, cells in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def render_html(report: Report) -> str:
    """The whole report as one HTML page without any link to another file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("efficientnet_advprop.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, with_interval=with_interval)
    return environment.get_template("report.html.jinja").render(
        report=report,
        headlines=_headlines(report),
        findings=_findings(report),
        speeds={model: images_per_second(history) for model, history in report.histories.items()},
        cards=_corruption_cards(report),
        attack_chart=_attack_chart(report),
        training_charts=_training_charts(report),
        pictures=[_picture(picture, _perturbation_gain(report.pictures)) for picture in report.pictures],
        gain=_perturbation_gain(report.pictures),
    )


def _headlines(report: Report) -> list[dict]:
    """The bars at the top: clean, corrupted, under the strongest attack at which the baseline still knows something."""
    bars = [("Clean images", "as they are", report.scores(report.clean))]
    corruptions = report.corruptions
    if corruptions:
        mean = {m: report.mean_corrupted_accuracy(m) for m in report.names}
        bars.append(("Corrupted images", f"mean of {len(corruptions)} corruptions × 5 severities", mean))
    for epsilon in report.epsilons[-1:]:
        bars.append(("Under attack", f"PGD on the main branch, ε = {epsilon:g}", report.scores(attacked(epsilon))))
    result = []
    for title, note, by_model in bars:
        rows = []
        for model in report.names:
            score = by_model[model]
            low, high = score.interval() if isinstance(score, Score) else (None, None)
            rows.append(dict(model=model, value=score.top1 if isinstance(score, Score) else score, low=low, high=high))
        result.append(dict(title=title, note=note, rows=rows, best=max(row["value"] for row in rows)))
    return result


def _findings(report: Report) -> list[str]:
    """What the figures say of the featured model, sentence by sentence."""
    names, featured = report.names, report.featured
    others = [model for model in names if model != featured]

    def accuracies(test_set):
        scores = report.scores(test_set)
        parts = [
            f"{compare(scores[featured], scores[other])} {names[other]} ({percent(scores[other].top1)} %)" for other in others
        ]
        return f"{percent(scores[featured].top1)} %, {' and '.join(parts)}"

    sentences = [f"On clean images {names[featured]} is right in {accuracies(report.clean)}."]
    if report.corruptions:
        errors = {model: report.results[model].errors(report.corrupted) for model in names}
        cells = [(corruption, i) for corruption, values in errors[featured].items() for i in range(len(values))]
        parts = []
        for other in others:
            fewer = sum(errors[featured][c][i] < errors[other][c][i] for c, i in cells)
            more = sum(errors[featured][c][i] > errors[other][c][i] for c, i in cells)
            parts.append(f"fewer errors than {names[other]} on {fewer} of the {len(cells)} corrupted sets and more on {more}")
        mce = {model: percent(report.mean_corruption_error(model)) for model in names}
        rest = ", ".join(f"{names[model]}: {mce[model]}" for model in others)
        sentences.append(f"Its mean corruption error is {mce[featured]} ({rest}): {'; '.join(parts)}.")
    for epsilon in report.epsilons[-1:]:
        sentences.append(f"Under the PGD attack with ε = {epsilon:g} it keeps {accuracies(attacked(epsilon))}.")
    return sentences


def _corruption_cards(report: Report) -> list[dict]:
    cards = []
    for corruption in report.corruptions:
        curves = []
        for model, color in report.colors.items():
            scores = report.results[model].severities(report.corrupted, corruption)
            intervals = [score.interval() for score in scores]
            curves.append(figures.Curve(report.names[model], color, [score.top1 for score in scores], intervals))
        severities = range(1, len(curves[0].values) + 1)
        cards.append(
            dict(
                name=corruption,
                title=corruption.replace("_", " "),
                svg=figures.line_chart(severities, curves, size=(2.9, 1.6)),
                images=[figures.png_uri(image) for image in report.samples.get(corruption, ())],
                means={model: report.mean_corrupted_accuracy(model, corruption) for model in report.names},
                errors={model: report.corruption_errors(model)[corruption] for model in report.names},
            )
        )
    return cards


def _attack_chart(report: Report) -> str:
    test_sets = [report.clean, *(attacked(epsilon) for epsilon in report.epsilons)]
    curves = []
    for model, color in report.colors.items():
        scores = [report.scores(test_set)[model] for test_set in test_sets]
        curves.append(figures.Curve(report.names[model], color, [s.top1 for s in scores], [s.interval() for s in scores]))
    size = (5.6, 2.6)
    return figures.line_chart([0, *report.epsilons], curves, x_label="ε, pixels of 255", y_label="top-1 accuracy, %", size=size)


def _training_charts(report: Report) -> list[dict]:
    def series(model, name):
        entries = [entry for entry in report.histories[model] if name in entry]
        return [entry["epoch"] for entry in entries], [entry[name] for entry in entries]

    def curves(name, dashed=False):
        for model, color in report.colors.items():
            x, values = series(model, name)
            if values:
                yield figures.Curve(
                    f"{report.names[model]}{', adversarial' if dashed else ''}", color, values, x=x, dashed=dashed
                )

    losses = [*curves("clean_loss"), *curves("adversarial_loss", dashed=True)]
    plain = dict(x_label="epoch", markers=False)
    return [
        dict(
            title="Training loss",
            note="solid: clean images, dashed: adversarial ones",
            svg=figures.line_chart(range(99), losses, y_label="cross-entropy", scale=1.0, y_range=None, **plain),
        ),
        dict(
            title="Test accuracy while training",
            note="averaged weights, main branch",
            svg=figures.line_chart(range(99), list(curves("eval_top1")), y_label="top-1 accuracy, %", **plain),
        ),
    ]


def _perturbation(picture: Picture) -> np.ndarray:
    return np.asarray(picture.adversarial_image, np.float32) - np.asarray(picture.image, np.float32)


def _perturbation_gain(pictures: Sequence[Picture]) -> int:
    """16, or the largest power of two below at which no perturbation, drawn around mid-gray, leaves the range of pixels."""
    largest = max((float(np.abs(_perturbation(picture)).max()) for picture in pictures), default=0.0)
    gain = _MAX_PERTURBATION_GAIN
    while gain > 1 and gain * largest > 128.0:
        gain //= 2
    return gain


def _picture(picture: Picture, gain: int) -> dict:
    def as_bytes(pixels):
        return figures.png_uri(np.clip(np.round(pixels), 0, 255).astype(np.uint8))

    return dict(
        label=picture.label,
        answers=picture.answers,
        clean=as_bytes(picture.image),
        perturbation=as_bytes(127.5 + gain * _perturbation(picture)),
        adversarial=as_bytes(picture.adversarial_image),
    )
