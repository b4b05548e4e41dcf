"""Renders the results of evaluations as one self-contained HTML page, or as Markdown.

Usage:

    comparison = compare(read_measured(["runs/b3-advprop", "runs/b3-baseline"]))
    report = Report("B3 with and without AdvProp", comparison)
    html = render_html(report)
    markdown = render_markdown(report)

The report of one model shows its results beside published ones. The report of several
models also shows which differences are statistically significant. All numbers come from
`Report.comparison`, and remarks that limit a number are printed beside it.
"""

import dataclasses
import functools
import math
import statistics
from typing import Any, Mapping, Optional, Sequence

from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.cue_conflict import Decisions
from efficientnet_advprop.evaluation.metrics import Score, corruption_errors
from efficientnet_advprop.evaluation.test_set_name import (
    CLEAN_SUITES,
    by_severity,
    parse_name,
    row_of,
)
from efficientnet_advprop.reports import charts, report_rows
from efficientnet_advprop.reports.branch_curves import BranchCurve, branch_curves
from efficientnet_advprop.reports.comparison import (
    Comparison,
    Measured,
    NotCompared,
    is_fixed_yardstick,
)
from efficientnet_advprop.reports.disagreements import Disagreement, OpenImages, find_disagreements
from efficientnet_advprop.reports.page_templates import open_templates
from efficientnet_advprop.reports.report_rows import Measure

# People with any kind of colour vision can distinguish these colours.
COLORS = ("#7b8794", "#0b6bcb", "#e07b00", "#7a3fb0", "#0e8a6d", "#b3365b")


@dataclasses.dataclass(frozen=True)
class Report:
    """The contents of a report.

    Args:
        title: one line.
        comparison: of at least one model.
        class_names: names by label; empty: the labels are shown as numbers.
        open_images: opens the images for thumbnails, see `disagreements`.
    """

    title: str
    comparison: Comparison
    class_names: Sequence[str] = ()
    open_images: OpenImages = lambda test_set: None

    @property
    def models(self) -> list[str]:
        return [measured.name for measured in self.comparison.measured]

    @property
    def colors(self) -> dict[str, str]:
        return {model: COLORS[number % len(COLORS)] for number, model in enumerate(self.models)}

    @functools.cached_property
    def rows(self) -> dict[tuple[str, str], dict[str, Measure]]:
        """(suite, quantity) → model → measured value."""
        rows: dict[tuple[str, str], dict[str, Measure]] = {}
        for measured in self.comparison.measured:
            for measure in report_rows.list_measures(self.comparison, measured):
                rows.setdefault((measure.suite, measure.quantity), {})[measured.name] = measure
        return rows

    def class_name(self, label: int) -> str:
        """The name of a class; its number if there is no name."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)


def percent(value: float, digits: int = 1) -> str:
    """0.9731 → "97.3"."""
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference in percentage points, with its sign: −1.23 → "−1.2"."""
    text = f"{value:+.1f}"
    return text.replace("-", "−") if float(text) else "±0.0"


