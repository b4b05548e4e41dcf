"""Evaluation runs on stand-ins of the data sets, whose accuracies are known: any form
of files, any kind of model, any stop.
"""

import dataclasses
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop import evaluation
from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.config import suites
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation import evaluation_run, saved_models
from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.evaluation.results import ImagePredictions, Results, predictions_path
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.reports.report_files import write_report
from efficientnet_advprop.runtime.errors import ModelError, UsageError
from tests import stand_ins
from tests.efficientnet_advprop.evaluation.constructed_results import write_results

V2, MADE = "imagenet_v2/topimages", "imagenet_c_made/contrast/5"
BY_FORM = {
    "folder": [
        "imagenet",
        "imagenet_c/fog/2",
        "imagenet_c/snow/5",
        "imagenet_a",
        "imagenet_r",
        V2,
        "imagenet_sketch",
        "stylized",
    ],
    "tar": ["imagenet_c/fog/2", "imagenet_c/snow/5", "imagenet_a", V2, "stylized"],
    "tfrecords": ["imagenet"],
    "tfds": ["imagenet", "imagenet_c/fog/2", "imagenet_a", V2],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """form → the folder with its stand-ins; and "reader", the SavedModel that reads
    them.
    """
    root = tmp_path_factory.mktemp("stand_ins")
    for form, names in BY_FORM.items():
        for name in names:
            stand_ins.WRITERS[form](root / form, name)
    stand_ins.write_reader(str(root / "reader"))
    return root


def run(data_dir, suites, out_dir, model=stand_ins.read_classes, **options):
    options = {
        "name": "reader",
        "allow_incomplete": True,
        "batch_size": 5,
        "image_size": 32,
        "log": lambda line: None,
        **options,
    }
    return evaluation.run(model, suites, data_dir=str(data_dir), out_dir=str(out_dir), **options)


def counts(results):
    return {
        name: dict(zip(("num_images", "num_top1", "num_top5"), dataclasses.astuple(result.score)))
        for name, result in results.test_sets.items()
    }


@pytest.mark.parametrize("form", BY_FORM)
def test_any_form_of_files_has_the_accuracy_that_was_built_in(data, tmp_path, form):
    results = run(data / form, BY_FORM[form], tmp_path)
    assert counts(results) == {name: stand_ins.expected(name) for name in BY_FORM[form]}
    for name, result in results.test_sets.items():
        expected_num = imagenet_suites.LAYOUTS[name].num_images
        assert (
            result.expected_num_images == expected_num
            and f"12 where there should be {expected_num:,}" in result.problems[0]
        )
        assert result.conditions.class_subset_size == (
            200 if name in ("imagenet_a", "imagenet_r") else None
        )
        predictions = ImagePredictions.read(predictions_path(str(tmp_path), name))
        assert sorted(predictions.labels) == sorted(
            label for label, _ in stand_ins.list_images(name)
        )


def test_the_forms_have_the_same_image_ids(data, tmp_path):
    for form in ("folder", "tar"):
        run(data / form, ["imagenet_a", "imagenet_c/snow/5"], tmp_path / form)
    for name in ("imagenet_a", "imagenet_c/snow/5"):
        folder, tar = (
            ImagePredictions.read(predictions_path(str(tmp_path / form), name)).image_ids.tolist()
            for form in ("folder", "tar")
        )
        assert folder == tar and tar[0].count("/") == 1


@pytest.fixture(scope="module")
def by_function(data, tmp_path_factory):
    """Where the results of the plain function are."""
    out_dir = tmp_path_factory.mktemp("by_function")
    assert run(data / "folder", ["imagenet", "imagenet_a"], out_dir).weights_digest == ""
    return out_dir


@pytest.mark.parametrize("kind", ["saved_model", "two_replicas", "keras"])
def test_any_kind_of_model_gives_the_same_answers(data, by_function, tmp_path, kind, two_replicas):
    names, strategy = ["imagenet", "imagenet_a"], None
    if kind == "saved_model":
        model = saved_models.load(str(data / "reader"))
    elif kind == "two_replicas":
        model, strategy = (
            tf.function(lambda images: stand_ins.read_logits(tf.reduce_mean(images, [1, 2]), tf)),
            two_replicas,
        )
    else:
        layer = keras.layers.Lambda(
            lambda images: stand_ins.read_logits(tf.reduce_mean(images, [1, 2]), tf)
        )
        model = keras.Sequential([layer, keras.layers.Softmax()])  # as Keras's own networks end
    results = run(data / "folder", names, tmp_path, model, strategy=strategy, batch_size=6)
    assert counts(results) == {name: stand_ins.expected(name) for name in names}
    for name in names:
        found, wanted = (
            ImagePredictions.read(predictions_path(str(folder), name))
            for folder in (tmp_path, by_function)
        )
        np.testing.assert_array_equal(found.image_ids, wanted.image_ids)
        np.testing.assert_array_equal(found.classes[:, 0], wanted.classes[:, 0])
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=2e-2)


