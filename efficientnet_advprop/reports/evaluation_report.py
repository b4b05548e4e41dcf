"""The page of evaluations: one model beside published results, or several side by side.

page = make_page("B3", compare(read_measured(["runs/b3-advprop", "runs/b3-baseline"])))
pages.write(page, "runs/comparison")
"""

import functools
import json
import math
import statistics
from typing import Mapping, Optional, Sequence

from efficientnet_advprop.evaluation.calibration import CalibrationBins
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
    PairedTest,
    is_fixed_yardstick,
)
from efficientnet_advprop.reports.disagreements import OpenImages, find_disagreements
from efficientnet_advprop.reports.pages import COLORS, Card, Page, Section, colors, legend
from efficientnet_advprop.reports.suite_titles import title
from efficientnet_advprop.reports.table import (
    Cell,
    Table,
    format_text,
    percent,
    points,
    probability,
)

SIDE_BY_SIDE_NOTE = (
    "The tests are paired: both models classified the same images. Top-1 is compared by McNemar’s "
    "exact test, with bootstrap intervals over images; mCE by a paired t-test over images, with "
    "intervals from resampling images together with all their corruptions. A model is “better” or "
    "“worse” if the p-value, corrected by Holm’s method for all tests here, is below 0.05; "
    "otherwise it is “level”."
)
_VERDICTS = {"better": "better than", "worse": "worse than", "level": "level with"}


def make_page(
    title: str,
    comparison: Comparison,
    *,
    class_names: Sequence[str] = (),
    open_images: OpenImages = lambda test_set: None,
) -> Page:
    """Returns the page of a comparison.

    Args:
        title: one line.
        comparison: of at least one model.
        class_names: by label; empty: the labels are shown as numbers.
        open_images: opens the images for thumbnails, see `disagreements`.
    """
    models = [measured.name for measured in comparison.measured]
    suites = dict.fromkeys(
        suite for measured in comparison.measured for suite in measured.results.corrupted_suites()
    )
    sections = [_section_of_results(comparison, suites)]
    if len(models) > 1:
        sections.append(
            Section(
                "Side by side",
                SIDE_BY_SIDE_NOTE if comparison.tests else "Nothing could be compared.",
                [f"Not compared, {line}" for line in comparison.not_compared],
                tables=[comparison_table(comparison)],
            )
        )
    for suite in suites:
        sections += _sections_of_corruptions(comparison, suite)
    for section in (_attack_section, _branch_section, _shape_section, _reliability_section):
        sections += section(comparison)
    sections += _disagreement_sections(comparison, class_names, open_images)
    sections.append(_section_of_methods(comparison))
    return Page(title, sections)


def results_table(comparison: Comparison) -> Table:
    """Returns every measured value of every model, in per cent, a model below the other."""
    by_row: dict[tuple[str, str], list[tuple[str, report_rows.Measure]]] = {}
    for measured in comparison.measured:
        for measure in report_rows.list_measures(comparison, measured):
            row = by_row.setdefault((measure.suite, measure.quantity), [])
            row.append((measured.name, measure))
    columns = ["test set", "measure", "model", "measured", "published", "difference"]
    columns += ["top-5", "ECE", "images", "input size"]
    dots = legend([measured.name for measured in comparison.measured])
    rows = [
        [
            title(suite),
            quantity,
            Cell(model, color=dots.get(model, "")),
            percent(measure.value, measure.interval, marks=measure.remarks),
            _published(measure),
            _points(measure.difference),
            Cell() if measure.top5 is None else percent(measure.top5),
            Cell() if measure.calibration_error is None else percent(measure.calibration_error),
            measure.num_images,
            measure.feeding,
        ]
        for (suite, quantity), by_model in by_row.items()
        for model, measure in by_model
    ]
    return Table(columns, rows, "results")


def _published(measure: report_rows.Measure) -> Cell:
    published = measure.published
    if published is None:
        return Cell()
    notes = [f"{published.source} ({published.evidence})", published.note]
    if measure.difference is None:
        notes.append("not measured alike")
    return Cell(f"{published.value:.1f}", published.value, notes=list(filter(None, notes)))


def _points(difference: Optional[float]) -> Cell:
    return Cell() if difference is None else Cell(points(difference), difference)


