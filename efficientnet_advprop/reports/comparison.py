"""Models side by side: what was measured of each, whether they differ, and what keeps them from being compared.

    measured = read_measured(["runs/a", "runs/b/results.json"])
    comparison = compare(measured)                                # every two of them
    for test in comparison.tests: test.suite, test.difference, test.interval, test.adjusted_p_value
    for refusal in comparison.refusals: refusal.reason

Comparisons are paired: both models must have answered the very same images. Top-1 is compared by McNemar's exact test with a
bootstrap interval of the difference; mCE by resampling images together with all their corrupted versions, and a paired t-test
over them. All p-values of one comparison are corrected together, by Holm's method.
"""

import dataclasses
import functools
import itertools
import os
from typing import Optional, Sequence

import numpy as np

from efficientnet_advprop.errors import UserError
from efficientnet_advprop.evaluation.image_predictions import ImagePredictions
from efficientnet_advprop.evaluation.metrics import CorruptionErrors
from efficientnet_advprop.evaluation.results import Conditions, Results, predictions_path
from efficientnet_advprop.evaluation.test_set_name import by_severity
from efficientnet_advprop.reports import significance
from efficientnet_advprop.reports.published_results import ALEXNET_ERRORS

# Conditions that make another task of a test set; the others (resolution, crop, branch, …) are part of what is compared.
_SAME_TASK = ("num_kept_classes", "made_from", "attack")


