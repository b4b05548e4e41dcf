"""The rows of a report: each measured value with interval, published value and remarks.

Resolution and crop belong to every row. Whatever makes a value differ from the proper
score of the test set (missing images, a sample of the images, corruptions generated
here) is a remark, which every rendering prints.
"""

import dataclasses
import math
import os
import re
import statistics
from typing import Mapping, Optional, Sequence

from efficientnet_advprop.config.tables import AUTOATTACK_VERSIONS as VERSIONS
from efficientnet_advprop.evaluation import metrics
from efficientnet_advprop.evaluation.results import ImagePredictions
from efficientnet_advprop.evaluation.test_set_name import (
    CLEAN,
    by_severity,
    is_passed,
    parse_name,
    row_of,
    title,
)
from efficientnet_advprop.images.robustness_sets import cue_conflict_categories
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from efficientnet_advprop.reports import published_results, significance
from efficientnet_advprop.reports.comparison import Comparison, Measured, is_fixed_yardstick
from efficientnet_advprop.reports.published_results import (
    ALEXNET_CLEAN_ERROR,
    PublishedFigure,
    find_published,
)

_TEXTURE = re.compile(r"-([a-z]+)\d*\.[A-Za-z]+$")  # of airplane1-bicycle2.png


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measured value of one model, a fraction of 1 (of either sign if it is a difference)."""

    suite: str  # the test set, or the corrupted suite
    quantity: str  # "top-1", "mCE", "shape bias", …
    value: float  # nan: undefined, for the reason given in the remarks
    interval: Optional[tuple[float, float]]  # of 95 %; None: there is none
    num_images: int  # in all test sets of the suite
    feeding: str  # resolution, crop and other conditions, in words
    remarks: Sequence[str] = ()  # what a reader must know before trusting the value
    published: Optional[PublishedFigure] = None  # of the same weights
    is_comparable: bool = False  # measured under the same conditions, as far as they are known
    top5: Optional[float] = None  # None for corrupted suites, and for few classes
    calibration_error: Optional[float] = None  # None for corrupted suites

    @property
    def difference(self) -> Optional[float]:
        """The difference from a comparable published value, in percentage points."""
        if self.published is None or not self.is_comparable:
            return None
        return 100 * self.value - self.published.value


def list_measures(comparison: Comparison, measured: Measured) -> list[Measure]:
    """Returns all values of one model, in the order in which they were measured."""
    suites = dict.fromkeys(row_of(name) for name in measured.results.test_sets)
    measures = []
    for suite in suites:
        if suite not in measured.results.test_sets:
            measures += _measure_corruptions(comparison, measured, suite)
            continue
        measures.append(_measure_top1(measured, suite))
        for derive in (_measure_together, _measure_shape_bias, _measure_effective_robustness):
            derived = derive(measured, suite)
            measures += [] if derived is None else [derived]
    return measures


def _measure_together(measured: Measured, test_set: str) -> Optional[Measure]:
    # At the chain's last attack; with the doubts of all of them.
    results = measured.results.test_sets
    own_chain = parse_name(test_set).chain
    chain = [name for name in results if parse_name(name).chain == own_chain]
    attacks = tuple(name.rpartition("/")[2] for name in chain if not name.endswith(f"/{CLEAN}"))
    if own_chain is None or is_passed(test_set, results) or attacks not in VERSIONS.values():
        return None
    (version,) = (version for version, held in VERSIONS.items() if held == attacks)
    last = _measure_top1(measured, test_set)
    remarks = dict.fromkeys(remark for name in chain for remark in results[name].remarks)
    conditions = results[test_set].conditions
    return dataclasses.replace(
        last,
        suite=own_chain,
        feeding=f"{conditions.feeding}; AutoAttack {version}; {conditions.branch} batch norms",
        remarks=list(remarks),
    )


def _measure_shape_bias(measured: Measured, test_set: str) -> Optional[Measure]:
    # Over the images that were decided either way.
    decisions = shape_decisions(measured) if test_set == "cue_conflict" else None
    if decisions is None:
        return None
    _, num_shape, num_texture = map(sum, zip(*decisions.values()))
    num_decided = num_shape + num_texture
    result = measured.results.test_sets[test_set]
    return Measure(
        test_set,
        "shape bias",
        num_shape / num_decided if num_decided else math.nan,
        metrics.wilson_interval(num_shape, num_decided) if num_decided else None,
        num_decided,
        result.conditions.describe(),
        result.remarks + ([] if num_decided else ["no image was decided either way"]),
    )


def shape_decisions(measured: Measured) -> Optional[dict[str, tuple[int, int, int]]]:
    """Returns `count_decisions` on cue conflict; None without predictions."""
    predictions = measured.predictions("cue_conflict")
    return None if predictions is None else count_decisions(predictions)


def count_decisions(predictions: ImagePredictions) -> dict[str, tuple[int, int, int]]:
    """Counts what a network goes by on images with the shape of one category and the texture
    of another (Geirhos et al., ICLR 2019).

    Returns:
        Category of the shape → images in conflict, classified by shape, and by texture.
    """
    categories = list(cue_conflict_categories())
    counts = {category: [0, 0, 0] for category in categories}
    for row, image_id in enumerate(predictions.image_ids):
        match = _TEXTURE.search(os.path.basename(str(image_id)))
        shape, texture = categories[predictions.labels[row]], match[1] if match else None
        if texture not in counts or texture == shape:
            continue
        top = predictions.classes[row, 0]
        predicted = categories[top] if top >= 0 else None
        counts[shape][0] += 1
        counts[shape][1] += predicted == shape
        counts[shape][2] += predicted == texture
    return {category: (own[0], own[1], own[2]) for category, own in counts.items()}


def _measure_effective_robustness(measured: Measured, test_set: str) -> Optional[Measure]:
    found = published_results.expected_accuracy(measured.results, test_set)
    if found is None:
        return None
    expected, base_name = found
    result, base = (measured.results.test_sets[name] for name in (test_set, base_name))
    low, high = result.score.interval()  # of the accuracy alone: the line is taken as exact
    return Measure(
        test_set,
        "effective robustness",
        result.score.top1 - expected,
        (low - expected, high - expected),
        result.score.num_images,
        f"above the {100 * expected:.1f} % expected at {100 * base.score.top1:.1f} % on "
        f"{title(base_name)} ({published_results.TAORI})",
        result.remarks + [f"{title(base_name)}: {remark}" for remark in base.remarks],
    )


def _problems_of_sets(problems_of: Mapping[str, Sequence[str]]) -> list[str]:
    # Each problem with the sets that have it; at most three, the rest is counted.
    sets_with: dict[str, list[str]] = {}
    for name, problems in problems_of.items():
        for problem in problems:
            sets_with.setdefault(problem, []).append(name)
    lines = [
        f"{names[0] if len(names) == 1 else f'{len(names)} sets ({names[0]}, …)'}: {problem}"
        for problem, names in sets_with.items()
    ]
    more = [f"and {len(lines) - 3} more such problems"] if len(lines) > 3 else []
    return lines[:3] + more


def _measure_top1(measured: Measured, test_set: str) -> Measure:
    result = measured.results.test_sets[test_set]
    config = measured.results.config
    conditions = result.conditions
    remarks = result.remarks
    published = find_published(config.get("published"), test_set)
    is_comparable = not remarks and conditions.branch == "main"
    if published is not None and not published.is_of_same_code:
        is_comparable = False
    if published and test_set == "imagenet":
        row = PUBLISHED[config["published"]]
        if (conditions.image_size, conditions.crop) != (row.image_size, row.crop):
            is_comparable = False
            published = dataclasses.replace(
                published, note=f"measured at {row.image_size} px, crop {row.crop}"
            )
    return Measure(
        test_set,
        "top-1",
        result.score.top1,
        result.score.interval(),
        result.score.num_images,
        conditions.describe(),
        remarks,
        published,
        is_comparable,
        result.score.top5 if measured.results.has_top5 else None,
        result.calibration.expected_calibration_error,
    )


def _measure_corruptions(comparison: Comparison, measured: Measured, suite: str) -> list[Measure]:
    results = measured.results
    baseline = comparison.yardstick(suite)
    sets = {name: results.test_sets[name] for name in by_severity(results.test_sets, suite)}
    remarks = _problems_of_sets(
        {parse_name(name).variant: result.shortfalls for name, result in sets.items()}
    )
    remarks += dict.fromkeys(
        remark
        for result in sets.values()
        for remark in result.remarks
        if remark not in result.shortfalls
    )
    missing = results.missing(suite)
    if missing:
        remarks.append(
            f"{len(missing)} of the {len(missing) + len(sets)} sets were not measured "
            f"({missing[0]}, …): no mCE"
        )
    common = dict(
        suite=suite,
        num_images=sum(result.score.num_images for result in sets.values()),
        feeding=" / ".join(dict.fromkeys(result.conditions.describe() for result in sets.values())),
        remarks=remarks,
    )
    errors = results.errors(suite)
    mean_error = statistics.fmean(error for by_severity in errors.values() for error in by_severity)
    answers = measured.wrong_answers(suite)

    def interval(yardstick):
        if answers is None:
            return None
        contributions = significance.corruption_contributions(answers[1], yardstick)
        return significance.bootstrap_mean_interval(contributions)

    ones = {name: (1.0,) * len(by_severity) for name, by_severity in errors.items()}
    plain_interval = None if missing else interval(ones)
    plain = Measure(quantity="mean error", value=mean_error, interval=plain_interval, **common)
    if missing or baseline is None:
        return [plain]
    measures = [
        Measure(
            quantity="mCE",
            value=metrics.mean_corruption_error(errors, baseline),
            interval=interval(baseline) if is_fixed_yardstick(suite) else None,
            published=find_published(results.config.get("published"), suite),
            is_comparable=not remarks,
            **common,
        )
    ]
    relative = _relative_mce(comparison, measured, suite)
    if relative is not None:
        clean = results.test_sets[clean_test_set(suite)]
        common["feeding"] += f"; clean images {clean.conditions.describe()}"
        common["remarks"] = [*remarks, *(f"clean images: {remark}" for remark in clean.remarks)]
        measures.append(Measure(quantity="relative mCE", value=relative, interval=None, **common))
    return [*measures, plain]


def clean_test_set(suite: str) -> str:
    """Returns a corrupted suite's clean test set: "imagenet" for "imagenet_c"."""
    head, colon, folder = suite.partition(":")
    return f"{head.partition('_c')[0]}{colon}{folder}"


def _relative_mce(comparison: Comparison, measured: Measured, suite: str) -> Optional[float]:
    clean = clean_test_set(suite)
    baseline = comparison.yardstick(suite)
    results = measured.results.test_sets
    if clean not in results:
        return None
    if is_fixed_yardstick(suite):
        baseline_clean_error = ALEXNET_CLEAN_ERROR
    elif clean in comparison.first.results.test_sets:
        baseline_clean_error = comparison.first.results.test_sets[clean].score.error
    else:  # the yardstick has no clean error to set the others in relation to
        return None
    try:
        return metrics.relative_mean_corruption_error(
            measured.results.errors(suite),
            results[clean].score.error,
            baseline,
            baseline_clean_error,
        )
    except ValueError:  # some corruption does not increase the error of the baseline
        return None