def comparison_table(comparison: Comparison) -> Table:
    """Returns the tests of all pairs of models, in percentage points."""
    columns = ["test set", "measure", "second", "first", "difference", "only first right"]
    columns += ["only second right", "p", "p (Holm)", "second is"]
    dots = colors([measured.name for measured in comparison.measured])
    rows = []
    for test in comparison.tests:
        low, high = (100 * end for end in test.interval)
        difference = f"{points(100 * test.difference)} ({points(low)} … {points(high)})"
        counts = test.counts
        only = ["", ""] if counts is None else [counts.num_only_first, counts.num_only_second]
        rows.append(
            [
                *(title(test.suite), test.measure),
                Cell(test.second, color=dots[test.second]),
                Cell(test.first, color=dots[test.first], marks=test.remarks),
                Cell(difference, 100 * test.difference, (low, high)),
                *(*only, probability(test.p_value), probability(test.adjusted_p_value)),
                Cell(test.verdict, verdict=True),
            ]
        )
    return Table(columns, rows, "comparison")


def describe_test(test: PairedTest) -> str:
    """Describes a test in one sentence, with the difference, its interval and Holm's p."""
    low, high = (points(100 * end) for end in test.interval)
    p_value = probability(test.adjusted_p_value).text
    p_value = p_value if p_value.startswith("<") else f"= {p_value}"
    return (
        f"{title(test.suite)}, {test.measure}: {test.second} is {_VERDICTS[test.verdict]} "
        f"{test.first} ({points(100 * test.difference)} points, {low} … {high}, p {p_value})."
    )


def _section_of_results(comparison: Comparison, suites: Sequence[str]) -> Section:
    note = (
        "Per cent, in brackets 95 % intervals: Wilson’s for accuracies, by bootstrap over images "
        "for mCE and mean errors; for these lower is better. “Published” is of the same weights, "
        "where known; the difference is in points. ECE is the expected calibration error."
    )
    for suite in suites:
        yardstick = "AlexNet" if is_fixed_yardstick(suite) else comparison.first.name
        note += f" The yardstick of {title(suite)}’s mCE (= 100) is {yardstick}."
    return Section("What was measured", note, tables=[results_table(comparison)])


def _sections_of_corruptions(comparison: Comparison, suite: str) -> list[Section]:
    """An overview of the models that measured the whole suite, and each corruption."""
    present = [m for m in comparison.measured if suite in m.results.corrupted_suites()]
    dots = colors([measured.name for measured in comparison.measured])
    yardstick = comparison.yardstick(suite)
    errors = {
        measured.name: corruption_errors(measured.results.errors(suite), yardstick)
        for measured in present
        if yardstick is not None and suite in measured.whole_suites
    }
    corruptions = dict.fromkeys(c for m in present for c in m.results.corruptions(suite))
    scores = {  # corruption → model → severity → score
        corruption: {m.name: _scores_by_severity(m, suite, corruption) for m in present}
        for corruption in corruptions
    }
    cards, rows = [], []
    for corruption, by_model in scores.items():
        lines = []
        for model, own in by_model.items():
            cells = [
                _score_cell(own[severity]) if severity in own else "" for severity in range(1, 6)
            ]
            error = percent(errors[model][corruption]) if model in errors else Cell()
            rows.append([corruption.replace("_", " "), model, *cells, error])
            if own:
                mean = percent(statistics.fmean(score.top1 for score in own.values()))
                lines.append(Cell(f"mean {mean.text}", color=dots[model]))
        curves = [_curve(model, dots[model], own) for model, own in by_model.items() if own]
        svg = charts.line_chart(range(1, 6), curves, size=(2.9, 1.6))
        cards.append(Card(corruption.replace("_", " "), svg=svg, lines=lines))
    overview = []
    if errors:
        names = [corruption.replace("_", " ") for corruption in corruptions]
        label = "corruption error, % of the yardstick’s"
        bars = [charts.Curve(m, dots[m], list(own.values())) for m, own in errors.items()]
        means = []
        for model in errors:
            columns = zip(*([s.top1 for s in scores[c][model].values()] for c in corruptions))
            means.append(charts.Curve(model, dots[model], [*map(statistics.fmean, columns)]))
        overview = [
            Card("Corruption errors", svg=charts.bar_chart(names, bars, x_label=label, mark=1.0)),
            Card("Mean over the corruptions", svg=_accuracy_chart(range(1, 6), means, "severity")),
        ]
    note = "Accuracy at severities 1 to 5; bands: 95 % intervals; scale: 0 to 100 %."
    table = Table(
        ["corruption", "model", "1", "2", "3", "4", "5", "CE"], rows, f"{suite}_by_severity"
    )
    key = legend([measured.name for measured in comparison.measured])
    return [
        Section(
            f"{title(suite)}, corruption by corruption",
            note,
            legend=key,
            cards=overview,
            grid="two",
        ),
        Section("", cards=cards, details={"All corruptions in figures": table}),
    ]


