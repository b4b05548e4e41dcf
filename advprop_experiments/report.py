"""The results of a study: means of arms, tests of claims, and the page that shows both."""

import dataclasses
import json
import math
from typing import Mapping, Optional, Sequence

from advprop_experiments.estimates import Estimate, contrast_values, verdict
from advprop_experiments.plan import METRICS, Study
from efficientnet_advprop.reports.charts import Interval, interval_chart
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
_OTHER_COLOR = "#5b6573"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one contrast in one metric."""

    name: str
    metric: str
    weights: Mapping[str, float]
    expected: int
    num_seeds: int
    estimate: Optional[Estimate]  # None: no seed has results of all its arms
    adjusted_p_value: float  # over all findings with an expected sign; nan where there is no test
    verdict: str


@dataclasses.dataclass(frozen=True)
class ClaimSummary:
    """A claim and the results of its contrasts."""

    key: str
    title: str
    statement: str
    findings: Sequence[Finding]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The contents of the report.

    Args:
        title, introduction: of the study.
        seeds: of the study.
        num_runs, num_done: the number of runs, and of those that are done.
        seconds: processor time of the runs that are done.
        metrics: name → description.
        arms: arm → metric → `Estimate`, None if it is not measured yet; arms without
            finished runs are left out.
        claims: in the order of the study.
        configs: arm → its config.
    """

    title: str
    introduction: str
    seeds: Sequence[int]
    num_runs: int
    num_done: int
    seconds: float
    metrics: Mapping[str, str]
    arms: Mapping[str, Mapping[str, Optional[Estimate]]]
    claims: Sequence[ClaimSummary]
    configs: Mapping[str, Mapping]


def summarize(study: Study, scores: Mapping[str, Optional[Mapping[str, float]]]) -> Summary:
    """Evaluates a study from run name → its scores, or None of runs that are not done."""
    done = [(run, scores[run.name]) for run in study.runs() if scores.get(run.name)]
    accuracies = {metric: {arm: {} for arm in study.arms} for metric in study.metrics()}
    for run, found in done:
        for metric in study.metrics_of(run):
            accuracies[metric][run.arm][run.seed] = found[metric]

    def estimate_of(values):
        return Estimate.of(list(values)) if values else None

    arms = {
        arm: {metric: estimate_of(accuracies[metric][arm].values()) for metric in study.metrics()}
        for arm in study.arms
        if accuracies["clean"][arm]
    }
    # One family of tests: whoever reads the whole report for something that is
    # significant has looked at all of them.
    estimates = {}
    for claim in study.claims:
        for contrast in claim.contrasts:
            for metric in contrast.metrics:
                values = contrast_values(contrast.weights, accuracies[metric]).values()
                estimates[claim.key, contrast.name, metric] = estimate_of(values)
    tested = [
        (claim.key, contrast.name, metric)
        for claim in study.claims
        for contrast in claim.contrasts
        for metric in contrast.metrics
        if contrast.expected
        and (found := estimates[claim.key, contrast.name, metric])
        and not math.isnan(found.p_value)
    ]
    adjusted = dict(zip(tested, holm([estimates[key].p_value for key in tested])))

    def finding(claim, contrast, metric):
        key = (claim.key, contrast.name, metric)
        estimate = estimates[key]
        p_value = adjusted.get(key, math.nan)
        word = verdict(estimate, contrast.expected, p_value) if estimate else "too few seeds"
        count = len(estimate.values) if estimate else 0
        return Finding(
            contrast.name,
            metric,
            dict(contrast.weights),
            contrast.expected,
            count,
            estimate,
            p_value,
            word,
        )

    return Summary(
        title=study.title,
        introduction=study.introduction,
        seeds=list(study.seeds),
        num_runs=len(study.runs()),
        num_done=len(done),
        seconds=sum(found["processor_seconds"] for _, found in done),
        metrics={metric: METRICS[metric] for metric in study.metrics()},
        arms=arms,
        claims=[
            ClaimSummary(claim.key, claim.title, claim.statement, [
                finding(claim, contrast, metric)
                for contrast in claim.contrasts for metric in contrast.metrics
            ])
            for claim in study.claims
        ],
        configs={name: dataclasses.asdict(arm.config) for name, arm in study.arms.items()},
    )  # fmt: skip


