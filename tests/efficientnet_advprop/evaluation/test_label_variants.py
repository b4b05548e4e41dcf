"""Test sets whose right answer is not one class, or which are a part of another: on
stand-ins whose accuracies are known, and the lists by what their authors say of them.
"""

import json

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation import evaluation_run
from efficientnet_advprop.evaluation.metrics import wilson_interval
from efficientnet_advprop.evaluation.results import (
    ImagePredictions,
    Results,
    predictions_path,
)
from efficientnet_advprop.evaluation.suites import label_variants, registry
from efficientnet_advprop.evaluation.suites.imagenet_suites import subset
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings
from efficientnet_advprop.evaluation.test_set_name import corrupted_name
from efficientnet_advprop.images import robustness_sets
from efficientnet_advprop.reports.comparison import Measured, compare, read_measured
from efficientnet_advprop.reports.evaluation_report import make_page
from efficientnet_advprop.reports.pages import render_html, render_markdown
from efficientnet_advprop.reports.report_rows import count_decisions, list_measures
from efficientnet_advprop.runtime.errors import UsageError
from tests import stand_ins
from tests.efficientnet_advprop.evaluation.constructed_results import scored


def run(root, suite, out_dir, **options):
    return evaluation_run.run(
        stand_ins.read_classes,
        [suite],
        data_dir=str(root),
        out_dir=str(out_dir),
        **{"allow_incomplete": True, "log": lambda line: None, **options},
    )


