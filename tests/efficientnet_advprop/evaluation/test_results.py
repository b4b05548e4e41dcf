"""Results: what goes in comes back, and the summaries are sums by hand."""

import dataclasses
import json

import numpy as np
import pytest

from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import (
    Conditions,
    ImagePredictions,
    Results,
    TestSetResult,
    predictions_path,
)
from efficientnet_advprop.evaluation.test_set_name import corrupted_name, parse_name


def make_results(fog=(70, 50), snow=(80, 60), problems=()):
    """Two corruptions at two severities, one attack; 100 images each."""
    correct = {
        "imagenet": 90,
        "c/fog/2": fog[1],
        "c/fog/1": fog[0],
        "c/snow/1": snow[0],
        "c/snow/2": snow[1],
        "pgd/8": 10,
    }
    conditions = Conditions("ab", 224, "none", attack={"epsilon": 8.0})
    calibration = CalibrationBins.count([0.5] * 100, [True] * 100)
    test_sets = {
        name: TestSetResult(Score(100, num, 100, 12.5), calibration, conditions, 100, problems)
        for name, num in correct.items()
    }
    return Results("mine", "1f", {"crop": "none"}, {"numpy": "1"}, test_sets)


def test_round_trip(tmp_path):
    results = make_results(problems=("lacks 3 images",))
    again = Results.from_json(results.to_json())
    assert again == results and again.test_sets["pgd/8"].score.total_loss == 12.5
    (tmp_path / "results.json").write_text(results.to_json())
    assert Results.read(str(tmp_path)) == Results.read(str(tmp_path / "results.json")) == results


def test_other_files_are_refused(tmp_path):
    held = json.loads(make_results().to_json())
    without = {name: value for name, value in held.items() if name != "weights_digest"}
    for text in (
        "",
        "[]",
        "{}",
        json.dumps({**held, "format": 0}),
        json.dumps(without),
        json.dumps({**held, "more": 1}),
    ):
        with pytest.raises(ValueError, match="no results"):
            Results.from_json(text)
    with pytest.raises(ValueError, match="cannot be read as results"):
        Results.read(str(tmp_path / "missing.json"))


def test_names_and_groups():
    results = make_results()
    assert corrupted_name("c", "fog", 2) == "c/fog/2"
    assert results.corrupted_suites() == ["c"] and results.corruptions("c") == ["fog", "snow"]
    assert results.errors("c")["fog"] == pytest.approx([0.3, 0.5])  # by severity, not as they came
    assert predictions_path("out", "c/fog/2") == "out/predictions/c/fog/2.npz"


@pytest.mark.parametrize(
    "name, parts",
    [
        ("imagenet", ("imagenet", "")),
        ("imagenet_c/fog/3", ("imagenet_c", "fog/3", "fog", 3)),
        ("photos-test_c/fog/3", ("photos-test_c", "fog/3", "fog", 3)),
        ("imagenet_v2/topimages", ("imagenet_v2", "topimages")),
        ("pgd/0.5", ("pgd", "0.5", None, None, 0.5)),
        ("photos-test_pgd/8", ("photos-test_pgd", "8", None, None, 8.0)),
        (
            "autoattack/l2_127.5/fab_t",
            ("autoattack", "l2_127.5/fab_t", None, None, None, "autoattack/l2_127.5"),
        ),
        ("autoattack/linf_4/square_alone", ("autoattack", "linf_4/square_alone")),
    ],
)
def test_names_tell_their_parts(name, parts):
    assert parse_name(name) == parts + (None,) * (6 - len(parts))


def test_predictions_have_names_that_a_file_can_have(tmp_path):
    long = ["folder:" + ":".join(["医学影像分类数据集第一版"] * 9) + end for end in ("", ":x")]
    paths = {predictions_path(str(tmp_path), name) for name in long}
    assert len(paths) == 2
    for path in paths:
        assert max(len(part.encode()) for part in path.split("/")) < 255


def test_what_is_no_number_is_null_in_json(tmp_path):
    results = make_results()
    result = results.test_sets["pgd/8"]
    for loss in (float("nan"), float("inf")):
        score = Score(100, 10, 100, loss)
        results.test_sets["pgd/8"] = dataclasses.replace(result, score=score)
        text = results.to_json()
        json.loads(text, parse_constant=pytest.fail)
        assert np.isnan(Results.from_json(text).test_sets["pgd/8"].score.total_loss)


def test_a_folders_result_is_found_as_it_was_asked_for():
    results = make_results()
    asked = dataclasses.replace(results.test_sets["imagenet"], asked_for="folder:a/b")
    results.test_sets["a-b"] = asked
    assert Results.from_json(results.to_json()).test_sets["folder:a/b"] == asked
    with pytest.raises(KeyError, match="folder:b"):
        _ = results.test_sets["folder:b"]


def test_summaries():
    results = make_results()
    assert results.mean_corrupted_accuracy("c") == pytest.approx((0.7 + 0.5 + 0.8 + 0.6) / 4)
    assert results.mean_corrupted_accuracy("c", "fog") == pytest.approx(0.6)


def test_mce_needs_all_seventy_five_sets():
    results = make_results()
    assert len(results.missing("c")) == 75 - 4 and "c/fog/3" in results.missing("c")


def test_incomplete_sets_say_so():
    results = make_results(problems=("lacks 3 images",))
    assert not results.test_sets["imagenet"].is_complete


def test_predictions_come_back_and_are_counted(tmp_path):
    predictions = ImagePredictions(
        image_ids=np.array(["a/ä.png", "a/b.png", "c/d.png"]),
        labels=np.array([3, 4, 5], np.int32),
        classes=np.array([[3, 1, 2, 4, 5], [1, 2, 3, 5, 4], [-1] * 5], np.int32),
        probabilities=np.array(
            [[0.9, 0.1, 0, 0, 0], [0.375, 0.3, 0.1, 0.1, 0.1], [0] * 5], np.float32
        ),
        losses=np.array([0.5, 2.0, 9.0], np.float32),
    )
    assert predictions.score() == Score(3, 1, 2) and predictions.score().total_loss == 11.5
    # bins of 1/15: 0.9 is in the 14th, 0.4 in the 6th (closed above), 0 in the first
    bins = predictions.calibration()
    assert {i: n for i, n in enumerate(bins.num_images) if n} == {
        13: 1,
        5: 1,
        0: 1,
    } and bins.num_correct[13] == 1
    path = str(tmp_path / "predictions" / "imagenet_c" / "fog" / "3.npz")
    predictions.write(path)
    again = ImagePredictions.read(path)
    assert (
        again.image_ids.tolist() == predictions.image_ids.tolist()
        and (again.classes == predictions.classes).all()
    )
    with pytest.raises(ValueError, match="cannot be read as predictions"):
        ImagePredictions.read(path + "x")
