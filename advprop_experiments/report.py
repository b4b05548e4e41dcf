"""The results of a study: means of arms, and tests of claims, as JSON, HTML and a
table.

Usage:

    summary = summarize(study, {"vanilla/seed_0": {"clean": 0.91, "corrupted": 0.78}, …})
    print(format_table(summary))                                  # in Markdown
    html = render_html(summary)
"""

import dataclasses
import json
import math
from typing import Mapping, Optional, Sequence

from advprop_experiments.estimates import Estimate, contrast_values, verdict
from advprop_experiments.plan import METRICS, Study
from efficientnet_advprop.reports.charts import Interval, interval_chart
from efficientnet_advprop.reports.page_templates import open_templates
from efficientnet_advprop.reports.significance import holm
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
    """Evaluates a study.

    Args:
        study: the study.
        scores: run name → accuracies by metric and "processor_seconds"; None for runs
            that are not done.
    """
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
    """Returns the summary as JSON; accuracies and differences lie in [−1, 1], missing values
    are null.
    """
    return files.to_json(dataclasses.asdict(summary)) + "\n"


def format_table(summary: Summary) -> str:
    """The arms and the claims as two Markdown tables, in percent and percentage points."""
    lines = [
        f"{summary.num_done} of {summary.num_runs} runs; "
        f"seeds {', '.join(map(str, summary.seeds))}",
        "",
    ]
    lines += [
        "| arm | " + " | ".join(summary.metrics) + " |",
        "|---|" + "---|" * len(summary.metrics),
    ]
    for arm, by_metric in summary.arms.items():
        lines.append(
            f"| {arm} | "
            + " | ".join(format_estimate(estimate) for estimate in by_metric.values())
            + " |"
        )
    lines += [
        "",
        "| claim | contrast | of | points (95 % interval) | p, corrected | |",
        "|---|---|---|---|---|---|",
    ]
    for claim in summary.claims:
        for found in claim.findings:
            points = format_estimate(found.estimate, sign="+")
            p_value = "" if math.isnan(found.adjusted_p_value) else f"{found.adjusted_p_value:.3g}"
            lines.append(
                f"| ({claim.key}) | {found.name} | {found.metric} | {points} | {p_value} "
                f"| {found.verdict} |"
            )
    return "\n".join(lines)


def format_estimate(estimate: Optional[Estimate], sign: str = "") -> str:
    """An estimate in per cent, such as "91.2 (90.1 … 92.3)"; None: "not measured"."""
    if estimate is None:
        return "not measured"
    low, high = estimate.interval
    mean = f"{100 * estimate.mean:{sign}.1f}"
    return mean if math.isnan(low) else f"{mean} ({100 * low:{sign}.1f} … {100 * high:{sign}.1f})"


def as_interval(found: Finding) -> Interval:
    """The row of a chart for a measured finding, in the colour of its verdict."""
    return Interval(
        label=f"{found.name}, {found.metric}",
        mean=found.estimate.mean,
        span=found.estimate.span,
        values=found.estimate.values,
        color=_COLORS.get(found.verdict, _OTHER_COLOR),
    )


def render_html(summary: Summary) -> str:
    """The report as one HTML page that needs no other file."""
    environment = open_templates("advprop_experiments", "efficientnet_advprop.reports")
    environment.filters["estimate"] = format_estimate
    charts = {}
    for claim in summary.claims:
        measured = [as_interval(found) for found in claim.findings if found.estimate]
        charts[claim.key] = interval_chart(measured) if measured else ""
    return environment.get_template("study.html.jinja").render(
        summary=summary,
        verdicts=VERDICTS,
        charts=charts,
        configs=json.dumps(summary.configs, indent=1),
        is_nan=math.isnan,
    )