def save(path, shown, border=0):
    """An image whose colour is that of a class, in a border of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros([44, 50, 3], np.uint8)
    pixels[:] = (255, 0, 0) if border else stand_ins.colour_of(shown)
    pixels[border : 44 - border, border : 50 - border] = stand_ins.colour_of(shown)
    Image.fromarray(pixels).save(path)


def test_the_lists_have_the_numbers_of_their_authors():
    numbers = robustness_sets.robustbench_numbers()
    assert len(numbers) == 5000 and min(numbers) >= 1 and max(numbers) <= 50_000
    categories = robustness_sets.cue_conflict_categories()
    assert len(categories) == 16 and list(categories) == sorted(categories)
    assert sum(map(len, categories.values())) == 207  # of Geirhos et al.
    classes = robustness_sets.objectnet_classes()
    assert len(classes) == 113 and max(classes) < 313
    numbers = {"imagenet_c_bar": 10, "imagenet_3dcc": 12, "imagenet_c_extra": 4, "imagenet_c": 15}
    assert {suite: len(robustness_sets.corruptions_of(suite)) for suite in numbers} == numbers


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """Eight validation images, of which number 4 shows the class beside its own; and
    ReaL's labels: number 4 may be either, 5 only another, 6 has none.
    """
    root = tmp_path_factory.mktemp("validation")
    ids = stand_ins.class_numbers.imagenet_ids()
    answers = [[] for _ in range(50_000)]
    for number in range(1, 9):
        label = 100 + 10 * number + 3
        shown = label + 1 if number == 4 else label
        save(root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / ids[label]
             / f"ILSVRC2012_val_{number:08d}.JPEG", shown)  # fmt: skip
        answers[number - 1] = {4: [label, shown], 5: [label + 1], 6: []}.get(number, [label])
    (root / "real.json").write_text(json.dumps(answers))
    return root


def test_real_counts_any_of_several_right_answers(validation, tmp_path):
    results = run(validation, "imagenet_real", tmp_path)
    (result,) = results.test_sets.values()
    assert (result.score.num_images, result.score.num_top1) == (7, 6)  # all but number 5
    assert result.score.num_top5 == 7
    assert result.expected_num_images == 7 and result.conditions.label_variants_digest
    predictions = ImagePredictions.read(predictions_path(str(tmp_path), "imagenet_real"))
    assert not any("00000006" in name for name in predictions.image_ids)
    assert predictions.labels[list(predictions.is_top1).index(False)] == 154


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "lacks the labels of imagenet_real"),
        (json.dumps([[1]] * 49_999), "49,999 images, but .* 50,000"),
        (json.dumps([[1000]] * 50_000), "0 to 999"),
        ("nonsense", "cannot be read as lists of labels"),
    ],
)
def test_other_files_of_labels_are_refused(validation, tmp_path, text, words):
    (tmp_path / "val").symlink_to(validation / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    if text is not None:
        (tmp_path / "real.json").write_text(text)
    with pytest.raises(DataError, match=words):
        run(tmp_path, "imagenet_real", tmp_path / "out")


def test_robustbench_takes_its_own_images_at_its_own_size(validation):
    settings = SuiteSettings(str(validation), 1000, image_size=300, allow_incomplete=True)
    stages = label_variants.open_robustbench(settings, "robustbench")
    assert [stage.name for stage in stages] == [
        f"robustbench/linf_4/{stage}" for stage in ("clean", "apgd_ce", "apgd_t", "fab_t", "square")
    ]
    for stage in stages:
        assert (stage.image_size, stage.crop) == (224, "torchvision")
        assert stage.expected_num_images == 5000
    # Its first number is 11: none of the eight images is one of its.
    assert stages[0].find_images().num_images == 0
    assert [stage.after for stage in stages] == [None, *(stage.name for stage in stages[:-1])]


@pytest.mark.parametrize("suite, held", [("imagenet_a", (113, 143)), ("imagenet_r", (113, 163))])
def test_imagenet_among_the_classes_of_its_relatives(validation, tmp_path, suite, held):
    assert [label for label in range(113, 193, 10) if label in subset(suite)] == list(held)
    results = run(validation, f"{suite}_classes", tmp_path)
    (result,) = results.test_sets.values()
    assert result.score.num_images == 2
    assert result.score.num_top1 == sum(label != 143 for label in held)  # 143 shows another
    assert result.conditions.class_subset_size == 200 and result.expected_num_images == 10_000


def test_objectnet_by_category_without_its_border(tmp_path):
    names = [f"category {number:03d}" for number in range(313)]
    for name in names:
        (tmp_path / "ObjectNet-1.0" / "images" / name).mkdir(parents=True)
    images = tmp_path / "ObjectNet-1.0" / "images"
    # Category 17 is ImageNet's 444 and 671; 52 is 423, 559 and 765; 0 has no class
    # there.
    save(images / names[17] / "a.png", 671, border=2)
    save(images / names[17] / "b.png", 444, border=2)
    save(images / names[52] / "c.png", 444, border=2)
    save(images / names[0] / "d.png", 444, border=2)
    results = run(tmp_path, "objectnet", tmp_path / "out")
    (result,) = results.test_sets.values()
    assert (result.score.num_images, result.score.num_top1) == (3, 2)
    assert result.conditions.class_subset_size == 125 and result.expected_num_images == 18_574
    (images / names[312]).rmdir()
    with pytest.raises(DataError, match="312 folders, but ObjectNet has 313"):
        run(tmp_path, "objectnet", tmp_path / "out")


def test_cue_conflict_by_category_and_its_shape_bias(tmp_path):
    categories = robustness_sets.cue_conflict_categories()
    for category in categories:
        (tmp_path / "cue-conflict" / category).mkdir(parents=True)
    root = tmp_path / "cue-conflict"
    # The colour is what the reader answers; only "airplane" and "oven" have a single
    # class.
    save(root / "airplane" / "airplane1-oven2.png", 404)  # by shape
    save(root / "airplane" / "airplane2-oven1.png", 766)  # by texture
    save(root / "airplane" / "airplane3-airplane2.png", 404)  # no conflict
    save(root / "oven" / "oven1-airplane2.png", 766)  # by shape
    save(root / "oven" / "oven2-airplane1.png", 499)  # neither: a knife
    results = run(tmp_path, "cue_conflict", tmp_path / "out")
    (result,) = results.test_sets.values()
    assert (result.score.num_images, result.score.num_top1) == (5, 3)
    assert result.conditions.num_categories == 16 and result.expected_num_images == 1280
    predictions = ImagePredictions.read(predictions_path(str(tmp_path / "out"), "cue_conflict"))
    decisions = count_decisions(predictions)
    assert decisions["airplane"] == (2, 1, 1) and decisions["oven"] == (2, 1, 0)
    assert decisions["clock"] == (0, 0, 0)
    (measured,) = read_measured([str(tmp_path / "out")])
    comparison = compare([measured])
    row = list_measures(comparison, measured)[1]
    assert (row.quantity, row.num_images) == ("shape bias", 3)
    assert row.value == pytest.approx(2 / 3) and row.interval == wilson_interval(2, 3)
    report = make_page("title", comparison)
    text = render_markdown(report)
    assert f"| airplane | {measured.name} | 2 | 1 | 1 | 50.0 |" in text
    assert f"| oven | {measured.name} | 2 | 1 | 0 | 100.0 |" in text
    assert "Shape or texture" in render_html(report)
    (root / "oven" / "oven1-airplane2.png").unlink()
    (root / "oven" / "oven2-airplane1.png").unlink()
    (root / "oven").rmdir()
    with pytest.raises(DataError, match="16 categories, but lacks oven"):
        run(tmp_path, "cue_conflict", tmp_path / "out")


@pytest.mark.parametrize(
    "folder",
    ["imagenet-c", "ImageNet-C", "ImageNet-C/noise", "Imagenet-c/Noise", "ImageNet-C/Extra"],
)
def test_layouts_that_people_have(tmp_path, folder):
    is_extra = folder.endswith("Extra")
    corruption = "saturate" if is_extra else "gaussian_noise"
    suite = "imagenet_c_extra" if is_extra else "imagenet_c"
    ids = stand_ins.class_numbers.imagenet_ids()
    save(tmp_path / folder / corruption / "1" / ids[3] / "x.png", 3)
    results = run(tmp_path, f"{suite}/{corruption}/1", tmp_path / "out")
    (name,) = results.test_sets
    assert name == f"{suite}/{corruption}/1" and results.test_sets[name].score.top1 == 1.0


def test_missing_corruptions_are_named(tmp_path):
    ids = stand_ins.class_numbers.imagenet_ids()
    save(tmp_path / "imagenet-c-bar" / "sparkles" / "2" / ids[3] / "x.png", 3)
    with pytest.raises(DataError, match="49 of the 50 sets of imagenet_c_bar"):
        run(tmp_path, "imagenet_c_bar", tmp_path, allow_incomplete=False)
    results = run(tmp_path, "imagenet_c_bar", tmp_path / "out")
    assert len(results.missing("imagenet_c_bar")) == 49


@pytest.mark.parametrize("form", ["{number}", "{value:.2f}", "{value:g}"])
def test_c_bar_is_found_by_severity_or_by_parameter(tmp_path, form):
    """The image of severity n shows class n."""
    ids = stand_ins.class_numbers.imagenet_ids()
    corruption = "checkerboard_cutout"
    values = robustness_sets.parameters_of("imagenet_c_bar", corruption)
    for number, value in enumerate(values, 1):
        folder = tmp_path / "ImageNet-C-Bar" / corruption / form.format(number=number, value=value)
        save(folder / ids[number] / "x.png", number)
    settings = SuiteSettings(str(tmp_path), 1000, 32)
    for number in range(1, 6):
        (test_set,) = registry.open_suites([f"imagenet_c_bar/{corruption}/{number}"], settings)
        assert test_set.find_images().labels == [number]


def test_what_may_be_a_severity_or_a_parameter_is_not_guessed(tmp_path):
    ids = stand_ins.class_numbers.imagenet_ids()
    folder = tmp_path / "imagenet-c-bar" / "checkerboard_cutout"
    for number in (2, 3):  # severities 2 and 3, or 1 and 2
        save(folder / str(number) / ids[3] / "x.png", 3)
    with pytest.raises(DataError, match="may be severities or the parameters 2, 3, 4, 5, 6"):
        run(tmp_path, "imagenet_c_bar/checkerboard_cutout/2", tmp_path / "out")


@pytest.mark.parametrize("number", [0, 50_001])
def test_numbers_that_no_validation_image_has_are_refused(validation, tmp_path, number):
    (tmp_path / "real.json").write_text((validation / "real.json").read_text())
    folder = tmp_path / "val" / stand_ins.class_numbers.imagenet_ids()[7]
    save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", 7)
    with pytest.raises(DataError, match=f"val_{number:08d}.* to …_00050000"):
        run(tmp_path, "imagenet_real", tmp_path / "out")


@pytest.mark.parametrize("suite", label_variants.SUITES)
def test_networks_of_other_classes_and_missing_data_are_named(suite, tmp_path):
    with pytest.raises(UsageError, match="10 outputs"):
        label_variants.SUITES[suite](SuiteSettings(str(tmp_path), 10, 32), suite)
    with pytest.raises(UsageError, match="`--data_dir` is missing"):
        label_variants.SUITES[suite](SuiteSettings(None, 1000, 32), suite)
    with pytest.raises(DataError, match="lacks"):
        label_variants.SUITES[suite](SuiteSettings(str(tmp_path), 1000, 32), suite)


@pytest.mark.parametrize("suite", ["imagenet_c_extra", "imagenet_c_bar", "imagenet_3dcc"])
def test_other_corruptions_have_a_mean_error_and_no_mce(suite):
    """AlexNet's errors, the yardstick of mCE, are those under the fifteen of
    ImageNet-C.
    """
    test_sets = {
        corrupted_name(suite, corruption, severity): scored(10 - severity, 10, crop="none")
        for corruption in robustness_sets.corruptions_of(suite)
        for severity in (1, 2, 3, 4, 5)
    }
    measured = [Measured(name, Results(name, "", test_sets=test_sets)) for name in ("a", "b")]
    comparison = compare(measured)
    (measure,) = list_measures(comparison, measured[0])
    assert measure.quantity == "mean error" and measure.value == pytest.approx(0.3)
    assert render_html(make_page("title", comparison)) and not comparison.tests