@pytest.mark.parametrize("num_replicas, size", [(1, 5), (2, 3)])
def test_batches_are_no_larger_than_the_set(data, tmp_path, two_replicas, num_replicas, size):
    sizes = []

    @tf.function
    def read(images):
        sizes.append(images.shape[0])  # when it is traced
        return stand_ins.read_logits(tf.reduce_mean(images, [1, 2]), tf)

    strategy = two_replicas if num_replicas == 2 else None
    options = dict(strategy=strategy, batch_size=100, max_images=5)
    results = run(data / "folder", ["imagenet"], tmp_path, read, **options)
    assert results.test_sets["imagenet"].score.num_images == 5
    assert size in sizes and max(sizes) <= 5


def test_it_goes_on_where_it_stopped(data, tmp_path):
    """Stopped within the second test set; then the first is not read again, and nothing
    is lost or counted twice.
    """
    names, num_calls = ["imagenet", "imagenet_sketch", "stylized"], []

    def dies_at(number):
        def read(images):
            num_calls.append(len(images))
            if len(num_calls) == number:
                raise KeyboardInterrupt
            return stand_ins.read_classes(images)

        return read

    with pytest.raises(KeyboardInterrupt):  # after a probe, three batches, one of the second set
        run(data / "folder", names, tmp_path, dies_at(1 + 3 + 2))
    assert list(Results.read(str(tmp_path)).test_sets) == ["imagenet"]
    lines, num_calls[:] = [], []
    results = run(data / "folder", names, tmp_path, dies_at(None), log=lines.append)
    assert num_calls == [4] + 2 * [5, 5, 2] and "1 of 3 test sets were measured" in lines[0]
    assert counts(results) == {name: stand_ins.expected(name) for name in names}
    assert "24 images" in lines[-1]
    # Nothing left; and what was lost, or measured under other conditions, is measured again.
    num_calls[:] = []
    run(data / "folder", names, tmp_path, dies_at(None))
    assert num_calls == [4]
    (tmp_path / "predictions" / "stylized.npz").unlink()
    run(data / "folder", names, tmp_path, dies_at(None), image_size=100)
    # Two sets at 100 pixels; the third, at 224, for its lost file.
    assert num_calls == [4, 4] + 3 * [5, 5, 2]
    results = Results.read(str(tmp_path)).test_sets.values()
    assert [result.conditions.image_size for result in results] == [100, 100, 224]


