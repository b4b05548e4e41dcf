"""The rows of a report: numbers by hand, and never one without its conditions."""

import dataclasses

import numpy as np
import pytest

from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.evaluation.test_set_name import title
from efficientnet_advprop.reports.comparison import Measured, compare, read_measured
from efficientnet_advprop.reports.published_results import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS
from efficientnet_advprop.reports.report_rows import list_measures
from tests.efficientnet_advprop.evaluation.constructed_results import scored, write_results


def measures_of(directory, *arguments, **keywords):
    results = write_results(str(directory), *arguments, **keywords)
    comparison = compare(read_measured([str(directory)]))
    rows = list_measures(comparison, comparison.first)
    return results, {(measure.suite, measure.quantity): measure for measure in rows}


@pytest.fixture(scope="module")
def b0(tmp_path_factory):
    accuracies = {"imagenet": 0.77, "imagenet_c": 0.7, "imagenet_a": 0.1}
    config = {"published": "b0-advprop"}
    return measures_of(
        tmp_path_factory.mktemp("b0"),
        "b0",
        accuracies,
        config=config,
        conditions={"imagenet_a": {"class_subset_size": 200}},
    )


def test_top1_stands_beside_the_published_figure(b0):
    results, rows = b0
    measure, result = rows["imagenet", "top-1"], results.test_sets["imagenet"]
    score = result.score
    assert (measure.value, measure.top5) == (score.top1, score.top5)
    assert measure.interval == score.interval()
    assert measure.difference == pytest.approx(100 * score.top1 - 77.6)
    assert measure.calibration_error == result.calibration.expected_calibration_error
    assert rows["imagenet_a", "top-1"].feeding == "224 px, crop released; 200 classes kept"
    assert rows["imagenet_a", "top-1"].published.value == 7.1


def test_mce_by_hand(b0):
    results, rows = b0
    errors = {
        c: np.mean([results.test_sets[f"imagenet_c/{c}/{s}"].score.error for s in range(1, 6)])
        for c in ALEXNET_ERRORS
    }
    mce = np.mean([errors[c] / ALEXNET_ERRORS[c][0] for c in errors])
    clean = results.test_sets["imagenet"].score.error
    relative = np.mean(
        [(errors[c] - clean) / (ALEXNET_ERRORS[c][0] - ALEXNET_CLEAN_ERROR) for c in errors]
    )
    expected = {"mCE": mce, "relative mCE": relative, "mean error": np.mean(list(errors.values()))}
    for quantity, value in expected.items():
        assert rows["imagenet_c", quantity].value == pytest.approx(value)
    for quantity in ("mCE", "mean error"):
        low, high = rows["imagenet_c", quantity].interval
        assert low < rows["imagenet_c", quantity].value < high and high - low < 0.1
    feeding = "224 px, whole images; clean images 224 px, crop released"
    assert rows["imagenet_c", "relative mCE"].feeding == feeding
    measure = rows["imagenet_c", "mCE"]
    assert measure.difference == pytest.approx(100 * mce - 66.2)
    assert measure.num_images == 75 * 120 and "whole images" in measure.feeding


PUBLISHED = {"published": "b0-advprop"}


@pytest.mark.parametrize(
    "keywords, remark",
    [
        (dict(problems=["lacks 5 images"]), "lacks 5 images"),
        (dict(conditions={"imagenet": {"num_sampled": 100}}), "only 100 images, evenly spaced"),
        (dict(conditions={"imagenet": {"clean_suite": "imagenet"}}), "not the official files"),
    ],
)
def test_what_is_not_the_test_sets_score_is_marked_and_without_a_difference(
    tmp_path, keywords, remark
):
    _, rows = measures_of(tmp_path, "b0", {"imagenet": 0.77}, config=PUBLISHED, **keywords)
    row = rows["imagenet", "top-1"]
    assert any(remark in text for text in row.remarks)
    assert row.published is not None and row.difference is None


@pytest.mark.parametrize("condition", [{"image_size": 300}, {"crop": "0.875"}, {"branch": "aux"}])
def test_another_protocol_is_not_held_against_the_published_figure(tmp_path, condition):
    keywords = dict(config=PUBLISHED, conditions={"imagenet": condition})
    _, rows = measures_of(tmp_path, "b0", {"imagenet": 0.77}, **keywords)
    assert rows["imagenet", "top-1"].difference is None


def remeasured(directory, results):
    """The rows of results that were changed since they were written."""
    (directory / "results.json").write_text(results.to_json())
    comparison = compare(read_measured([str(directory)]))
    return list_measures(comparison, comparison.first)


def test_a_suite_with_a_set_missing_has_no_mce(tmp_path):
    results = write_results(str(tmp_path), "b0", {"imagenet_c": 0.7})
    del results.test_sets["imagenet_c/fog/4"]
    (measure,) = remeasured(tmp_path, results)
    assert measure.quantity == "mean error" and measure.interval is None
    assert measure.remarks == ["1 of the 75 sets were not measured (imagenet_c/fog/4, …): no mCE"]


def test_problems_of_corrupted_sets_are_told_once(tmp_path):
    _, rows = measures_of(tmp_path, "b0", {"imagenet_c": 0.7}, problems=["lacks 1 image"])
    assert rows["imagenet_c", "mCE"].remarks == ["75 sets (gaussian_noise/1, …): lacks 1 image"]
    results = write_results(str(tmp_path), "b0", {"imagenet_c": 0.7})
    for severity in range(1, 6):
        name, problems = f"imagenet_c/fog/{severity}", [f"lacks {severity} images"]
        changed = dataclasses.replace(results.test_sets[name], problems=problems)
        results.test_sets[name] = changed
    mce, _ = remeasured(tmp_path, results)
    lines = [f"fog/{i}: lacks {i} images" for i in (1, 2, 3)]
    assert mce.remarks == [*lines, "and 2 more such problems"] and mce.difference is None


