"""Compares the results of several models by statistical tests on the same images.

Top-1 accuracies are compared by McNemar's exact test, with a bootstrap interval of the
difference; mCE by a paired t-test over the images, with an interval from resampling
images together with all their corrupted versions. All p-values of one comparison are
corrected together, by Holm's method.
"""

import dataclasses
import functools
import itertools
import os
from typing import Optional, Sequence, Union

import numpy as np

from efficientnet_advprop.evaluation.metrics import CorruptionErrors
from efficientnet_advprop.evaluation.results import (
    Conditions,
    ImagePredictions,
    Results,
    predictions_path,
)
from efficientnet_advprop.evaluation.test_set_name import by_severity, is_passed, parse_name, title
from efficientnet_advprop.images.robustness_sets import corruptions_of
from efficientnet_advprop.reports import significance
from efficientnet_advprop.reports.published_results import ALEXNET_ERRORS
from efficientnet_advprop.runtime.errors import UsageError

# Two measurements are compared only if these conditions agree, because they define the
# task. The other conditions (resolution, crop, branch, …) belong to the models that are
# compared.
_SAME_TASK = ("class_subset_size", "clean_suite", "attack")

WrongAnswers = dict[str, list[np.ndarray]]  # corruption → bool [images] by severity


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """The results of one model."""

    name: str  # in reports, unique among the compared models
    results: Results
    directory: Optional[str] = None  # of its predictions; None: they were not kept
    _wrong_answers: dict = dataclasses.field(default_factory=dict, repr=False)

    def predictions(self, test_set: str) -> Optional[ImagePredictions]:
        """Returns the model's predictions on a test set; None if they were not kept."""
        if self.directory is None or test_set not in self.results.test_sets:
            return None
        try:
            return ImagePredictions.read(predictions_path(self.directory, test_set))
        except ValueError:
            return None

    @functools.cached_property
    def whole_suites(self) -> list[str]:
        """The corrupted suites of which every test set was measured."""
        suites = self.results.corrupted_suites()
        return [suite for suite in suites if not self.results.missing(suite)]

    def wrong_answers(self, suite: str) -> Optional[tuple[ImagePredictions, WrongAnswers]]:
        """Returns a corrupted suite's images and which of them each corruption makes wrong; None
        if the predictions were not kept, or if its test sets differ in their images.
        """
        if suite not in self._wrong_answers:
            self._wrong_answers[suite] = self._read_wrong_answers(suite)
        return self._wrong_answers[suite]

    def _read_wrong_answers(self, suite):
        first = None
        is_wrong: WrongAnswers = {}
        for corruption in self.results.corruptions(suite):
            is_wrong[corruption] = []
            for name in by_severity(self.results.test_sets, suite, corruption):
                predictions = self.predictions(name)
                first = predictions if first is None else first
                order = None if predictions is None else order_like(first, predictions)
                if order is None:
                    return None
                is_wrong[corruption].append(~predictions.is_top1[order])
        return None if first is None else (first, is_wrong)


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """A statistical test of whether two models differ on the same images."""

    suite: str  # the test set, or the corrupted suite
    measure: str  # "top-1" or "mCE"
    first: str  # names of the models
    second: str
    difference: float  # of the second model from the first, as a fraction of 1
    interval: tuple[float, float]  # of the difference, 95 %, by bootstrap
    p_value: float  # of this test alone
    adjusted_p_value: float  # corrected for all tests of the comparison
    only_right: Optional[tuple[int, int]]  # images that only the first, the second; None for mCE
    remarks: Sequence[str] = ()  # the conditions in which the two measurements differ

    @property
    def verdict(self) -> str:
        """How the second model compares with the first, at the 5 % level over all tests of
        the comparison: "better", "worse" or "level".
        """
        if self.adjusted_p_value >= 0.05:
            return "level"
        return "better" if (self.difference < 0) == (self.measure == "mCE") else "worse"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models in order; each pair on each test set is in `tests` or, with the reason,
    `not_compared`.
    """

    measured: Sequence[Measured]
    tests: Sequence[PairedTest]
    not_compared: Sequence[str]

    @property
    def first(self) -> Measured:
        return self.measured[0]

    def test(self, suite: str, first: str, second: str) -> Optional[PairedTest]:
        """Returns the test of two models, in this order, on a suite; None: there is none."""
        wanted = (suite, first, second)
        found = (test for test in self.tests if (test.suite, test.first, test.second) == wanted)
        return next(found, None)

    def yardstick(self, suite: str) -> Optional[CorruptionErrors]:
        """Returns the errors by which mCE divides a suite's: AlexNet's as published for
        ImageNet-C, else the first model's; None if that did not measure the whole suite.
        """
        if set(corruptions_of(suite)) != set(ALEXNET_ERRORS):
            return None  # mCE is about the fifteen corruptions of ImageNet-C
        if is_fixed_yardstick(suite):
            return ALEXNET_ERRORS
        errors = self.first.results.errors(suite)
        is_usable = suite in self.first.whole_suites and all(map(sum, errors.values()))
        return errors if is_usable else None  # no error is nothing to divide by


def is_fixed_yardstick(suite: str) -> bool:
    """Whether mCE of a suite divides by AlexNet's published errors."""
    return suite.startswith("imagenet_c")