def test_no_stop_leaves_a_score_beside_other_predictions(data, tmp_path, monkeypatch):
    """It stops after the predictions of new conditions are written, before their score is."""
    run(data / "folder", ["imagenet"], tmp_path)
    with monkeypatch.context() as patched:

        def write_and_stop(self, path):
            write(self, path)
            raise KeyboardInterrupt

        write = ImagePredictions.write
        patched.setattr(ImagePredictions, "write", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(data / "folder", ["imagenet"], tmp_path, max_images=5)
    result = run(data / "folder", ["imagenet"], tmp_path).test_sets["imagenet"]
    predictions = ImagePredictions.read(predictions_path(str(tmp_path), "imagenet"))
    assert result.score == predictions.score() and result.score.num_images == 12


def test_some_images_are_marked_as_some(data, tmp_path):
    results = run(data / "folder", ["imagenet"], tmp_path, max_images=5)
    result = results.test_sets["imagenet"]
    assert result.score.num_images == result.conditions.num_sampled == 5
    assert "only 5 images, evenly spaced" in result.shortfalls and not result.is_complete


def test_attacks_and_restarts(data, tmp_path):
    """The reader's logits move with the pixels, and half a level (12.5 of 255) is where
    it changes its mind.
    """
    model = tf.function(lambda images: stand_ins.read_logits(tf.reduce_mean(images, [1, 2]), tf))
    weak, strong = (
        PGD(epsilon, epsilon, 2, targeted=False, random_start=1.0) for epsilon in (4.0, 20.0)
    )
    results = run(data / "folder", ["pgd"], tmp_path, model, attack=weak, num_restarts=2)
    results = run(data / "folder", ["pgd"], tmp_path, model, attack=strong)
    assert counts(results)["pgd/4"] == stand_ins.expected("imagenet")
    assert results.test_sets["pgd/20"].score.num_top1 == 0
    attack = results.test_sets["pgd/4"].conditions.attack
    assert (attack["epsilon"], attack["num_steps"], attack["num_restarts"]) == (4.0, 2, 2)
    with pytest.raises(UsageError, match="cannot differentiate"):
        run(data / "folder", ["pgd"], tmp_path / "function")


def test_branches_have_results_of_their_own(tmp_path, tiny):
    for label in range(10):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, [32, 32, 3], np.uint8)
    (tmp_path / "set" / "3" / "a.png").write_bytes(tf.io.encode_png(pixels).numpy())
    gamma = next(variable for variable in tiny.variables if variable.name.endswith("/aux/gamma:0"))
    before = gamma.numpy()
    gamma.assign(2.0 * before + 1.0)
    wanted = [f"folder:{tmp_path / 'set'}"]
    found = {}
    options = dict(name="tiny", image_size=32, crop="none")
    for branch in ("main", "aux"):
        run(None, wanted, tmp_path / branch, tiny, branch=branch, **options)
        (result,) = Results.read(str(tmp_path / branch)).test_sets.values()
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
            [3], tiny(pixels[None].astype(np.float32), branch=branch)
        )
        assert result.conditions.branch == branch
        assert result.score.loss == pytest.approx(float(loss[0]), rel=1e-4)
        found[branch] = result.score.loss
    gamma.assign(before)
    assert found["main"] != found["aux"]
    with pytest.raises(UsageError, match="results of another model"):  # other weights now
        run(None, wanted, tmp_path / "main", tiny, **options)
    with pytest.raises(UsageError, match="`branch` is 'aux_2'"):
        run(None, wanted, tmp_path / "x", tiny, branch="aux_2", **options)


@pytest.fixture
def copy(data, tmp_path):
    shutil.copytree(data / "folder", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "suite, complete, words",
    [
        ("imagenet", True, "imagenet lacks 49,988 images: 12 where there should be 50,000"),
        ("imagenet_c", True, "73 of the 75 sets .* imagenet_c/gaussian_noise/1, .* 67 more"),
        ("imagenet_c/fog", True, "4 of the 5 sets .* imagenet_c/fog/1, imagenet_c/fog/3"),
        ("imagenet_v2/matched-frequency", False, "imagenetv2-matched-frequency-format-val"),
    ],
)
def test_incomplete_data_are_named_and_not_scored(data, tmp_path, suite, complete, words):
    with pytest.raises(DataError, match=words):
        run(data / "folder", [suite], tmp_path / "out", allow_incomplete=not complete)
    assert not (tmp_path / "out").exists()


def test_what_there_is_of_incomplete_data_is_scored(data, tmp_path):
    results = run(data / "folder", ["imagenet_c", "imagenet_v2"], tmp_path / "out")
    assert len(results.missing("imagenet_c")) == 73


def test_too_many_images_are_as_wrong_as_too_few(data, tmp_path, monkeypatch):
    layout = dataclasses.replace(imagenet_suites.LAYOUTS["imagenet"], num_images=11)
    monkeypatch.setitem(imagenet_suites.LAYOUTS, "imagenet", layout)
    with pytest.raises(DataError, match="too many: 1 images: 12 where there should be 11"):
        run(data / "folder", ["imagenet"], tmp_path, allow_incomplete=False)
    layout = dataclasses.replace(layout, num_images=12)
    monkeypatch.setitem(imagenet_suites.LAYOUTS, "imagenet", layout)
    results = run(data / "folder", ["imagenet"], tmp_path, allow_incomplete=False)
    assert results.test_sets["imagenet"].is_complete


