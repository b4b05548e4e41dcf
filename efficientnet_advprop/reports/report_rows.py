"""The rows of a report: each measured value with interval, published value and remarks.

Usage:

    for measure in list_measures(comparison, measured):
        measure.title, measure.value, measure.interval, measure.published, measure.remarks

Resolution and crop belong to every row. Whatever makes a value differ from the proper
score of the test set (missing images, a sample of the images, corruptions generated
here) is a remark, which reports must print.
"""

import dataclasses
import re
import statistics
from typing import Mapping, Optional, Sequence

from efficientnet_advprop.evaluation import metrics
from efficientnet_advprop.evaluation.results import Conditions, TestSetResult, describe_attack
from efficientnet_advprop.evaluation.test_set_name import TestSetName, by_severity
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from efficientnet_advprop.reports import significance
from efficientnet_advprop.reports.comparison import Comparison, Measured, is_fixed_yardstick
from efficientnet_advprop.reports.published_results import (
    ALEXNET_CLEAN_ERROR,
    PublishedFigure,
    find_published,
)

_TITLES = {
    "imagenet": "ImageNet",
    "imagenet_c": "ImageNet-C",
    "imagenet_c_made": "ImageNet-C, made here",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_sketch": "ImageNet-Sketch",
    "stylized": "Stylized-ImageNet",
    "pgd": "Under PGD",
    "digits": "Digits",
    "digits_c": "Digits, corrupted",
    "imagenet_c_extra": "ImageNet-C, the four further corruptions",
    "imagenet_c_bar": "ImageNet-C-bar",
    "imagenet_3dcc": "ImageNet-3DCC",
    "imagenet_w": "ImageNet-W",
    "imagenet_real": "ImageNet ReaL",
    "objectnet": "ObjectNet",
    "cue_conflict": "Cue conflict",
    "autoattack": "AutoAttack",
    "robustbench": "RobustBench",
}
_NORM_TITLES = {"linf": "L∞", "l2": "L2"}
_STAGE_TITLES = {
    "clean": "clean",
    "apgd_ce": "after APGD-CE",
    "apgd_dlr": "after APGD-DLR",
    "apgd_t": "after APGD-T",
    "fab": "after FAB",
    "fab_t": "after FAB-T",
    "square": "after Square",
    "square_alone": "Square alone",
}
_STAGE = re.compile(f"({'|'.join(_NORM_TITLES)})_([^/]+)/({'|'.join(_STAGE_TITLES)})")


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measured value of one model.

    Args:
        suite: the test set, or the corrupted suite.
        quantity: "top-1", "mCE", "relative mCE" or "mean error".
        value: as a fraction of 1; nan if it is undefined, for the reason given in the
            remarks.
        interval: 95 % interval as a fraction of 1; None if there is none.
        num_images: the number of images in all test sets of the suite.
        feeding: resolution, crop and other conditions, in words.
        remarks: what a reader must know before trusting the value; usually empty.
        published: the published value of the same weights, if there is one.
        is_comparable: whether the published value was measured under the same
            conditions, as far as they are known.
        top5, calibration_error: as fractions of 1; None for corrupted suites.
    """

    suite: str
    quantity: str
    value: float
    interval: Optional[tuple[float, float]]
    num_images: int
    feeding: str
    remarks: Sequence[str] = ()
    published: Optional[PublishedFigure] = None
    is_comparable: bool = False
    top5: Optional[float] = None
    calibration_error: Optional[float] = None

    @property
    def title(self) -> str:
        return title(self.suite)

    @property
    def difference(self) -> Optional[float]:
        """The difference from the published value, in percentage points.

        None if there is no published value, or if the two are not comparable.
        """
        return (
            100 * self.value - self.published.value
            if self.published and self.is_comparable
            else None
        )


def title(suite: str) -> str:
    """The title of a test set or suite: "imagenet_v2/topimages" → "ImageNet-V2,
    topimages".
    """
    name = TestSetName(suite)
    stage = _STAGE.fullmatch(name.variant)
    if stage is not None:
        norm, epsilon, attack = stage.groups()
        of = _TITLES.get(name.suite, name.suite)
        return f"{of}, {_NORM_TITLES[norm]} ε = {epsilon}, {_STAGE_TITLES[attack]}"
    if name.epsilon is not None:
        return f"{_TITLES[name.suite]}, ε = {name.variant}"
    variant = name.variant.replace("_", " ")
    return ", ".join(filter(None, (_TITLES.get(name.suite, name.suite), variant)))


def describe_conditions(conditions: Conditions) -> str:
    """Resolution, crop, and all conditions that differ from the usual ones, in words."""
    parts = [
        f"{conditions.image_size} px, "
        + ("whole images" if conditions.crop == "none" else f"crop {conditions.crop}")
    ]
    if conditions.num_kept_classes is not None:
        parts.append(f"{conditions.num_kept_classes} classes kept")
    if conditions.num_categories is not None:
        parts.append(f"classes gathered into {conditions.num_categories} categories")
    if conditions.attack is not None:
        parts.append(describe_attack(conditions.attack))
    if conditions.branch != "main" or conditions.attack is not None:
        parts.append(f"{conditions.branch} batch norms")
    return "; ".join(parts)


def list_measures(comparison: Comparison, measured: Measured) -> list[Measure]:
    """All measured values of one model, in the order in which they were measured."""
    suites = dict.fromkeys(name.whole for name in measured.results.test_sets)
    measures = []
    for suite in suites:
        if suite in measured.results.test_sets:
            measures.append(_measure_top1(measured, suite))
        else:
            measures += _measure_corruptions(comparison, measured, suite)
    return measures


def _remarks(result: TestSetResult) -> list[str]:
    remarks = [*result.shortfalls, *result.doubts]
    if result.conditions.made_from is not None:
        remarks.append(f"corrupted here from {result.conditions.made_from}, not the official files")
    return remarks


def _problems_of_sets(problems_of: Mapping[str, Sequence[str]]) -> list[str]:
    """The problems of the test sets of a suite, each with the sets that have it.

    At most three problems are listed; the rest is counted.
    """
    sets_with: dict[str, list[str]] = {}
    for name, problems in problems_of.items():
        for problem in problems:
            sets_with.setdefault(problem, []).append(name)
    descriptions = [
        f"{names[0]}: {problem}"
        if len(names) == 1
        else f"{len(names)} sets ({names[0]}, …): {problem}"
        for problem, names in sets_with.items()
    ]
    return descriptions[:3] + (
        [f"and {len(descriptions) - 3} more such problems"] if len(descriptions) > 3 else []
    )


def _measure_top1(measured: Measured, test_set: str) -> Measure:
    result = measured.results.test_sets[test_set]
    config = measured.results.config
    conditions = result.conditions
    remarks = _remarks(result)
    published = find_published(config.get("published"), test_set)
    is_comparable = not remarks and conditions.branch == "main"
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
        describe_conditions(conditions),
        remarks,
        published,
        is_comparable,
        result.score.top5,
        result.calibration.expected_calibration_error,
    )


def _measure_corruptions(comparison: Comparison, measured: Measured, suite: str) -> list[Measure]:
    """mCE, relative mCE and mean error of a corrupted suite."""
    results = measured.results
    baseline = comparison.yardstick(suite)
    sets = {name: results.test_sets[name] for name in by_severity(results.test_sets, suite)}
    remarks = _problems_of_sets({name.variant: result.shortfalls for name, result in sets.items()})
    remarks += dict.fromkeys(
        remark
        for result in sets.values()
        for remark in _remarks(result)
        if remark not in result.shortfalls
    )
    missing = results.missing(suite)
    if missing:
        remarks.append(
            f"{len(missing)} of the {len(missing) + len(sets)} sets were not measured "
            f"({missing[0]}, …): no mCE"
        )
    published = find_published(results.config.get("published"), suite)
    common = dict(
        suite=suite,
        num_images=sum(result.score.num_images for result in sets.values()),
        feeding=" / ".join(
            dict.fromkeys(describe_conditions(result.conditions) for result in sets.values())
        ),
        remarks=remarks,
    )
    errors = results.errors(suite)
    mean_error = statistics.fmean(error for by_severity in errors.values() for error in by_severity)
    answers = measured.wrong_answers(suite)

    def interval(yardstick):
        return (
            None
            if answers is None
            else significance.bootstrap_mean_interval(answers.contributions(yardstick))
        )

    ones = {name: (1.0,) * len(by_severity) for name, by_severity in errors.items()}
    plain = Measure(
        quantity="mean error",
        value=mean_error,
        interval=None if missing else interval(ones),
        **common,
    )
    if missing or baseline is None:
        return [plain]
    measures = [
        Measure(
            quantity="mCE",
            value=metrics.mean_corruption_error(errors, baseline),
            interval=interval(baseline) if is_fixed_yardstick(suite) else None,
            published=published,
            is_comparable=not remarks,
            **common,
        )
    ]
    relative = _relative_mce(comparison, measured, suite)
    if relative is not None:
        clean = results.test_sets[clean_test_set(suite)]
        of_clean = dict(
            feeding=f"{common['feeding']}; clean images {describe_conditions(clean.conditions)}",
            remarks=[*remarks, *(f"clean images: {remark}" for remark in _remarks(clean))],
        )
        measures.append(
            Measure(
                quantity="relative mCE", value=relative, interval=None, **{**common, **of_clean}
            )
        )
    return [*measures, plain]


def clean_test_set(suite: str) -> str:
    """The uncorrupted test set of a corrupted suite: "imagenet" for "imagenet_c"."""
    return suite.partition("_c")[0]


def _relative_mce(comparison: Comparison, measured: Measured, suite: str) -> Optional[float]:
    clean = clean_test_set(suite)
    baseline = comparison.yardstick(suite)
    results = measured.results.test_sets
    if clean not in results:
        return None
    if is_fixed_yardstick(suite):
        baseline_clean_error = ALEXNET_CLEAN_ERROR
    else:
        baseline_clean_error = comparison.first.results.test_sets[clean].score.error
    try:
        return metrics.relative_mean_corruption_error(
            measured.results.errors(suite),
            results[clean].score.error,
            baseline,
            baseline_clean_error,
        )
    except ValueError:  # some corruption does not increase the error of the baseline
        return None
