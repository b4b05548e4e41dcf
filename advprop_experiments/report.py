"""The results of a study: means of arms, tests of claims, and the page that shows both."""

import dataclasses
import io
import json
import math
from typing import Any, Mapping, Optional, Sequence

import matplotlib
from matplotlib.figure import Figure

from advprop_experiments.estimates import (
    Estimate,
    bootstrap_interval,
    contrast_by_image,
    contrast_values,
    image_accuracy,
    verdict,
)
from advprop_experiments.plan import METRICS, Claim, Contrast, Study
from efficientnet_advprop.reports.charts import Interval, draw_intervals, interval_chart
from efficientnet_advprop.reports.pages import Card, Page, Section
from efficientnet_advprop.reports.significance import holm
from efficientnet_advprop.reports.table import Cell, Table, format_text, percent
from efficientnet_advprop.runtime import files

# The explanations of the words of `verdict`.
VERDICTS = {
    "shown": "as claimed, after correction for all tests",
    "suggested": "as claimed by its own interval, not after correction",
    "not shown": "the interval holds zero",
    "no difference shown": "the interval holds zero, as claimed",
    "different": "a difference where none is claimed",
    "opposite": "the interval lies on the other side of zero",
    "too few seeds": "fewer than two seeds",
}
_COLORS = {
    "shown": "#0e8a6d",
    "suggested": "#5cb8a2",
    "opposite": "#c2410c",
    "different": "#c2410c",
}
_BOTH = "; those over seeds and images, by a two-way bootstrap, speak of other test images too"
_OTHER_COLOR = "#5b6573"
_GRID_COLOR = "#e6e9ee"
_ROW_INCHES = 0.21
_PICTURE_STYLE = {
    "font.size": 8,
    "axes.edgecolor": _GRID_COLOR,
    "xtick.color": _OTHER_COLOR,
    "ytick.major.size": 0,
    "xtick.major.size": 0,
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one contrast in one metric."""

    claim: Claim
    contrast: Contrast
    metric: str
    estimate: Optional[Estimate]  # None: no seed has results of all its arms
    adjusted_p_value: float  # over all findings with an expected sign; nan where there is no test
    # Of studies that keep images: the interval over seeds and images, and the estimates of
    # each test set, such as "fashion_mnist_c/fog/3".
    image_interval: Optional[tuple[float, float]] = None
    by_test_set: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """A key of `VERDICTS`."""
        if self.estimate is None:
            return "too few seeds"
        return verdict(self.estimate, self.contrast.expected, self.adjusted_p_value)

    @property
    def num_seeds(self) -> int:
        return len(self.estimate.values) if self.estimate else 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The contents of the report.

    Args:
        num_done: how many runs are done.
        seconds: processor time of the runs that are done.
        arms: arm → metric → `Estimate`, None if it is not measured yet; arms without
            finished runs are left out.
        findings: in the order of the study's claims.
    """

    study: Study
    num_done: int
    seconds: float
    arms: Mapping[str, Mapping[str, Optional[Estimate]]]
    findings: Sequence[Finding]

    def findings_of(self, claim: Claim) -> list[Finding]:
        return [found for found in self.findings if found.claim is claim]


def summarize(study: Study, scores: Mapping[str, Optional[Mapping[str, float]]]) -> Summary:
    """Evaluates a study from run name → its scores, or None of runs that are not done."""
    done = [(run, scores[run.name]) for run in study.runs() if scores.get(run.name)]
    accuracies = {metric: {arm: {} for arm in study.arms} for metric in study.metrics()}
    for run, found in done:
        for metric in study.metrics_of(run):
            accuracies[metric][run.arm][run.seed] = found[metric]

    def estimate_of(by_seed):
        return Estimate.of(list(by_seed.values())) if by_seed else None

    arms = {
        arm: {metric: estimate_of(accuracies[metric][arm]) for metric in study.metrics()}
        for arm in study.arms
        if accuracies["clean"][arm]
    }
    images = {run.name: found.get("images") for run, found in done}
    findings = [
        Finding(
            claim,
            contrast,
            metric,
            estimate_of(contrast_values(contrast.weights, accuracies[metric])),
            math.nan,
            **(_of_images(study, contrast, metric, images) if study.keeps_images else {}),
        )
        for claim in study.claims
        for contrast in claim.contrasts
        for metric in contrast.metrics
    ]
    # One family of tests: whoever reads the whole report for something that is
    # significant has looked at all of them.
    tested = [
        number
        for number, found in enumerate(findings)
        if found.contrast.expected and found.estimate and not math.isnan(found.estimate.p_value)
    ]
    adjusted = holm([findings[number].estimate.p_value for number in tested])
    for number, p_value in zip(tested, adjusted):
        findings[number] = dataclasses.replace(findings[number], adjusted_p_value=p_value)
    seconds = sum(found["processor_seconds"] for _, found in done)
    return Summary(study, len(done), seconds, arms, findings)


def _of_images(
    study: Study, contrast: Contrast, metric: str, images: Mapping[str, Optional[Mapping]]
) -> dict[str, Any]:
    """Returns what a `Finding` says of single images and test sets."""
    packed = {
        arm: {
            run.seed: images[run.name][metric]
            for run in study.runs()
            if run.arm == arm and images.get(run.name)
        }
        for arm in contrast.weights
    }

    def differences(name: Optional[str] = None):
        accuracies = {
            arm: {seed: image_accuracy(sets, name) for seed, sets in by_seed.items()}
            for arm, by_seed in packed.items()
        }
        return contrast_by_image(contrast.weights, accuracies)

    values = differences()
    if not len(values):
        return {}
    names = list(next(iter(next(iter(packed.values())).values())))
    return {
        "image_interval": bootstrap_interval(values),
        "by_test_set": {
            name: Estimate.of(differences(name).mean(axis=1).tolist())
            for name in (names if len(names) > 1 else ())
        },
    }


def to_json(summary: Summary) -> str:
    """Returns JSON; accuracies and differences lie in [−1, 1], missing values are null."""
    study = summary.study

    def of_images(found: Finding) -> dict:
        by_test_set = {name: dataclasses.asdict(own) for name, own in found.by_test_set.items()}
        return {"image_interval": found.image_interval, "by_test_set": by_test_set}

    def entry(found: Finding) -> dict:
        return {
            "name": found.contrast.name,
            "metric": found.metric,
            "weights": dict(found.contrast.weights),
            "expected": found.contrast.expected,
            "num_seeds": found.num_seeds,
            "estimate": found.estimate and dataclasses.asdict(found.estimate),
            "adjusted_p_value": found.adjusted_p_value,
            "verdict": found.verdict,
            **(of_images(found) if found.image_interval else {}),
        }

    contents = {
        "title": study.title,
        "introduction": study.introduction,
        "seeds": list(study.seeds),
        "num_runs": len(study.runs()),
        "num_done": summary.num_done,
        "seconds": summary.seconds,
        "metrics": {metric: METRICS[metric] for metric in study.metrics()},
        "arms": {
            arm: {metric: own and dataclasses.asdict(own) for metric, own in by_metric.items()}
            for arm, by_metric in summary.arms.items()
        },
        "claims": [
            {
                "key": claim.key,
                "title": claim.title,
                "statement": claim.statement,
                "findings": list(map(entry, summary.findings_of(claim))),
            }
            for claim in study.claims
        ],
        "configs": _configs(study),
    }
    return files.to_json(contents) + "\n"


def _configs(study: Study) -> dict[str, dict]:
    return {name: dataclasses.asdict(arm.config) for name, arm in study.arms.items()}


def _progress(summary: Summary, separator: str) -> str:
    seeds = summary.study.seeds
    told = ", ".join(map(str, seeds))
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        told = f"{seeds[0]} to {seeds[-1]}"
    return f"{summary.num_done} of {len(summary.study.runs())} runs{separator} seeds {told}"


def arms_table(summary: Summary) -> Table:
    """Returns the accuracies of every arm in per cent: means over the seeds."""
    rows = [
        [arm, *map(estimate_cell, by_metric.values())] for arm, by_metric in summary.arms.items()
    ]
    note = _progress(summary, ";")
    return Table(["arm", *summary.study.metrics()], rows, "arms", note)


def claims_table(summary: Summary) -> Table:
    """Returns the contrasts of every claim, in percentage points."""
    columns = ["claim", "contrast", "of", "points (95 % interval)", "p", "p, corrected", "verdict"]
    has_images = any(found.image_interval for found in summary.findings)
    if has_images:
        columns.insert(4, "interval over seeds and images")
    rows = []
    for found in summary.findings:
        is_whole = found.num_seeds == len(summary.study.seeds)
        row = [
            f"({found.claim.key})",
            Cell(found.contrast.name, notes=() if is_whole else [f"({found.num_seeds} seeds)"]),
            found.metric,
            estimate_cell(found.estimate, sign="+"),
            _p_value(found.estimate.p_value if found.estimate else math.nan),
            _p_value(found.adjusted_p_value),
            Cell(found.verdict, verdict=True),
        ]
        if has_images:
            row.insert(4, estimate_cell(found.estimate, found.image_interval, sign="+"))
        rows.append(row)
    return Table(columns, rows, "claims")


def test_sets_table(summary: Summary) -> Optional[Table]:
    """Returns the contrasts in single test sets, in percentage points: a mean over corruptions
    can hide opposite signs. None: the study does not keep them.
    """
    found = [one for one in summary.findings if one.by_test_set]
    if not found:
        return None
    rows = [
        [name, *(estimate_cell(one.by_test_set[name], sign="+") for one in found)]
        for name in found[0].by_test_set
    ]
    return Table(["test set", *(one.contrast.name for one in found)], rows, "test_sets")


def _p_value(value: float) -> Cell:
    return Cell() if math.isnan(value) else Cell(f"{value:.3g}", value)


def estimate_cell(
    estimate: Optional[Estimate], interval: Optional[tuple[float, float]] = None, sign: str = ""
) -> Cell:
    """Returns an estimate in per cent with its own or another interval, such as "91.2
    (90.1 … 92.3)".
    """
    if estimate is None:
        return Cell("not measured")
    return percent(estimate.mean, interval or estimate.interval, sign=sign)


def as_interval(found: Finding) -> Interval:
    """Returns a chart's row for a measured finding, in the colour of its verdict."""
    return Interval(
        label=f"{found.contrast.name}, {found.metric}",
        mean=found.estimate.mean,
        span=found.estimate.span,
        values=found.estimate.values,
        color=_COLORS.get(found.verdict, _OTHER_COLOR),
    )


def make_page(summary: Summary) -> Page:
    """Returns the page of a study."""
    others = "seeds and training images" if summary.study.redraws_training_images else "seeds"
    how = (
        f"{_progress(summary, ',')}, {summary.seconds / 3600:.1f} hours of processor time. "
        f"Intervals are Student’s of 95 % over the seeds: they speak of other {others} on the "
        f"same test images{_BOTH if summary.study.keeps_images else ''}. "
        "Contrasts are computed for each seed and tested by a paired t-test; "
        "p is corrected by Holm’s method for all tests of this page that have an expected sign."
    )
    cards = []
    for claim in summary.study.claims:
        measured = [as_interval(f) for f in summary.findings_of(claim) if f.estimate]
        svg = interval_chart(measured) if measured else ""
        cards.append(Card(f"({claim.key}) {claim.title}", claim.statement, svg))
    metrics = "; ".join(f"{metric}: {METRICS[metric]}" for metric in summary.study.metrics())
    by_test_set, note = test_sets_table(summary), "The same contrasts, in percentage points."
    words = [[Cell(word, verdict=True), meaning] for word, meaning in VERDICTS.items()]
    return Page(
        summary.study.title,
        [
            Section(
                "What the paper claims, and what is seen here",
                how,
                cards=cards,
                grid="two",
                tables=[claims_table(summary)],
                details={"What the verdicts mean": Table(["verdict", "meaning"], words)},
            ),
            Section(
                "All arms",
                f"Per cent, mean over the seeds with its interval. {metrics}.",
                tables=[arms_table(summary)],
                details={"Configs": json.dumps(_configs(summary.study), indent=1)},
            ),
            *([Section("Test set by test set", note, tables=[by_test_set])] if by_test_set else []),
        ],
        summary.study.introduction,
    )


def format_console(summary: Summary) -> str:
    """Returns both tables for a console."""
    return "\n\n".join(map(format_text, (arms_table(summary), claims_table(summary))))


def draw_claims(summary: Summary) -> bytes:
    """The mean of each contrast, its 95 % interval and the values of the seeds, per
    metric.

    Dark green means shown as claimed, light green suggested, red opposite to the claim
    (or different where no difference is claimed), and gray neither; `estimates.verdict`
    defines these words. Means that are much larger than the others are written as
    numbers at the edge of the picture. The same summary gives the same bytes.
    """
    rows = {}  # (claim, contrast) → row from the top, with a gap between claims
    for number, claim in enumerate(summary.study.claims):
        for finding in summary.findings_of(claim):
            rows.setdefault((claim.key, finding.contrast.name), len(rows) + number)
    metrics = [m for m in summary.study.metrics() if m in {f.metric for f in summary.findings}]
    bottom = max(rows.values(), default=0) + 1
    with matplotlib.rc_context(_PICTURE_STYLE):
        figure = Figure(
            figsize=(4.0 + 2.6 * len(metrics), 0.9 + _ROW_INCHES * bottom),
            layout="constrained",
        )
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics):
            shown = {
                rows[finding.claim.key, finding.contrast.name]: as_interval(finding)
                for finding in summary.findings
                if finding.metric == metric and finding.estimate is not None
            }
            draw_intervals(axes, list(shown.values()), list(shown))
            axes.set_title(f"{metric}, percentage points", fontsize=8, color=_OTHER_COLOR)
        panels[0].set_yticks(list(rows.values()), [f"({key}) {name}" for key, name in rows])
        panels[0].set_ylim(bottom - 0.3, -0.7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()