def probability(value: float) -> str:
    """A p-value as text: "0.012", "< 0.0001"."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def with_interval(score: Score) -> str:
    """The accuracy and its interval in per cent, such as "97.3 (96.1–98.1)"."""
    low, high = score.interval()
    return f"{percent(score.top1)} ({percent(low)}–{percent(high)})"


def describe_tests(comparison: Comparison, suite: str) -> str:
    """One sentence on all pairs of models on a test set; empty if there is no test.

    In brackets it gives the difference, its 95 % interval, and the p-value corrected
    for all tests of the comparison.
    """
    verdicts = {"better": "better than", "worse": "worse than", "level": "level with"}
    tests = [test for test in comparison.tests if test.suite == suite]
    parts = []
    for test in tests:
        low, high = (points(100 * end) for end in test.interval)
        p_value = probability(test.adjusted_p_value)
        p_value = p_value if p_value.startswith("<") else f"= {p_value}"
        difference = f"{points(100 * test.difference)} points, {low} … {high}, p {p_value}"
        parts.append(f"{test.second} is {verdicts[test.verdict]} {test.first} ({difference})")
    return f"{report_rows.title(suite)}, {tests[0].measure}: {'; '.join(parts)}." if parts else ""


def format_table(report: Report) -> str:
    """The main table for a console, in per cent.

    One model stands beside published results; several models stand side by side.
    """
    if len(report.models) == 1:
        rows = [["per cent", "measured", "published", "difference", "images", "fed"]]
        for by_model in report.rows.values():
            for measure in by_model.values():
                published = "" if measure.published is None else f"{measure.published.value:.1f}"
                difference = "" if measure.difference is None else points(measure.difference)
                cells = [
                    _marked_cell(measure),
                    published,
                    difference,
                    f"{measure.num_images:,}",
                    measure.feeding,
                ]
                rows.append([f"{measure.title}, {measure.quantity}", *cells])
    else:
        rows = [["per cent", *report.models, "fed"]]
        for (suite, quantity), by_model in report.rows.items():
            cells = [
                _marked_cell(by_model[model]) if model in by_model else ""
                for model in report.models
            ]
            feedings = dict.fromkeys(measure.feeding for measure in by_model.values())
            rows.append([f"{report_rows.title(suite)}, {quantity}", *cells, " and ".join(feedings)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = ["<", *">" * (len(widths) - 2), "<"]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    models_of: dict[tuple[str, str], list[str]] = {}
    for (suite, _), by_model in report.rows.items():
        for model, measure in by_model.items():
            for remark in measure.remarks:
                models = models_of.setdefault((report_rows.title(suite), remark), [])
                models.extend([model] if model not in models else [])
    for (title, remark), models in models_of.items():
        lines.append(
            f"* {title}{'' if models == report.models else ', ' + ' and '.join(models)}: {remark}"
        )
    return "\n".join(lines)


def _marked_cell(measure: Measure) -> str:
    return _cell(measure) + ("*" if measure.remarks else "")


def _cell(measure: Measure) -> str:
    interval = (
        "" if measure.interval is None else " ({}–{})".format(*map(percent, measure.interval))
    )
    return percent(measure.value) + interval


def render_markdown(report: Report) -> str:
    """The tables of the report as Markdown."""
    lines = [f"# {report.title}", ""]
    lines += [
        "Per cent, with 95 % intervals; for mCE and errors lower is better.",
        "",
        "| test set | model | measure | measured | published | difference | top-5 | ECE | images "
        "| fed | remarks |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for by_model in report.rows.values():
        for model, measure in by_model.items():
            lines.append(_markdown_row(
                measure.title, model, measure.quantity, _cell(measure), _published(measure),
                "" if measure.difference is None else points(measure.difference),
                "" if measure.top5 is None else percent(measure.top5),
                "" if measure.calibration_error is None else percent(measure.calibration_error),
                f"{measure.num_images:,}", measure.feeding,
                "; ".join(f"**{remark}**" for remark in measure.remarks),
            ))  # fmt: skip
    comparison = report.comparison
    if len(report.models) > 1:
        lines += [
            "",
            "## Side by side",
            "",
            SIDE_BY_SIDE_NOTE,
            "",
            "| test set | first | second | measure | second − first, points | 95 % interval "
            "| only first right | only second right | p | p (Holm) | second is | remarks |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for test in comparison.tests:
            low, high = (points(100 * end) for end in test.interval)
            only = (
                ["", ""]
                if test.counts is None
                else [test.counts.num_only_first, test.counts.num_only_second]
            )
            lines.append(_markdown_row(
                report_rows.title(test.suite), test.first, test.second, test.measure,
                points(100 * test.difference), f"{low} … {high}", *only,
                probability(test.p_value), probability(test.adjusted_p_value), test.verdict,
                "; ".join(test.remarks),
            ))  # fmt: skip
        lines += [""] + [
            f"- Not compared, {describe_not_compared(pair)}" for pair in comparison.not_compared
        ]
    for suite, table in _corruption_tables(report).items():
        lines += [
            "",
            f"## {report_rows.title(suite)}, top-1 by severity",
            "",
            "| corruption | model | 1 | 2 | 3 | 4 | 5 | CE |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for one in table.values():
            for model, scores in one.scores.items():
                cells = [
                    with_interval(scores[severity]) if severity in scores else ""
                    for severity in range(1, 6)
                ]
                cells.append(percent(one.errors[model]) if model in one.errors else "")
                lines.append(_markdown_row(one.title, model, *cells))
    lines += _markdown_shape_bias(report) + _markdown_branch_curves(report)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_shape_bias(report: Report) -> list[str]:
    lines = [
        _markdown_row(
            category,
            model,
            own.num_images,
            own.num_shape,
            own.num_texture,
            "" if own.shape_bias is None else percent(own.shape_bias),
        )  # fmt: skip
        for model, decisions in _shape_decisions(report).items()
        for category, own in decisions.items()
    ]
    head = "| shape | model | images in conflict | by shape | by texture | shape bias |"
    return lines and [
        "",
        "## Shape bias by category",
        "",
        head,
        "|---|---|---|---|---|---|",
        *lines,
    ]


def _markdown_branch_curves(report: Report) -> list[str]:
    lines = []
    for curve in branch_curves(report.comparison.measured):
        titles = [report_rows.title(name) for name in curve.scores]
        lines += ["", f"## {describe_branch_curve(curve)}", ""]
        lines += [
            _markdown_row(f"share of {curve.auxiliary}", *titles),
            "|---" * (1 + len(titles)) + "|",
        ]
        for share, *scores in zip(curve.shares, *curve.scores.values()):
            lines.append(_markdown_row(f"{share:g}", *map(with_interval, scores)))
    return lines


def describe_branch_curve(curve: BranchCurve) -> str:
    """Which network and which branches a curve is of."""
    return (
        f"{curve.model}: main mixed with {curve.auxiliary}, moving statistics of {curve.statistics}"
    )


def _markdown_row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _published(measure: Measure) -> str:
    if measure.published is None:
        return ""
    notes = [measure.published.source, f"{measure.published.evidence}"] + list(
        filter(None, [measure.published.note])
    )
    return f"{measure.published.value:.1f} ({'; '.join(notes)})"


def describe_not_compared(pair: NotCompared) -> str:
    """Names the test set, the two models and the reason why they are not compared."""
    return f"{report_rows.title(pair.suite)}, {pair.first} and {pair.second}: {pair.reason}"


SIDE_BY_SIDE_NOTE = (
    "The tests are paired: both models classified the same images. Top-1 is compared by McNemar’s "
    "exact test, with bootstrap intervals over images; mCE by a paired t-test over images, with "
    "intervals from resampling images together with all their corruptions. A model is “better” or "
    "“worse” if the p-value, corrected by Holm’s method for all tests here, is below 0.05; "
    "otherwise it is “level”."
)


def render_html(report: Report) -> str:
    """The whole report as one HTML page that needs no other file."""
    environment = open_templates("efficientnet_advprop.reports")
    environment.filters.update(
        percent=percent, points=points, probability=probability, with_interval=with_interval,
        title=report_rows.title, describe_not_compared=describe_not_compared,
        conditions=report_rows.describe_conditions,
    )  # fmt: skip
    tables = _corruption_tables(report)
    return environment.get_template("report.html.jinja").render(
        report=report,
        comparison=report.comparison,
        side_by_side_note=SIDE_BY_SIDE_NOTE,
        suites=tables,
        corruption_charts={
            suite: _corruption_charts(report, table) for suite, table in tables.items()
        },
        yardsticks={
            suite: "AlexNet" if is_fixed_yardstick(suite) else report.models[0] for suite in tables
        },
        attack_chart=_attack_chart(report),
        shape_bias_chart=_shape_bias_chart(report),
        branch_charts=_branch_charts(report),
        reliability_charts=_reliability_charts(report),
        disagreements=_disagreements(report),
    )


@dataclasses.dataclass(frozen=True)
class _Corruption:
    """The results on one corruption.

    Args:
        title: its name in the report.
        scores: model → severity → score.
        errors: model → corruption error, for the models that have one.
    """

    title: str
    scores: Mapping[str, Mapping[int, Score]]
    errors: Mapping[str, float]

    @property
    def means(self) -> dict[str, float]:
        return {
            model: statistics.fmean(score.top1 for score in scores.values())
            for model, scores in self.scores.items()
            if scores
        }


def _corruption_tables(report: Report) -> dict[str, dict[str, _Corruption]]:
    """Corrupted suite → corruption → results."""
    suites = dict.fromkeys(
        s for measured in report.comparison.measured for s in measured.results.corrupted_suites()
    )
    return {suite: _corruption_table(report, suite) for suite in suites}


def _corruption_table(report: Report, suite: str) -> dict[str, _Corruption]:
    measured_models = [
        measured
        for measured in report.comparison.measured
        if suite in measured.results.corrupted_suites()
    ]
    yardstick = report.comparison.yardstick(suite)
    errors = {
        measured.name: corruption_errors(measured.results.errors(suite), yardstick)
        for measured in measured_models
        if yardstick is not None and suite in measured.whole_suites
    }
    return {
        corruption: _Corruption(
            corruption.replace("_", " "),
            {
                measured.name: _scores_by_severity(measured, suite, corruption)
                for measured in measured_models
            },
            {model: by_corruption[corruption] for model, by_corruption in errors.items()},
        )
        for corruption in dict.fromkeys(
            c for measured in measured_models for c in measured.results.corruptions(suite)
        )
    }


def _corruption_charts(report: Report, table: Mapping[str, _Corruption]) -> dict:
    """The charts of a corrupted suite.

    For models that measured the complete_models suite: corruption errors as bars, and
    mean accuracies by severity. For each corruption: accuracy curves.
    """
    complete_models = [
        model for model in report.models if all(model in one.errors for one in table.values())
    ]
    overview: dict[str, Any] = {"bars": None, "severities": None}
    if complete_models:
        bars = [
            charts.Curve(m, report.colors[m], [one.errors[m] for one in table.values()])
            for m in complete_models
        ]
        names = [one.title for one in table.values()]
        overview["bars"] = charts.bar_chart(
            names, bars, x_label="corruption error, % of the yardstick’s", mark=1.0
        )
        means = []
        for model in complete_models:
            columns = zip(
                *([score.top1 for score in one.scores[model].values()] for one in table.values())
            )
            means.append(
                charts.Curve(
                    model, report.colors[model], [statistics.fmean(column) for column in columns]
                )
            )
        overview["severities"] = charts.line_chart(
            range(1, 6), means, x_label="severity", y_label="top-1 accuracy, %"
        )
    cards = {}
    for corruption, one in table.items():
        curves = [
            _score_curve(report, model, scores) for model, scores in one.scores.items() if scores
        ]
        cards[corruption] = charts.line_chart(range(1, 6), curves, size=(2.9, 1.6))
    return {**overview, "cards": cards}


def _scores_by_severity(measured: Measured, suite: str, corruption: str) -> dict[int, Score]:
    names = by_severity(measured.results.test_sets, suite, corruption)
    return {parse_name(name).severity: measured.results.test_sets[name].score for name in names}


def _score_curve(report: Report, model: str, scores: Mapping[int, Score]) -> charts.Curve:
    values = [score.top1 for score in scores.values()]
    intervals = [score.interval() for score in scores.values()]
    return charts.Curve(model, report.colors[model], values, intervals, x=list(scores))


def _attack_chart(report: Report) -> Optional[str]:
    """Accuracy over ε, beginning with the clean images, for the models that were
    attacked.
    """
    curves = []
    all_epsilons = set()
    for measured in report.comparison.measured:
        results = measured.results.test_sets
        attacked = {parse_name(name).epsilon: name for name in results}
        epsilons = sorted(attacked.keys() - {None})
        if not epsilons:
            continue
        clean = next((name for name in CLEAN_SUITES if name in results), None)
        by_epsilon = ({0.0: results[clean].score} if clean else {}) | {
            e: results[attacked[e]].score for e in epsilons
        }
        curves.append(_score_curve(report, measured.name, by_epsilon))
        all_epsilons.update(by_epsilon)
    if len(all_epsilons) < 2:
        return None
    return charts.line_chart(
        sorted(all_epsilons),
        curves,
        x_label="ε, pixels of 255",
        y_label="top-1 accuracy, %",
        size=(5.6, 2.6),
    )


def _shape_decisions(report: Report) -> dict[str, Mapping[str, Decisions]]:
    """Model → category → decisions, of the models that answered cue conflict."""
    found = {
        measured.name: report_rows.shape_decisions(measured)
        for measured in report.comparison.measured
    }
    return {model: decisions for model, decisions in found.items() if decisions is not None}


def _shape_bias_chart(report: Report) -> Optional[str]:
    """Shape bias by category; no bar where neither shape nor texture was answered."""
    by_model = _shape_decisions(report)
    if not by_model:
        return None
    bars = [
        charts.Curve(
            model,
            report.colors[model],
            [math.nan if own.shape_bias is None else own.shape_bias for own in decisions.values()],
        )
        for model, decisions in by_model.items()
    ]
    categories = next(iter(by_model.values()))
    return charts.bar_chart(list(categories), bars, x_label="shape bias, %", mark=0.5)


def _branch_charts(report: Report) -> list[dict]:
    """Accuracy over the share of the auxiliary branch, a chart for each network."""
    found = []
    for curve in branch_curves(report.comparison.measured):
        lines = [
            charts.Curve(
                report_rows.title(name),
                COLORS[number % len(COLORS)],
                [score.top1 for score in scores],
                [score.interval() for score in scores],
            )
            for number, (name, scores) in enumerate(curve.scores.items())
        ]
        svg = charts.line_chart(
            curve.shares,
            lines,
            x_label=f"share of {curve.auxiliary} in gamma and beta",
            y_label="top-1 accuracy, %",
        )
        found.append(dict(title=describe_branch_curve(curve), curves=lines, svg=svg))
    return found


def _reliability_charts(report: Report) -> list[dict]:
    """A diagram for each test set without attack, and one for each whole corrupted
    suite.
    """
    curves_of_suite: dict[str, list[charts.Curve]] = {}
    for measured in report.comparison.measured:
        summed: dict[str, CalibrationBins] = {}
        for name, result in measured.results.test_sets.items():
            if result.conditions.attack is not None:
                continue
            suite = row_of(name)
            summed[suite] = (
                summed[suite] + result.calibration if suite in summed else result.calibration
            )
        for suite, bins in summed.items():
            points_of_bins = list(bins.reliability_points())
            if not points_of_bins:
                continue
            confidences, accuracies, _ = zip(*points_of_bins)
            label = f"{measured.name} (ECE {percent(bins.expected_calibration_error)} %)"
            curves_of_suite.setdefault(suite, []).append(
                charts.Curve(label, report.colors[measured.name], accuracies, x=confidences)
            )
    return [
        dict(title=report_rows.title(suite), curves=curves, svg=charts.reliability_chart(curves))
        for suite, curves in curves_of_suite.items()
    ]


def _disagreements(report: Report) -> Optional[dict]:
    """The images on which the first two models disagree, on the first test set of both."""
    if len(report.models) < 2:
        return None
    first, second = report.comparison.measured[:2]
    for test in report.comparison.tests:
        if (test.first, test.second, test.measure) == (first.name, second.name, "top-1"):
            found: list[Disagreement] = find_disagreements(
                first, second, test.suite, report.open_images
            )
            return dict(
                suite=test.suite,
                counts=test.counts,
                first=first.name,
                second=second.name,
                images=found,
            )
    return None
