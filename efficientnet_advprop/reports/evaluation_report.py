"""The page of evaluations: one model beside published results, or several side by side.

page = make_page("B3", compare(read_measured(["runs/b3-advprop", "runs/b3-baseline"])))
pages.write(page, "runs/comparison")
"""

import functools
import json
import math
import statistics
from typing import Callable, Mapping, Optional, Sequence

import numpy as np

from efficientnet_advprop.config.suites import C_ARCHIVES
from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score, corruption_errors
from efficientnet_advprop.evaluation.results import Results, TestSetResult
from efficientnet_advprop.evaluation.test_set_name import (
    CLEAN_SUITES,
    by_severity,
    is_passed,
    parse_name,
    row_of,
    title,
)
from efficientnet_advprop.images.labeled_images import LabeledImages
from efficientnet_advprop.reports import charts, report_rows
from efficientnet_advprop.reports.comparison import (
    Comparison,
    Measured,
    PairedTest,
    is_fixed_yardstick,
    order_like,
)
from efficientnet_advprop.reports.pages import COLORS, Card, Page, Section, colors, legend
from efficientnet_advprop.reports.table import (
    Cell,
    Table,
    format_text,
    percent,
    points,
    probability,
)
from efficientnet_advprop.runtime.branches import MAIN, Branch, BranchMixture, parse_branch
from efficientnet_advprop.runtime.errors import UserError

# Test set → its images; None if they are not available.
OpenImages = Callable[[str], Optional[LabeledImages]]
_NUM_DISAGREEMENTS = 12  # shown of either kind
_LOWER_IS_BETTER = ("mCE", "relative mCE", "mean error")
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
        open_images: opens the images of a test set, for thumbnails.
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
    rows = []
    for (suite, quantity), by_model in by_row.items():
        best = (min if quantity in _LOWER_IS_BETTER else max)(one.value for _, one in by_model)
        has_best = len({one.value for _, one in by_model}) > 1 and quantity != "shape bias"
        for model, measure in by_model:
            is_best = has_best and measure.value == best
            value = percent(measure.value, measure.interval, marks=measure.remarks, best=is_best)
            rows.append(
                [
                    *(title(suite), quantity, Cell(model, color=dots.get(model, "")), value),
                    _published(measure),
                    _points(measure.difference),
                    *(
                        Cell() if value is None else percent(value)
                        for value in (measure.top5, measure.calibration_error)
                    ),
                    *(measure.num_images, measure.feeding),
                ]
            )
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
        rows.append(
            [
                *(title(test.suite), test.measure),
                Cell(test.second, color=dots[test.second]),
                Cell(test.first, color=dots[test.first], marks=test.remarks),
                Cell(difference, 100 * test.difference, (low, high)),
                *(
                    *(test.only_right or ("", "")),
                    probability(test.p_value),
                    probability(test.adjusted_p_value),
                ),
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
        "for mCE and mean errors; for these lower is better. ECE is the expected calibration error."
    )
    table = results_table(comparison)
    if "published" in table.shown().columns:
        note += " “Published” is of the same weights, where known; the difference is in points."
    for suite in suites:
        yardstick = "AlexNet" if is_fixed_yardstick(suite) else comparison.first.name
        note += f" The yardstick of {title(suite)}’s mCE (= 100) is {yardstick}."
    return Section("What was measured", note, tables=[table])


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
            tables=[_table_of_kinds(suite, scores, errors)] if errors else [],
        ),
        Section("", cards=cards, details={"All corruptions in figures": table}),
    ]