@pytest.mark.parametrize(
    "name, folder, number",
    [("imagenet", "n99999999", "1,000"), ("imagenet_a", "n01440764", "200"), (V2, "n01440764", "")],
)
def test_class_folders_that_there_are_not(copy, tmp_path, name, folder, number):
    (copy / imagenet_suites.LAYOUTS[name].folders[0] / folder).mkdir()
    with pytest.raises(DataError, match=f"{folder}, which is no .*{number}"):
        run(copy, [name], tmp_path / "out")


def test_an_unreadable_image_is_named(copy, tmp_path):
    broken = sorted((copy / "imagenet-r").rglob("*.JPEG"))[7]
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"imagenet_r: .*{broken.name}.*cannot be decoded"):
        run(copy, ["imagenet_r"], tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    "shape, error, words",
    [
        ((1001,), UsageError, "the network has 1,001 outputs; its background class"),
        ((2, 2), ModelError, r"4 images by an array of shape \(4, 2, 2\)"),
    ],
)
def test_models_that_do_not_fit(data, tmp_path, shape, error, words):
    with pytest.raises(error, match=words):
        run(data / "folder", ["imagenet"], tmp_path, lambda images: np.zeros([len(images), *shape]))


def test_arguments_that_are_missing_or_wrong(data, tmp_path):
    with pytest.raises(UsageError, match="`name` is missing"):
        as_classifier(lambda images: np.zeros([len(images), 1000]))
    with pytest.raises(UsageError, match="there are only imagenet, imagenet_c"):
        run(data / "folder", ["imagenet_z"], tmp_path)
    with pytest.raises(UsageError, match="`--data_dir` is missing"):
        evaluation.run(stand_ins.read_classes, ["imagenet"])
    with pytest.raises(ModelError, match="cannot be loaded"):
        saved_models.load(str(tmp_path))


def test_signatures_that_do_not_fit(tmp_path):
    module = tf.Module()
    module.classify = tf.function(
        lambda files: {"classes": tf.strings.length(files)},
        [tf.TensorSpec([None], tf.string, "files")],
    )
    tf.saved_model.save(module, str(tmp_path / "files"), {"serving_default": module.classify})
    with pytest.raises(ModelError, match=r"files string \(None,\) → classes \(None,\)"):
        saved_models.load(str(tmp_path / "files"))
    module.fixed = tf.function(
        lambda images: tf.reduce_mean(tf.cast(images, tf.float32), [1, 2]),
        [tf.TensorSpec([2, 40, 40, 3], tf.uint8, "images")],
    )
    tf.saved_model.save(module, str(tmp_path / "fixed"), {"other": module.fixed})
    classifier = saved_models.load(str(tmp_path / "fixed"))
    facts = (classifier.num_classes, classifier.image_size, classifier.fixed_batch_size)
    assert facts == (3, 40, 2)
    with pytest.raises(UsageError, match="takes 40 pixels only"):
        saved_models.load(str(tmp_path / "fixed"), image_size=50)
    for label in range(3):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
    pixels = np.full([40, 40, 3], [9, 99, 0], np.uint8)
    (tmp_path / "set" / "1" / "a.png").write_bytes(tf.io.encode_png(pixels).numpy())
    wanted, out = [f"folder:{tmp_path / 'set'}"], tmp_path / "out"
    with pytest.raises(UsageError, match="takes 2 images at a time only; use 2"):
        run(None, wanted, out, classifier, image_size=None)
    with pytest.raises(UsageError, match="`image_size` is 32, .* takes images of 40 pixels only"):
        run(None, wanted, out, classifier, batch_size=2)
    results = run(None, wanted, out, classifier, batch_size=2, image_size=None)
    assert [result.score.num_top1 for result in results.test_sets.values()] == [1]


def test_corruptions_made_here(data, tmp_path):
    """Of a plain colour contrast leaves everything."""
    (result,) = (results := run(data / "folder", [MADE], tmp_path)).test_sets.values()
    assert (result.conditions.clean_suite, result.conditions.image_size) == ("imagenet", 224)
    assert counts(results) == {MADE: stand_ins.expected("imagenet")}