def _scores_by_severity(measured: Measured, suite: str, corruption: str) -> dict[int, Score]:
    names = by_severity(measured.results.test_sets, suite, corruption)
    return {parse_name(name).severity: measured.results.test_sets[name].score for name in names}


def _score_cell(score: Score) -> Cell:
    return percent(score.top1, score.interval())


def _curve(label: str, color: str, scores: Mapping[float, Score]) -> charts.Curve:
    values = [score.top1 for score in scores.values()]
    intervals = [score.interval() for score in scores.values()]
    return charts.Curve(label, color, values, intervals, x=list(scores))


def _accuracy_chart(x, curves: Sequence[charts.Curve], x_label: str, **options) -> str:
    label = "top-1 accuracy, %"
    return charts.line_chart(x, curves, x_label=x_label, y_label=label, **options)


def _key(curves: Sequence[charts.Curve]) -> list[Cell]:
    return [Cell(curve.label, color=curve.color) for curve in curves]


def _attack_section(comparison: Comparison) -> list[Section]:
    """Accuracy over ε, beginning with the clean images."""
    dots = colors([measured.name for measured in comparison.measured])
    curves = []
    all_epsilons = set()
    for measured in comparison.measured:
        results = measured.results.test_sets
        attacked = {parse_name(name).epsilon: name for name in results}
        epsilons = sorted(attacked.keys() - {None})
        if not epsilons:
            continue
        clean = next((name for name in CLEAN_SUITES if name in results), None)
        by_epsilon = ({0.0: results[clean].score} if clean else {}) | {
            e: results[attacked[e]].score for e in epsilons
        }
        curves.append(_curve(measured.name, dots[measured.name], by_epsilon))
        all_epsilons.update(by_epsilon)
    if len(all_epsilons) < 2:
        return []
    svg = _accuracy_chart(sorted(all_epsilons), curves, "ε, pixels of 255", size=(5.6, 2.6))
    note = (
        "An image counts as right only if it is so before and after the attack (bands: 95 % "
        "intervals)."
    )
    return [Section("Under attack", note, cards=[Card(svg=svg, lines=_key(curves))], grid="one")]


def _branch_section(comparison: Comparison) -> list[Section]:
    """Accuracy over the share of the auxiliary branch, a chart and a table for each network."""
    cards, found = [], []
    for curve in branch_curves(comparison.measured):
        lines = [
            _curve(title(name), COLORS[number % len(COLORS)], dict(zip(curve.shares, scores)))
            for number, (name, scores) in enumerate(curve.scores.items())
        ]
        svg = _accuracy_chart(curve.shares, lines, f"share of {curve.auxiliary} in gamma and beta")
        cards.append(Card(describe_branch_curve(curve), svg=svg, lines=_key(lines)))
        columns = [f"share of {curve.auxiliary}", *map(title, curve.scores)]
        rows = [
            [Cell(f"{share:g}", share), *map(_score_cell, scores)]
            for share, *scores in zip(curve.shares, *curve.scores.values())
        ]
        found.append(Table(columns, rows, note=describe_branch_curve(curve)))
    note = (
        "Gamma and beta of the main and of an auxiliary branch, mixed by their shares; all points "
        "of a chart use the moving statistics of the same branch. Bands: 95 % intervals."
    )
    section = Section("Between the batch norms", note, cards=cards, grid="two", tables=found)
    return [section] if cards else []


def describe_branch_curve(curve: BranchCurve) -> str:
    """Says of which network and branches a curve is."""
    return (
        f"{curve.model}: main mixed with {curve.auxiliary}, moving statistics of {curve.statistics}"
    )


def _shape_section(comparison: Comparison) -> list[Section]:
    """Shape bias by category; no bar where neither shape nor texture was answered."""
    found = {m.name: report_rows.shape_decisions(m) for m in comparison.measured}
    by_model = {model: decisions for model, decisions in found.items() if decisions is not None}
    if not by_model:
        return []
    dots = colors(list(found))
    bars, rows = [], []
    for model, decisions in by_model.items():
        biases = [own.shape_bias for own in decisions.values()]
        biases = [math.nan if bias is None else bias for bias in biases]
        bars.append(charts.Curve(model, dots[model], biases))
        rows += [
            [
                *(category, model, own.num_images, own.num_shape, own.num_texture),
                Cell() if own.shape_bias is None else percent(own.shape_bias),
            ]
            for category, own in decisions.items()
        ]
    columns = ["shape", "model", "images in conflict", "by shape", "by texture", "shape bias"]
    categories = list(next(iter(by_model.values())))
    svg = charts.bar_chart(categories, bars, x_label="shape bias, %", mark=0.5)
    note = (
        "Cue conflict, by the category of the shape: of the images answered by their shape or by "
        "their texture, how many by their shape. Without a bar: none was answered by either."
    )
    card = Card(svg=svg, lines=_key(bars))
    table = Table(columns, rows, "shape_bias")
    return [Section("Shape or texture", note, cards=[card], grid="one", tables=[table])]


