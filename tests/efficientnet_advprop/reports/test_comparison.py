"""Comparisons: against tests computed here from the answers themselves, and what must
not be compared.
"""

import dataclasses
import math
import os

import numpy as np
import pytest
from scipy import stats

from efficientnet_advprop.evaluation.results import ImagePredictions, predictions_path
from efficientnet_advprop.reports.comparison import compare, read_measured
from efficientnet_advprop.reports.published_results import ALEXNET_ERRORS
from efficientnet_advprop.runtime.errors import UsageError
from tests.efficientnet_advprop.evaluation.constructed_results import write_results

ACCURACIES = {"imagenet": 0.7, "imagenet_c": 0.75}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folders of two models, the second the better one."""
    folders = [str(tmp_path_factory.mktemp(name)) for name in ("a", "b")]
    for seed, (folder, gain) in enumerate(zip(folders, (0.0, 0.15))):
        write_results(
            folder,
            f"model {seed}",
            {name: value + gain for name, value in ACCURACIES.items()},
            seed=seed,
        )
    return folders


def answers(folder, test_set):
    return ImagePredictions.read(predictions_path(folder, test_set)).is_top1


def test_top1_is_mcnemars_test_by_hand(two):
    comparison = compare(read_measured(two))
    first, second = (answers(folder, "imagenet") for folder in two)
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    test = comparison.test("imagenet", "model 0", "model 1")
    assert test.only_right == (only_first, only_second)
    tail = sum(math.comb(only_first + only_second, k) for k in range(only_first + 1)) / 2 ** (
        only_first + only_second
    )
    assert test.p_value == pytest.approx(2 * tail)
    assert test.difference == pytest.approx(second.mean() - first.mean())
    assert test.interval[0] < test.difference < test.interval[1]


def test_mce_is_a_paired_test_over_images(two):
    test = compare(read_measured(two)).test("imagenet_c", "model 0", "model 1")
    per_image = [
        sum(
            ~answers(folder, f"imagenet_c/{corruption}/{severity}") / (15 * 5 * errors[0])
            for corruption, errors in ALEXNET_ERRORS.items()
            for severity in range(1, 6)
        )
        for folder in two
    ]
    difference = per_image[1] - per_image[0]
    assert test.difference == pytest.approx(difference.mean())
    assert test.p_value == pytest.approx(stats.ttest_rel(per_image[1], per_image[0]).pvalue)
    half = 1.96 * difference.std() / math.sqrt(len(difference))
    assert test.interval == pytest.approx(
        (difference.mean() - half, difference.mean() + half), abs=half / 5
    )
    assert test.verdict == "better" and test.difference < 0


def test_p_values_are_corrected_together(two):
    tests = compare(read_measured(two)).tests
    assert [test.measure for test in tests] == ["top-1", "mCE"]
    small, large = sorted(tests, key=lambda test: test.p_value)
    assert small.adjusted_p_value == pytest.approx(2 * small.p_value)
    assert large.adjusted_p_value == pytest.approx(max(2 * small.p_value, large.p_value))


def test_three_models_make_three_pairs(two, tmp_path):
    write_results(str(tmp_path), "model 2", {"imagenet": 0.7})
    comparison = compare(read_measured([*two, str(tmp_path / "results.json")]))
    pairs = {suite: [(t.first, t.second) for t in comparison.tests if t.suite == suite]
             for suite in ACCURACIES}  # fmt: skip
    first = ("model 0", "model 1")
    assert pairs["imagenet"] == [first, ("model 0", "model 2"), ("model 1", "model 2")]
    assert pairs["imagenet_c"] == [first]


def test_order_of_the_images_does_not_matter(two, tmp_path):
    write_results(str(tmp_path), "model 1", {"imagenet": 0.85}, seed=1)
    path = predictions_path(str(tmp_path), "imagenet")
    held, order = ImagePredictions.read(path), np.random.default_rng(0).permutation(120)
    expected = compare(read_measured([two[0], str(tmp_path)])).tests[0]
    ImagePredictions(**{name: part[order] for name, part in vars(held).items()}).write(path)
    assert compare(read_measured([two[0], str(tmp_path)])).tests[0] == expected


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(num_images=119), "different images: 120 and 119, of which 119 are in both"),
        (dict(conditions={"imagenet": {"class_subset_size": 200}}), "`class_subset_size` is None"),
        (dict(conditions={"imagenet": {"attack": {"epsilon": 4.0}}}), "another task: `attack`"),
    ],
)
def test_another_task_is_refused(two, tmp_path, arguments, reason):
    write_results(str(tmp_path), "other", {"imagenet": 0.7}, **arguments)
    comparison = compare(read_measured([two[0], str(tmp_path)]))
    assert not comparison.tests and reason in comparison.not_compared[0]


def test_other_labels_are_refused(two, tmp_path):
    write_results(str(tmp_path), "other", {"imagenet": 0.7})
    path = predictions_path(str(tmp_path), "imagenet")
    held = ImagePredictions.read(path)
    dataclasses.replace(held, labels=held.labels[::-1]).write(path)
    assert "other labels" in compare(read_measured([two[0], str(tmp_path)])).not_compared[0]


def test_missing_predictions_are_refused(two, tmp_path):
    write_results(str(tmp_path), "other", ACCURACIES)
    os.remove(predictions_path(str(tmp_path), "imagenet"))
    os.remove(predictions_path(str(tmp_path), "imagenet_c/fog/3"))
    comparison = compare(read_measured([two[0], str(tmp_path)]))
    suites = [line.partition(",")[0] for line in comparison.not_compared]
    assert suites == ["ImageNet", "ImageNet-C"]
    assert all("not kept" in line for line in comparison.not_compared)


def test_another_protocol_is_named(two, tmp_path):
    own = dict(image_size=300, crop="0.875", branch="aux", seed=1, data_digest="e" * 64)
    keywords = dict(conditions={"imagenet": own}, problems=["lacks 2 images"])
    write_results(str(tmp_path), "other", {"imagenet": 0.7}, **keywords)
    (test,) = compare(read_measured([two[0], str(tmp_path)])).tests
    assert test.remarks == [
        "fed at 224 px (crop released) and 300 px (crop 0.875)",
        "branches main and aux",
        "random numbers of seeds 0 and 1",
        "the files differ although their names and labels agree",
        "other: lacks 2 images",
    ]


def test_names_are_made_unique(two, tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_results(str(tmp_path / name), f"models/{name}/same/", {"imagenet": 0.7})
    paths = [str(tmp_path / "x"), str(tmp_path / "y"), two[0]]
    names = [measured.name for measured in read_measured(paths)]
    assert names == ["same (x)", "same (y)", "model 0"]


def test_what_cannot_be_read_is_named(two, tmp_path):
    with pytest.raises(UsageError, match="twice"):
        read_measured([two[0], os.path.join(two[0], "results.json")])
    with pytest.raises(UsageError, match="nothing.json"):
        read_measured([str(tmp_path / "nothing.json")])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UsageError, match="results"):
        read_measured([str(tmp_path)])
    with pytest.raises(UsageError, match="`measured` is empty"):
        compare([])