def test_other_suites_are_measured_by_the_first_model(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, accuracy in zip(folders, (0.8, 0.9)):
        folder.mkdir()
        sets = {"digits": accuracy, "digits_c": accuracy}
        write_results(str(folder), folder.name, sets, suites=("digits_c",))
    comparison = compare(read_measured([str(folder) for folder in folders]))
    first, second = (
        {(m.suite, m.quantity): m for m in list_measures(comparison, measured)}
        for measured in comparison.measured
    )
    for quantity in ("mCE", "relative mCE"):
        assert first["digits_c", quantity].value == pytest.approx(1.0)
    assert second["digits_c", "mCE"].value < 0.9
    # The yardstick is itself measured: an interval that took it for fixed would be too narrow.
    assert first["digits_c", "mCE"].interval is None


@pytest.mark.parametrize(
    "name, text",
    [
        ("imagenet_v2/topimages", "ImageNet-V2, topimages"),
        ("pgd/4", "Under PGD, ε = 4"),
        ("folder:pets", "folder:pets"),
        ("stylized", "Stylized-ImageNet"),
    ],
)
def test_titles(name, text):
    assert title(name) == text


def rows_of(test_sets, **fields):
    measured = Measured("b0", Results("b0", "", **fields, test_sets=test_sets))
    rows = list_measures(compare([measured]), measured)
    return {(measure.suite, measure.quantity): measure for measure in rows}


STAGES = {"apgd_ce": 500, "apgd_t": 420, "fab_t": 420, "square": 410}


def chain(num_stages=4, **options):
    attack = {"name": "Square", "norm": "linf", "epsilon": 4.0, "num_queries": 5000}
    names = list(STAGES)[:num_stages]
    return {
        f"autoattack/linf_4/{name}": scored(STAGES[name], attack=attack, **options)
        for name in names
    }


def test_a_whole_chain_of_attacks_has_a_row_with_the_warnings_of_all():
    test_sets = chain()
    first = "autoattack/linf_4/apgd_ce"
    test_sets[first] = dataclasses.replace(test_sets[first], warnings=("masked",))
    rows = rows_of(test_sets)
    together = rows["autoattack/linf_4", "top-1"]
    assert title(together.suite) == "AutoAttack, L∞ ε = 4, all attacks together"
    assert together.value == 0.41 and together.interval == Score(1000, 410, 1000).interval()
    assert together.remarks == ["masked"] and "AutoAttack standard" in together.feeding
    assert rows["autoattack/linf_4/square", "top-1"].remarks == []
    assert len(rows) == 5


def test_a_chain_that_was_stopped_has_no_such_row():
    assert len(rows_of(chain(3))) == 3


# Rows of the table of results of Taori et al.'s testbed, per cent: ImageNet, V2
# (matched frequency), Sketch, R, A, and ImageNet on the classes of R and A. Both
# networks are trained as its line expects.
TESTBED = {
    "se_resnet152": (78.658, 67.440, 26.672, 40.047, 9.347, 93.420, 93.390),
    "efficientnet-b0-autoaug": (76.840, 64.420, 26.491, 38.607, 5.053, 92.390, 92.260),
}
TESTBED_SETS = (
    "imagenet",
    "imagenet_v2/matched-frequency",
    "imagenet_sketch",
    "imagenet_r",
    "imagenet_a",
    "imagenet_r_classes",
    "imagenet_a_classes",
)


@pytest.mark.parametrize("model", TESTBED)
def test_networks_of_the_testbed_lie_near_its_lines(model):
    accuracies = dict(zip(TESTBED_SETS, TESTBED[model]))
    test_sets = {name: scored(round(1000 * value), 100_000) for name, value in accuracies.items()}
    rows = rows_of(test_sets)
    found = {s: row for (s, q), row in rows.items() if q == "effective robustness"}
    assert set(found) == set(TESTBED_SETS[1:5])
    for suite, row in found.items():
        assert abs(row.value) < 0.015, suite
        assert row.interval[0] < row.value < row.interval[1]
    assert "on ImageNet, the 200 classes of ImageNet-A" in found["imagenet_a"].feeding


def test_effective_robustness_by_hand():
    rows = rows_of({"imagenet": scored(800), "imagenet_sketch": scored(300)})
    expected = 1 / (1 + np.exp(-(1.0709154 * np.log(4.0) - 2.3700729)))
    row = rows["imagenet_sketch", "effective robustness"]
    assert row.value == pytest.approx(0.3 - expected, abs=1e-7)
    assert f"{100 * expected:.1f} % expected at 80.0 % on ImageNet" in row.feeding
    # Without ImageNet, or where its accuracy has no logit, nothing is expected.
    assert len(rows_of({"imagenet_sketch": scored(300)})) == 1
    assert len(rows_of({"imagenet": scored(1000), "imagenet_sketch": scored(300)})) == 2


def test_figures_of_other_code_stand_beside_without_a_difference():
    config = {"published": "b1-advprop"}
    row = rows_of({"imagenet_r": scored(430)}, config=config)["imagenet_r", "top-1"]
    assert row.published.value == 43.19 and row.published.evidence == "read"
    assert row.difference is None