def _reliability_section(comparison: Comparison) -> list[Section]:
    """A diagram for each test set without attack, and one for each whole corrupted suite."""
    dots = colors([measured.name for measured in comparison.measured])
    curves_of_suite: dict[str, list[charts.Curve]] = {}
    for measured in comparison.measured:
        by_suite: dict[str, list[CalibrationBins]] = {}
        for name, result in measured.results.test_sets.items():
            if result.conditions.attack is None:
                by_suite.setdefault(row_of(name), []).append(result.calibration)
        for suite, parts in by_suite.items():
            bins = functools.reduce(lambda one, other: one + other, parts)
            found = list(bins.reliability_points())
            if not found:
                continue
            confidences, accuracies, _ = zip(*found)
            label = f"{measured.name} (ECE {100 * bins.expected_calibration_error:.1f} %)"
            curve = charts.Curve(label, dots[measured.name], accuracies, x=confidences)
            curves_of_suite.setdefault(suite, []).append(curve)
    cards = [
        Card(title(suite), svg=charts.reliability_chart(curves), lines=_key(curves))
        for suite, curves in curves_of_suite.items()
    ]
    note = (
        "Above the dashed diagonal a network is more often right than it says, below it is "
        "overconfident. Fifteen bins of equal width; ECE is their mean distance from the diagonal, "
        "weighted by their images."
    )
    return [Section("Confidence and accuracy", note, cards=cards)] if cards else []


def _disagreement_sections(
    comparison: Comparison, class_names: Sequence[str], open_images: OpenImages
) -> list[Section]:
    """The images on which the first two models disagree, on the first test set of both."""
    names = [measured.name for measured in comparison.measured[:2]]
    test = next((t for t in comparison.tests if [t.first, t.second] == names and t.counts), None)
    if test is None:
        return []
    found = find_disagreements(*comparison.measured[:2], test.suite, open_images)
    dots = colors(names)

    def class_name(label):
        return class_names[label] if 0 <= label < len(class_names) else str(label)

    note = (
        f"{title(test.suite)}: {test.counts.num_only_first:,} images that only {test.first} gets "
        f"right, {test.counts.num_only_second:,} that only {test.second} does; of either kind "
        "those at which the other is surest of its error."
    )
    sections = [Section(f"Where {test.first} and {test.second} disagree", note)]
    for model in names:
        cards = [
            Card(
                class_name(image.label),
                images=[(image.thumbnail or "", image.image_id)],
                lines=[
                    Cell(f"{class_name(label)} {100 * confidence:.0f} %", color=dots[name])
                    for name, (label, confidence) in image.answers.items()
                ],
            )
            for image in found
            if image.right == model
        ]
        if cards:
            key = {f"only {model} is right": dots[model]}
            sections.append(Section("", legend=key, cards=cards, grid="thumbs"))
    return sections


def _section_of_methods(comparison: Comparison) -> Section:
    rows, details = [], {}
    for measured in comparison.measured:
        results = measured.results
        versions = ", ".join(
            f"{package} {version}" for package, version in results.versions.items()
        )
        digest = results.weights_digest[:16] or "unknown"
        rows.append([measured.name, digest, measured.directory or "", versions])
        details[f"{measured.name}: config"] = json.dumps(results.config, indent=1)
        details[f"{measured.name}: data"] = Table(
            ["test set", "images", "conditions", "data (SHA-256)"],
            [
                [
                    str(name),
                    _num_images(result),
                    Cell(
                        f"{report_rows.describe_conditions(result.conditions)}; seed "
                        f"{result.conditions.seed}",
                        marks=result.shortfalls,
                    ),
                    result.conditions.data_digest[:16],
                ]
                for name, result in results.test_sets.items()
            ],
        )
    table = Table(["model", "weights (SHA-256)", "folder", "versions"], rows)
    return Section("How this was measured", tables=[table], details=details)


def _num_images(result) -> Cell:
    num, expected = result.score.num_images, result.expected_num_images
    return Cell(f"{num:,} of {expected:,}" if expected else f"{num:,}", num)


def format_console(comparison: Comparison) -> str:
    """Returns the main table and what the tests say, for a console."""
    lines = ["Per cent.", format_text(results_table(comparison)), ""]
    lines += map(describe_test, comparison.tests)
    lines += [f"Not compared, {line}." for line in comparison.not_compared]
    return "\n".join(lines)