class ComparisonError(UserError, ValueError):
    """Results that cannot be read, or that have nothing in common."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of one model.

    Args:
        name: what it is called in reports, unique among those compared.
        results: all scores.
        directory: the folder with its predictions; None: they were not kept.
    """

    name: str
    results: Results
    directory: Optional[str] = None
    _wrong_answers: dict[str, Optional["WrongAnswers"]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def predictions(self, test_set: str) -> Optional[ImagePredictions]:
        """What it said of each image; None where that was not kept."""
        if self.directory is None or test_set not in self.results.test_sets:
            return None
        try:
            return ImagePredictions.read(predictions_path(self.directory, test_set))
        except ValueError:
            return None

    @functools.cached_property
    def whole_suites(self) -> list[str]:
        """Its corrupted suites of which no set is missing."""
        return [
            suite for suite in self.results.corrupted_suites() if not self.results.missing(suite)
        ]

    def wrong_answers(self, suite: str) -> Optional["WrongAnswers"]:
        """Of every image of a whole corrupted suite, under which corruptions it was answered wrong.

        None where predictions were not kept, or the sets do not hold the same images.
        """
        if suite not in self._wrong_answers:
            self._wrong_answers[suite] = self._read_wrong_answers(suite)
        return self._wrong_answers[suite]

    def _read_wrong_answers(self, suite: str) -> Optional["WrongAnswers"]:
        first, is_wrong = None, {}
        for corruption in self.results.corruptions(suite):
            is_wrong[corruption] = []
            for name in by_severity(self.results.test_sets, suite, corruption):
                predictions = self.predictions(name)
                first = predictions if first is None else first
                order = None if predictions is None else order_like(first, predictions)
                if order is None:
                    return None
                is_wrong[corruption].append(~predictions.is_top1[order])
        return None if first is None else WrongAnswers(first, is_wrong)


@dataclasses.dataclass(frozen=True, eq=False)
class WrongAnswers:
    """`images`: whose ids and labels these are; `is_wrong`: corruption → bool [images] by severity."""

    images: ImagePredictions
    is_wrong: dict[str, list[np.ndarray]]

    def contributions(self, baseline_errors: CorruptionErrors) -> np.ndarray:
        """See `significance.corruption_contributions`."""
        return significance.corruption_contributions(self.is_wrong, baseline_errors)


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Whether two models differ on the same images.

    Args:
        suite: the test set, or the corrupted suite.
        measure: "top-1" or "mCE".
        first, second: names of the models.
        difference: the second's minus the first's, as a fraction of 1.
        interval: of 95 %, by bootstrap; as a fraction of 1.
        p_value: of this test alone.
        adjusted_p_value: corrected for all tests of the comparison.
        num_images: on which both were compared.
        counts: on how many images only one of them is right; None for mCE.
        remarks: in which conditions the two measurements differ.
    """

    suite: str
    measure: str
    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    adjusted_p_value: float
    num_images: int
    counts: Optional[significance.PairedCounts]
    remarks: Sequence[str] = ()

    @property
    def is_significant(self) -> bool:
        """At 5 %, over all tests of the comparison together."""
        return self.adjusted_p_value < 0.05

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "level": the second against the first."""
        if not self.is_significant:
            return "level"
        return "better" if (self.difference < 0) == (self.measure == "mCE") else "worse"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why two models are not compared on a test set."""

    suite: str
    first: str
    second: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models in order, and each pair of them on each test set: in `tests`, or in `refusals` with the reason why not."""

    measured: Sequence[Measured]
    tests: Sequence[PairedTest]
    refusals: Sequence[Refusal]

    @property
    def first(self) -> Measured:
        return self.measured[0]

    def test(self, suite: str, first: str, second: str) -> Optional[PairedTest]:
        """The test of two models, in their order, on a suite; None if there is none."""
        return next(
            (
                test
                for test in self.tests
                if (test.suite, test.first, test.second) == (suite, first, second)
            ),
            None,
        )

    def yardstick(self, suite: str) -> Optional[CorruptionErrors]:
        """What a suite's errors are divided by in mCE: AlexNet's for ImageNet-C, else the first model's; None if not whole."""
        if is_fixed_yardstick(suite):
            return ALEXNET_ERRORS
        return self.first.results.errors(suite) if suite in self.first.whole_suites else None


def is_fixed_yardstick(suite: str) -> bool:
    """Whether a suite's mCE is by AlexNet's published errors, rather than by those of one of the models."""
    return suite.startswith("imagenet_c")


def read_measured(paths: Sequence[str]) -> list[Measured]:
    """The results in folders, or in their results.json; a model that is called by its path is called by the last part of it.

    Raises:
        ComparisonError: a path holds no results, or is given twice.
    """
    measured = []
    for path in paths:
        directory = os.path.dirname(path) if path.endswith(".json") else path
        try:
            results = Results.read(path)
        except ValueError as error:
            raise ComparisonError(str(error)) from error
        if any(
            os.path.abspath(directory) == os.path.abspath(other.directory) for other in measured
        ):
            raise ComparisonError(f"{path!r} is given twice; a model is not compared with itself.")
        measured.append(
            Measured(os.path.basename(os.path.normpath(results.model)), results, directory or ".")
        )
    return _with_unique_names(measured)


def _with_unique_names(measured: Sequence[Measured]) -> list[Measured]:
    names = [one.name for one in measured]
    unique = [
        one
        if names.count(one.name) == 1
        else dataclasses.replace(one, name=f"{one.name} ({os.path.basename(one.directory)})")
        for one in measured
    ]
    if len({one.name for one in unique}) < len(unique):
        return [
            dataclasses.replace(one, name=f"{one.name} #{number}")
            for number, one in enumerate(measured, 1)
        ]
    return unique


def compare(measured: Sequence[Measured]) -> Comparison:
    """Every two models on every test set that both have; corrupted suites as a whole, by mCE.

    Args:
        measured: at least one; of one alone there is nothing to test.

    Raises:
        ComparisonError: there is none.
    """
    if not measured:
        raise ComparisonError(
            "`measured` is empty, but a report needs the results of at least one model."
        )
    comparison = Comparison(measured, (), ())
    tests, refusals = [], []
    for first, second in itertools.combinations(measured, 2):
        for suite, measure in _common_suites(first, second):
            if measure == "top-1":
                found = _compare_top1(first, second, suite)
            else:
                found = _compare_mce(first, second, suite, comparison.yardstick(suite))
            (refusals if isinstance(found, Refusal) else tests).append(found)
    adjusted = significance.holm([test.p_value for test in tests])
    tests = [
        dataclasses.replace(test, adjusted_p_value=p_value)
        for test, p_value in zip(tests, adjusted)
    ]
    return Comparison(measured, tests, refusals)


def _common_suites(first: Measured, second: Measured) -> list[tuple[str, str]]:
    single = [
        (name, "top-1")
        for name in first.results.test_sets
        if not name.is_corrupted and name in second.results.test_sets
    ]
    return single + [(suite, "mCE") for suite in first.whole_suites if suite in second.whole_suites]


def _compare_top1(first: Measured, second: Measured, test_set: str):
    refuse = functools.partial(Refusal, test_set, first.name, second.name)
    mine, theirs = (one.results.test_sets[test_set] for one in (first, second))
    reason = _other_task(mine.conditions, theirs.conditions)
    if reason:
        return refuse(reason)
    predictions = [one.predictions(test_set) for one in (first, second)]
    if None in predictions:
        return refuse(
            "the answers to single images were not kept, so that no paired test is possible"
        )
    order = order_like(*predictions)
    if order is None:
        return refuse(_other_images(*predictions))
    counts = significance.PairedCounts.of(predictions[0].is_top1, predictions[1].is_top1[order])
    return PairedTest(
        test_set,
        "top-1",
        first.name,
        second.name,
        counts.difference,
        counts.interval(),
        counts.p_value,
        counts.p_value,
        counts.num_images,
        counts,
        _differences(first, second, [test_set]),
    )


def _compare_mce(
    first: Measured, second: Measured, suite: str, baseline_errors: Optional[CorruptionErrors]
):
    refuse = functools.partial(Refusal, suite, first.name, second.name)
    names = by_severity(first.results.test_sets, suite)
    for name in names:
        reason = _other_task(*(one.results.test_sets[name].conditions for one in (first, second)))
        if reason:
            return refuse(f"{name}: {reason}")
    answers = [one.wrong_answers(suite) for one in (first, second)]
    if None in answers:
        return refuse(
            "the answers to single images were not kept of every set, or the sets hold different images"
        )
    order = order_like(*(one.images for one in answers))
    if order is None:
        return refuse(_other_images(*(one.images for one in answers)))
    if baseline_errors is None:
        return refuse("mCE needs the errors of the first model on the whole suite")
    difference = answers[1].contributions(baseline_errors)[order] - answers[0].contributions(
        baseline_errors
    )
    p_value = significance.paired_t_test(difference)
    return PairedTest(
        suite,
        "mCE",
        first.name,
        second.name,
        float(difference.mean()),
        significance.bootstrap_mean_interval(difference),
        p_value,
        p_value,
        len(difference),
        None,
        _differences(first, second, names),
    )


def order_like(first: ImagePredictions, second: ImagePredictions) -> Optional[np.ndarray]:
    """Indices that put the second's images into the first's order; None if they are not the same, or labelled otherwise."""
    if len(first.image_ids) != len(second.image_ids):
        return None
    if (first.image_ids == second.image_ids).all():
        order = np.arange(len(first.image_ids))
    else:
        order = np.argsort(second.image_ids)[np.argsort(np.argsort(first.image_ids))]
        if not (first.image_ids == second.image_ids[order]).all():
            return None
    return order if (first.labels == second.labels[order]).all() else None


def _other_images(first: ImagePredictions, second: ImagePredictions) -> str:
    num_common = len(np.intersect1d(first.image_ids, second.image_ids))
    if num_common == len(first.image_ids) == len(second.image_ids):
        return "the same images have other labels"
    return f"different images: {len(first.image_ids):,} and {len(second.image_ids):,}, of which {num_common:,} are in both"


def _other_task(first: Conditions, second: Conditions) -> Optional[str]:
    for field in _SAME_TASK:
        mine, theirs = getattr(first, field), getattr(second, field)
        if mine != theirs:
            return f"another task: `{field}` is {mine!r} and {theirs!r}"
    return None


def _differences(first: Measured, second: Measured, test_sets: Sequence[str]) -> list[str]:
    """What else differs between two measurements of the same images, in words, each once."""
    remarks = []
    for test_set in test_sets:
        mine, theirs = (one.results.test_sets[test_set].conditions for one in (first, second))
        if (mine.image_size, mine.crop) != (theirs.image_size, theirs.crop):
            remarks.append(
                f"fed at {mine.image_size} px (crop {mine.crop}) and {theirs.image_size} px (crop {theirs.crop})"
            )
        if mine.branch != theirs.branch:
            remarks.append(f"branches {mine.branch} and {theirs.branch}")
        if mine.seed != theirs.seed:
            remarks.append(f"random numbers of seeds {mine.seed} and {theirs.seed}")
        if mine.data_digest != theirs.data_digest:
            remarks.append("the files differ although their names and labels agree")
        for one in (first, second):
            remarks += [
                f"{one.name}: {problem}" for problem in one.results.test_sets[test_set].shortfalls
            ]
    return list(dict.fromkeys(remarks))