def read_measured(paths: Sequence[str]) -> list[Measured]:
    """Reads results from folders, or from the results.json in them; a model whose name is a path
    is named by its last part.
    """
    measured = []
    for path in paths:
        directory = os.path.dirname(path) if path.endswith(".json") else path
        try:
            results = Results.read(path)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if os.path.abspath(directory) in (os.path.abspath(one.directory) for one in measured):
            raise UsageError(f"{path!r} is given twice; a model is not compared with itself.")
        name = os.path.basename(os.path.normpath(results.model))
        measured.append(Measured(name, results, directory or "."))
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
    """Compares every pair of models on every test set that both have measured; corrupted suites
    as a whole, by mCE.
    """
    if not measured:
        raise UsageError(
            "`measured` is empty, but a report needs the results of at least one model."
        )
    comparison = Comparison(measured, (), ())
    tests = []
    not_compared = []
    for first, second in itertools.combinations(measured, 2):
        for suite, measure in _common_suites(first, second):
            if measure == "top-1":
                result = _compare_top1(first, second, suite)
            else:
                result = _compare_mce(first, second, suite, comparison.yardstick(suite))
            if isinstance(result, PairedTest):
                tests.append(result)
            else:
                not_compared.append(f"{title(suite)}, {first.name} and {second.name}: {result}")
    adjusted = significance.holm([test.p_value for test in tests])
    tests = [
        dataclasses.replace(test, adjusted_p_value=p_value)
        for test, p_value in zip(tests, adjusted)
    ]
    return Comparison(measured, tests, not_compared)


def _common_suites(first: Measured, second: Measured) -> list[tuple[str, str]]:
    # Of attacks in a chain the last alone: a test of each would weaken all by Holm's
    # correction, and says nothing more.
    single = [
        (name, "top-1")
        for name in first.results.test_sets
        if parse_name(name).corruption is None
        and name in second.results.test_sets
        and not is_passed(name, first.results.test_sets)
    ]
    return single + [(suite, "mCE") for suite in first.whole_suites if suite in second.whole_suites]


def _compare_top1(first: Measured, second: Measured, test_set: str) -> Union[PairedTest, str]:
    """Returns the test, or why there is none."""
    reason = _other_task(
        first.results.test_sets[test_set].conditions, second.results.test_sets[test_set].conditions
    )
    if reason:
        return reason
    predictions = [measured.predictions(test_set) for measured in (first, second)]
    if None in predictions:
        return "the predictions of single images were not kept, so that no paired test is possible"
    order = order_like(*predictions)
    if order is None:
        return _other_images(*predictions)
    answers = predictions[0].is_top1, predictions[1].is_top1[order]
    only_right = significance.count_discordant(*answers)
    num_images = len(order)
    p_value = significance.mcnemar_p_value(*only_right)
    interval = significance.difference_interval(num_images, *only_right)
    tested = ((only_right[1] - only_right[0]) / num_images, interval, p_value, p_value)
    remarks = _differences(first, second, [test_set])
    return PairedTest(test_set, "top-1", first.name, second.name, *tested, only_right, remarks)


def _compare_mce(
    first: Measured, second: Measured, suite: str, baseline_errors: Optional[CorruptionErrors]
) -> Union[PairedTest, str]:
    """Returns the test, or why there is none."""
    names = by_severity(first.results.test_sets, suite)
    for name in names:
        reason = _other_task(*(one.results.test_sets[name].conditions for one in (first, second)))
        if reason:
            return f"{name}: {reason}"
    answers = [one.wrong_answers(suite) for one in (first, second)]
    if None in answers:
        return (
            "the predictions of single images were not kept of every set, "
            "or the sets contain different images"
        )
    images = [one[0] for one in answers]
    order = order_like(*images)
    if order is None:
        return _other_images(*images)
    if baseline_errors is None:
        return "mCE needs the errors of the first model on the whole suite"
    contributions = [
        significance.corruption_contributions(is_wrong, baseline_errors) for _, is_wrong in answers
    ]
    difference = contributions[1][order] - contributions[0]
    p_value = significance.paired_t_test(difference)
    interval = significance.bootstrap_mean_interval(difference)
    tested = (float(difference.mean()), interval, p_value, p_value)
    remarks = _differences(first, second, names)
    return PairedTest(suite, "mCE", first.name, second.name, *tested, None, remarks)


def order_like(first: ImagePredictions, second: ImagePredictions) -> Optional[np.ndarray]:
    """Returns indices that bring `second` into the order of `first`; None if images or labels
    differ.
    """
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
    return (
        f"different images: {len(first.image_ids):,} and {len(second.image_ids):,}, "
        f"of which {num_common:,} are in both"
    )


def _other_task(first: Conditions, second: Conditions) -> Optional[str]:
    for field in _SAME_TASK:
        values = [getattr(conditions, field) for conditions in (first, second)]
        if values[0] != values[1]:
            return f"another task: `{field}` is {values[0]!r} and {values[1]!r}"
    return None


def _differences(first: Measured, second: Measured, test_sets: Sequence[str]) -> list[str]:
    remarks = []
    for test_set in test_sets:
        a = first.results.test_sets[test_set].conditions
        b = second.results.test_sets[test_set].conditions
        if (a.image_size, a.crop) != (b.image_size, b.crop):
            remarks.append(
                f"fed at {a.image_size} px (crop {a.crop}) and {b.image_size} px (crop {b.crop})"
            )
        if a.branch != b.branch:
            remarks.append(f"branches {a.branch} and {b.branch}")
        if a.seed != b.seed:
            remarks.append(f"random numbers of seeds {a.seed} and {b.seed}")
        if a.data_digest != b.data_digest:
            remarks.append("the files differ although their names and labels agree")
        for one in (first, second):
            remarks += [
                f"{one.name}: {problem}" for problem in one.results.test_sets[test_set].shortfalls
            ]
    return list(dict.fromkeys(remarks))