def _table_of_kinds(
    suite: str,
    scores: Mapping[str, Mapping[str, Mapping[int, Score]]],
    errors: Mapping[str, Mapping[str, float]],
) -> Table:
    """Returns mean accuracies and corruption errors of ImageNet-C's four kinds of corruptions."""
    rows = []
    for kind, names in C_ARCHIVES.items():
        for model, own in errors.items():
            accuracies = [score.top1 for name in names for score in scores[name][model].values()]
            error = percent(statistics.fmean(own[name] for name in names))
            rows.append([kind, model, percent(statistics.fmean(accuracies)), error])
    return Table(["kind", "model", "mean top-1", "mean CE"], rows, f"{suite}_by_kind")


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
    for (model, auxiliary, statistics_of), by_share in branch_curves(comparison.measured).items():
        of = f"{model}: main mixed with {auxiliary}, moving statistics of {statistics_of}"
        shares = list(by_share)
        scores = {name: [own[name] for own in by_share.values()] for name in by_share[shares[0]]}
        lines = [
            _curve(title(name), COLORS[number % len(COLORS)], dict(zip(shares, own)))
            for number, (name, own) in enumerate(scores.items())
        ]
        svg = _accuracy_chart(shares, lines, f"share of {auxiliary} in gamma and beta")
        cards.append(Card(of, svg=svg, lines=_key(lines)))
        rows = [
            [Cell(f"{share:g}", share), *map(_score_cell, own.values())]
            for share, own in by_share.items()
        ]
        found.append(Table([f"share of {auxiliary}", *map(title, scores)], rows, note=of))
    note = (
        "Gamma and beta of the main and of an auxiliary branch, mixed by their shares; all points "
        "of a chart use the moving statistics of the same branch. Bands: 95 % intervals."
    )
    section = Section("Between the batch norms", note, cards=cards, grid="two", tables=found)
    return [section] if cards else []


def branch_curves(
    measured: Sequence[Measured],
) -> dict[tuple[str, str, str], dict[float, dict[str, Score]]]:
    """Returns accuracies between a network's branches, of at least two points, one of them a
    mixture of main and an auxiliary branch.

    Returns:
        (model, auxiliary branch, branch whose moving statistics are used) → share of the
        auxiliary branch in [0, 1], rising → test set (clean images, each attack, of a chain the
        last) → score.
    """
    branches = [
        (one.results, parse_branch(one.results.config.get("branch") or MAIN)) for one in measured
    ]
    kinds = dict.fromkeys(
        (results.model, _auxiliary(branch), branch.statistics)
        for results, branch in branches
        if isinstance(branch, BranchMixture) and _auxiliary(branch) is not None
    )
    curves = {}
    for model, auxiliary, statistics_of in kinds:
        points_of: dict[float, Results] = {}
        for results, branch in branches:
            if results.model != model:
                continue
            if branch == statistics_of:  # the end of the curve that needs no mixture
                points_of[float(branch != MAIN)] = results
            elif isinstance(branch, BranchMixture):
                if (_auxiliary(branch), branch.statistics) == (auxiliary, statistics_of):
                    points_of[branch.share_of(auxiliary)] = results
        shares = sorted(points_of)
        names = [
            name
            for name in _names_over_shares(points_of[shares[0]])
            if all(name in results.test_sets for results in points_of.values())
        ]
        if len(shares) > 1 and names:
            curves[model, auxiliary, statistics_of] = {
                share: {name: points_of[share].test_sets[name].score for name in names}
                for share in shares
            }
    return curves


def _auxiliary(branch: Branch) -> Optional[str]:
    names = [name for name, _ in branch.shares] if isinstance(branch, BranchMixture) else []
    others = [name for name in names if name != MAIN]
    return others[0] if len(names) == 2 and len(others) == 1 else None


def _names_over_shares(results: Results) -> list[str]:
    parts = {name: parse_name(name) for name in results.test_sets}
    return [
        name
        for name, own in parts.items()
        if name in CLEAN_SUITES
        or own.epsilon is not None
        or (own.chain is not None and not is_passed(name, parts))
    ]


