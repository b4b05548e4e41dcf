"""AutoAttack as an evaluation: stage by stage, resumable, with what makes it doubtful."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.attacks import PGD, AttackError, AutoAttack
from efficientnet_advprop.evaluation import evaluation_run
from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.evaluation.results import ImagePredictions, Results, predictions_path
from efficientnet_advprop.evaluation.suites.test_sets import (
    TestSet,
    attack_stages,
    square_alone,
    with_attack,
)
from efficientnet_advprop.evaluation.test_set_name import title
from efficientnet_advprop.images.labeled_images import FileImages
from efficientnet_advprop.reports.comparison import compare, read_measured
from efficientnet_advprop.reports.report_rows import list_measures
from efficientnet_advprop.runtime.errors import UsageError
from tests.efficientnet_advprop.attacks.linear_network import (
    WEIGHTS,
    batch,
    boundary_distances,
    linear,
)

NUM_IMAGES, EPSILON = 22, 3.0
ATTACK = AutoAttack(EPSILON, num_classes=5, num_targets=4, num_steps=8, num_queries=20)
STAGES = ["apgd_ce", "apgd_t", "fab_t", "square"]
NAMES = [f"suite/linf_3/{stage}" for stage in ["clean", *STAGES]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Images of which the first two are labelled wrong."""
    root = tmp_path_factory.mktemp("images")
    images, labels = batch(NUM_IMAGES)
    labels[:2] = (labels[:2] + 1) % 5
    paths = []
    for number, image in enumerate(images):
        paths.append(str(root / f"{number:02d}.png"))
        Image.fromarray(image).save(paths[-1])
    return TestSet(
        "suite/clean",
        str(root),
        lambda: FileImages(paths, labels.tolist(), str(root)),
        image_size=4,
        crop="none",
    )


def is_robust():
    images, labels = batch(NUM_IMAGES)
    return (boundary_distances(images, labels, "linf") > EPSILON) & (np.arange(NUM_IMAGES) >= 2)


def measure(clean, out_dir, function=linear, stages=None, batch_size=8, **options):
    name = "linear"
    classifier = as_classifier(tf.function(function), name=name, image_size=4, crop="none")
    stages = stages or attack_stages(clean, "suite", ATTACK, seed=3, with_clean=True)
    options = {"log": lambda line: None, **options}
    return evaluation_run.measure(
        classifier, stages, str(out_dir), batch_size=batch_size, **options
    )


def read(out_dir, name):
    return ImagePredictions.read(predictions_path(str(out_dir), name))