def to_json(summary: Summary) -> str:
    """Returns JSON; accuracies and differences lie in [−1, 1], missing values are null."""
    return files.to_json(dataclasses.asdict(summary)) + "\n"


def arms_table(summary: Summary) -> Table:
    """Returns the accuracies of every arm in per cent: means over the seeds."""
    rows = [
        [arm, *map(estimate_cell, by_metric.values())] for arm, by_metric in summary.arms.items()
    ]
    note = f"{summary.num_done} of {summary.num_runs} runs; seeds {_list(summary.seeds)}"
    return Table(["arm", *summary.metrics], rows, "arms", note)


def claims_table(summary: Summary) -> Table:
    """Returns the contrasts of every claim, in percentage points."""
    columns = ["claim", "contrast", "of", "points (95 % interval)", "p", "p, corrected", "verdict"]
    rows = []
    for claim in summary.claims:
        for found in claim.findings:
            is_whole = found.num_seeds == len(summary.seeds)
            notes = () if is_whole else (f"({found.num_seeds} seeds)",)
            rows.append(
                [
                    f"({claim.key})",
                    Cell(found.name, notes=notes),
                    found.metric,
                    estimate_cell(found.estimate, sign="+"),
                    _p_value(found.estimate.p_value if found.estimate else math.nan),
                    _p_value(found.adjusted_p_value),
                    Cell(found.verdict, verdict=True),
                ]
            )
    return Table(columns, rows, "claims")


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _p_value(value: float) -> Cell:
    return Cell() if math.isnan(value) else Cell(f"{value:.3g}", value)


def estimate_cell(estimate: Optional[Estimate], sign: str = "") -> Cell:
    """Returns an estimate in per cent, such as "91.2 (90.1 … 92.3)"."""
    if estimate is None:
        return Cell("not measured")
    return percent(estimate.mean, estimate.interval, sign=sign)


def as_interval(found: Finding) -> Interval:
    """Returns a chart's row for a measured finding, in the colour of its verdict."""
    return Interval(
        label=f"{found.name}, {found.metric}",
        mean=found.estimate.mean,
        span=found.estimate.span,
        values=found.estimate.values,
        color=_COLORS.get(found.verdict, _OTHER_COLOR),
    )


def make_page(summary: Summary) -> Page:
    """Returns the page of a study."""
    how = (
        f"{summary.num_done} of {summary.num_runs} runs, seeds {_list(summary.seeds)}, "
        f"{summary.seconds / 3600:.1f} hours of processor time. Intervals are Student’s of 95 % "
        "over the seeds: they speak of other seeds on the same test images. Contrasts are computed "
        "for each seed and tested by a paired t-test; p is corrected by Holm’s method for all "
        "tests of this page that have an expected sign."
    )
    cards = []
    for claim in summary.claims:
        measured = [as_interval(found) for found in claim.findings if found.estimate]
        svg = interval_chart(measured) if measured else ""
        cards.append(Card(f"({claim.key}) {claim.title}", claim.statement, svg))
    metrics = "; ".join(f"{metric}: {meaning}" for metric, meaning in summary.metrics.items())
    words = [[Cell(word, verdict=True), meaning] for word, meaning in VERDICTS.items()]
    return Page(
        summary.title,
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
                details={"Configs": json.dumps(summary.configs, indent=1)},
            ),
        ],
        summary.introduction,
    )


def format_console(summary: Summary) -> str:
    """Returns both tables for a console."""
    return "\n\n".join(map(format_text, (arms_table(summary), claims_table(summary))))