def _shape_section(comparison: Comparison) -> list[Section]:
    """Shape bias by category; no bar where neither shape nor texture was answered."""
    found = {m.name: report_rows.shape_decisions(m) for m in comparison.measured}
    by_model = {model: decisions for model, decisions in found.items() if decisions is not None}
    if not by_model:
        return []
    dots = colors(list(found))
    bars, rows = [], []
    for model, decisions in by_model.items():
        biases = []
        for category, (num_images, num_shape, num_texture) in decisions.items():
            num_decided = num_shape + num_texture
            biases.append(num_shape / num_decided if num_decided else math.nan)
            bias = percent(biases[-1]) if num_decided else Cell()
            rows.append([category, model, num_images, num_shape, num_texture, bias])
        bars.append(charts.Curve(model, dots[model], biases))
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
    test = next(
        (t for t in comparison.tests if [t.first, t.second] == names and t.only_right), None
    )
    if test is None:
        return []
    dots = colors(names)

    def class_name(label):
        return class_names[label] if 0 <= label < len(class_names) else str(label)

    note = (
        f"{title(test.suite)}: {test.only_right[0]:,} images that only {test.first} gets "
        f"right, {test.only_right[1]:,} that only {test.second} does; of either kind "
        "those at which the other is surest of its error."
    )
    sections = [Section(f"Where {test.first} and {test.second} disagree", note)]
    thumbnail = thumbnails(open_images(test.suite))
    found = find_disagreements(*comparison.measured[:2], test.suite, _NUM_DISAGREEMENTS)
    for model, images in found.items():
        cards = [
            Card(
                class_name(label),
                images=[(thumbnail(image_id) or "", image_id)],
                lines=[
                    Cell(f"{class_name(answer)} {100 * confidence:.0f} %", color=dots[name])
                    for name, (answer, confidence) in answers.items()
                ],
            )
            for image_id, label, answers in images
        ]
        if cards:
            key = {f"only {model} is right": dots[model]}
            sections.append(Section("", legend=key, cards=cards, grid="thumbs"))
    return sections


def find_disagreements(
    first: Measured, second: Measured, test_set: str, num_each: int
) -> dict[str, list[tuple[str, int, dict[str, tuple[int, float]]]]]:
    """Returns the images that only one of two models gets right: that model → (image id, label,
    model → its class and that one's probability), the surest errors of the other model first.

    There are none if predictions were not kept, or are of different images.
    """
    predictions = [measured.predictions(test_set) for measured in (first, second)]
    order = None if None in predictions else order_like(*predictions)
    if order is None:
        return {}
    classes = [predictions[0].classes[:, 0], predictions[1].classes[order, 0]]
    confidences = [predictions[0].probabilities[:, 0], predictions[1].probabilities[order, 0]]
    labels, image_ids = predictions[0].labels, predictions[0].image_ids
    found = {}
    for right, wrong, model in ((0, 1, first), (1, 0, second)):
        only = np.flatnonzero((classes[right] == labels) & (classes[wrong] != labels))
        surest = only[np.argsort(-confidences[wrong][only], kind="stable")][:num_each]
        found[model.name] = [
            (
                str(image_ids[row]),
                int(labels[row]),
                {
                    one.name: (int(classes[i][row]), float(confidences[i][row]))
                    for i, one in enumerate((first, second))
                },
            )
            for row in surest
        ]
    return found


def thumbnails(images: Optional[LabeledImages]) -> Callable[[str], Optional[str]]:
    """Returns what makes a `data:` URI of an image id; None where the image is not at hand."""
    if images is None:
        return lambda image_id: None
    positions = {images.image_id(position): position for position in range(images.num_images)}

    def thumbnail(image_id):
        try:
            return charts.thumbnail_uri(images.encoded(positions[image_id]))
        except (KeyError, UserError, OSError):
            return None

    return thumbnail


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
                        f"{result.conditions.describe()}; seed {result.conditions.seed}",
                        marks=result.shortfalls,
                    ),
                    result.conditions.data_digest[:16],
                ]
                for name, result in results.test_sets.items()
            ],
        )
    table = Table(["model", "weights (SHA-256)", "folder", "versions"], rows)
    return Section("How this was measured", tables=[table], details=details)


def _num_images(result: TestSetResult) -> Cell:
    num, expected = result.score.num_images, result.expected_num_images
    return Cell(f"{num:,} of {expected:,}" if expected else f"{num:,}", num)


def format_console(comparison: Comparison) -> str:
    """Returns the main table and what the tests say, for a console."""
    lines = ["Per cent.", format_text(results_table(comparison)), ""]
    lines += map(describe_test, comparison.tests)
    lines += [f"Not compared, {line}." for line in comparison.not_compared]
    return "\n".join(lines)