@pytest.fixture(scope="module")
def measured(clean, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("measured")
    return measure(clean, out_dir), out_dir


def test_stage_by_stage(measured):
    results, out_dir = measured
    assert list(results.test_sets) == NAMES
    accuracies = [result.score.num_top1 for result in results.test_sets.values()]
    assert accuracies[0] == NUM_IMAGES - 2 and accuracies == sorted(accuracies, reverse=True)
    np.testing.assert_array_equal(read(out_dir, NAMES[-1]).is_top1, is_robust())
    before, after = (read(out_dir, name) for name in NAMES[1:3])
    np.testing.assert_array_equal(before.image_ids, after.image_ids)
    # What was wrong is not looked at again, what withstands is answered under attack.
    is_done = ~before.is_top1
    np.testing.assert_array_equal(before.losses[is_done], after.losses[is_done])
    conditions = results.test_sets[NAMES[1]].conditions
    assert conditions.attack["name"] == "APGD" and conditions.attack["epsilon"] == EPSILON
    assert not any(result.warnings for result in results.test_sets.values())


@pytest.mark.parametrize("black_and_white", [(0.0, 255.0), (0.0, 250.0)])
def test_what_pgd_did_is_not_done_again(clean, tmp_path, black_and_white):
    attack = PGD(EPSILON, 1.0, 2, targeted=False, pixel_range=black_and_white)
    stages = [with_attack(dataclasses.replace(clean, name="folder"), attack)]
    measure(clean, tmp_path, stages=stages)
    lines = []
    measure(clean, tmp_path, stages=stages, log=lines.append)
    assert len(lines) == 1 and "1 of 1 test sets were measured before" in lines[0]


def test_it_goes_on_with_the_attack_where_it_stopped(clean, measured, tmp_path):
    results, out_dir = measured
    stages = attack_stages(clean, "suite", ATTACK, seed=3, with_clean=True)
    measure(clean, tmp_path, stages=stages[:3])
    lines = []
    classifier = as_classifier(tf.function(linear), name="linear", image_size=4, crop="none")
    again = evaluation_run.measure(
        classifier, stages, str(tmp_path), batch_size=8, log=lines.append
    )
    assert "3 of 5 test sets were measured before" in "\n".join(lines)
    assert {name: one.score for name, one in again.test_sets.items()} == {
        name: one.score for name, one in results.test_sets.items()
    }


@pytest.mark.slow
def test_on_two_replicas(clean, tmp_path, two_replicas):
    stages = attack_stages(clean, "suite", ATTACK, seed=3)[:2]
    with two_replicas.scope():
        measure(clean, tmp_path, stages=stages, strategy=two_replicas)
    np.testing.assert_array_equal(read(tmp_path, stages[-1].name).is_top1, is_robust())


def test_what_square_alone_finds_stands_with_the_number(clean, tmp_path):
    @tf.custom_gradient
    def misleading(images):
        return linear(
            images
        ), lambda upstream: -tf.reshape(upstream @ WEIGHTS.T / 255.0, tf.shape(images))

    attack = dataclasses.replace(ATTACK, num_steps=2, num_queries=200)
    results = measure(
        clean, tmp_path, misleading, [attack_stages(clean, "suite", attack, 0)[i] for i in (0,)]
    )
    apgd, square = (attack_stages(clean, "suite", attack, 0)[i] for i in (0, 3))
    square = dataclasses.replace(square, after=apgd.name)
    results = measure(clean, tmp_path, misleading, [apgd, square])
    num_found = results.test_sets[apgd.name].score.num_top1
    num_found -= results.test_sets[square.name].score.num_top1
    assert num_found > 0
    (doubt,) = results.test_sets[square.name].warnings
    assert f"on {num_found} of {NUM_IMAGES} images" in doubt
    assert Results.read(str(tmp_path)).test_sets[square.name].warnings == (doubt,)
    (measured,) = read_measured([str(tmp_path)])
    rows = list_measures(compare([measured]), measured)
    assert doubt in rows[-1].remarks and title(rows[-1].suite) == "suite, L∞ ε = 3, after Square"


def test_networks_that_cannot_be_attacked_are_not_scored(clean, tmp_path):
    with pytest.raises(AttackError, match="same logits for all"):
        measure(clean, tmp_path / "constant", lambda images: 0.0 * linear(images))
    with pytest.raises(AttackError, match="cannot be differentiated"):
        measure(clean, tmp_path / "flat", lambda images: tf.stop_gradient(linear(images)))
    assert list(Results.read(str(tmp_path / "flat")).test_sets) == [NAMES[0]]  # the clean ones


def test_a_radius_that_reaches_every_image_is_refused(clean, tmp_path):
    attack = AutoAttack(2000.0, "l2", num_classes=5, num_targets=4, num_steps=2, num_queries=2)
    with pytest.raises(AttackError, match="`epsilon` is 2000.0.* at most 1766.69 apart"):
        measure(clean, tmp_path, stages=attack_stages(clean, "suite", attack, seed=0))


def test_square_alone_attacks_what_has_no_gradient(clean, tmp_path):
    def plain(images):
        assert images.dtype == np.uint8
        return images.reshape(len(images), 48).astype(np.float32) @ WEIGHTS / 255.0

    classifier = as_classifier(plain, name="plain", image_size=4, crop="none")
    with pytest.raises(UsageError, match="--suite=autoattack/square"):
        evaluation_run.measure(
            classifier,
            attack_stages(clean, "suite", ATTACK, 0),
            str(tmp_path),
            log=lambda line: None,
        )
    attack = dataclasses.replace(ATTACK, num_queries=200)
    results = evaluation_run.measure(
        classifier,
        [square_alone(clean, "autoattack", attack, 0)],
        str(tmp_path),
        batch_size=11,
        log=lambda line: None,
    )
    (name,) = results.test_sets
    assert name == "autoattack/linf_3/square_alone"
    is_right = read(tmp_path, name).is_top1
    assert is_right[is_robust()].all() and is_right.sum() < NUM_IMAGES - 4


def test_another_chain_is_another_measurement(clean, measured, tmp_path):
    """Square of "plus" follows other attacks than that of "standard", by the same name."""
    attack = dataclasses.replace(ATTACK, num_steps=2, num_queries=2)
    first = attack_stages(clean, "suite", attack, seed=3)
    measure(clean, tmp_path, stages=[first[0], dataclasses.replace(first[3], after=first[0].name)])
    other = dataclasses.replace(first[0], attack=dataclasses.replace(first[0].attack, num_steps=3))
    lines = []
    stages = [other, dataclasses.replace(first[3], after=other.name)]
    measure(clean, tmp_path, stages=stages, log=lines.append)
    assert not any("measured before" in line for line in lines)