def test_any_suite_of_one_test_set_can_be_corrupted_or_attacked(data, tmp_path):
    path, name = f"{tmp_path}/./Große Fotos/test_1:2", "große-fotos-test-1-2"
    for label in range(10):
        os.makedirs(f"{path}/{label}")
        image = tf.io.encode_png(np.full([8, 8, 3], 20 * label, np.uint8)).numpy()
        pathlib.Path(f"{path}/{label}/a.png").write_bytes(image)
    settings = SuiteSettings(None, 10, 8, "none", seed=7)
    assert [one.name for one in open_suites([f"folder:{path}"], settings)] == [name]
    corrupted = open_suites([f"folder_c:{path}"], settings)
    assert len(corrupted) == 75 and corrupted[0].name == f"{name}_c/gaussian_noise/1"
    assert {(one.image_size, one.crop, one.seed) for one in corrupted} == {(8, "none", 7)}
    assert {one.clean_suite for one in corrupted} == {name}
    attacked = open_suites([f"folder_pgd:{path}", f"folder_autoattack:{path}"], settings)
    stages = ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert [one.name for one in attacked] == [
        f"{name}_pgd/4",
        *(f"{name}_autoattack/linf_4/{stage}" for stage in stages),
    ]
    imagenet = SuiteSettings(str(data / "folder"), 1000, 32, allow_incomplete=True)
    (found,) = open_suites(["imagenet_a_c/fog/2"], imagenet)
    assert found.name == "imagenet_a_c/fog/2" and len(found.class_subset) == 200
    with pytest.raises(UsageError, match="`--suite` names 'imagenet_c_pgd'.* has 2 test sets"):
        open_suites(["imagenet_c_pgd"], imagenet)


def test_a_model_without_errors_on_ones_own_images_has_a_report(tmp_path):
    """No error is no yardstick of an mCE."""
    sets = {"a-b": 1.0, "a-b_c": 1.0, "a-b_pgd/4": 0.5}
    write_results(str(tmp_path), "m", sets, corruption_cost=0.0, suites=("a-b_c",))
    text = write_report([str(tmp_path)])
    assert "mean error" in text and "mCE" not in text


@pytest.mark.parametrize(
    "suite, words",
    [
        ("imagent", "names 'imagent' .did you mean 'imagenet'"),
        ("pdg", "names 'pdg', but there are only"),
        ("folder", "folder:/data/pets/val"),
        ("folder_pgd", "folder_pgd:/data/pets/val"),
        ("imagenet:/data", "takes no path"),
        ("autoattack_pgd", "names 'autoattack_pgd'"),
        ("did:you", "names 'did', but there are only"),
    ],
)
def test_names_of_suites_are_checked_without_any_data(suite, words):
    with pytest.raises(UsageError, match=words):
        suites.check(["imagenet", suite])


def test_the_suite_that_was_asked_for_is_named():
    """Not that of the images it takes."""
    settings = SuiteSettings("/no/folder", 10, 32)
    for suite in ("pgd", "autoattack", "imagenet_c_made", "robustbench"):
        with pytest.raises(UsageError, match=f"names '{suite}', .* the network has 10 outputs"):
            open_suites([suite], settings)


@pytest.mark.parametrize(
    "name, first",
    [("imagenet_a", ["n01498041", "n01531178"]), ("imagenet_r", ["n01443537", "n01484850"])],
)
def test_the_200_classes(name, first):
    """The first of the authors' lists of WordNet ids."""
    ids = sorted(imagenet_suites.class_labels(name))
    assert len(ids) == 200 and ids[:2] == first


@pytest.mark.parametrize("branch, end", [("main", ""), ("aux", "-aux")])
def test_names_become_folders(branch, end):
    classifier = as_classifier(stand_ins.read_classes, name="/some/where/efficientnet-b3.tar.gz")
    folder = evaluation_run.default_directory(dataclasses.replace(classifier, branch=branch))
    assert folder == f"runs/evaluation/efficientnet-b3{end}"


def test_the_table_of_layouts_has_every_name():
    text = (pathlib.Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    for name, layout in imagenet_suites.LAYOUTS.items():
        parts = [folder.split("/")[0] for folder in layout.folders] + [
            archive.split("/")[-1] for archive in layout.archives
        ]
        parts += [layout.tfds[0].split("/")[0]] if layout.tfds else []
        for part in parts:
            shown = part.removesuffix(".tar") if name.startswith("imagenet_v2") else part
            assert f"`{shown}" in text or f"/{shown}" in text or f"{shown}-format-val" in text, (
                name,
                part,
            )
        suite, number = name.split("/")[0], f"{layout.num_images:,}"
        row = next(line for line in text.splitlines() if line.startswith(f"| `{suite}` |"))
        assert number in row, name
