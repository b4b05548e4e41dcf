"""Networks whose class 0 is the background: labels are never off by one."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.data import pipeline, records
from efficientnet_advprop.data.class_names import read_class_names, write_class_names
from efficientnet_advprop.evaluation import evaluation_run
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.images.class_numbers import imagenet_ids
from efficientnet_advprop.models import EfficientNet

LABEL = 7


@pytest.fixture(scope="module")
def network():
    """It has one answer, whatever it sees: its classifier's kernel is zero."""
    model = EfficientNet("edgetpu-S", aux_branches=0, width_coefficient=0.25, depth_coefficient=0.2)
    model.head.classifier.kernel.assign(tf.zeros_like(model.head.classifier.kernel))
    return model


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """ImageNet's validation folder with three pictures of one class, and the same as
    records.
    """
    folder = tmp_path_factory.mktemp("imagenet")
    images = folder / "imagenet" / "val" / imagenet_ids()[LABEL]
    images.mkdir(parents=True)
    picture = tf.io.encode_jpeg(np.full([40, 40, 3], 99, np.uint8)).numpy()
    for index in range(3):
        (images / f"{index}.JPEG").write_bytes(picture)
    for split in ("train", "validation"):
        with records.ShardWriter(str(folder / f"{split}-00000-of-00001")) as writer:
            for _ in range(3):
                writer.write(records.make_example(picture, LABEL))
    return str(folder)


@pytest.mark.parametrize("answer, num_right", [(LABEL + 1, 3), (LABEL, 0), (0, 0)])
def test_suites_find_the_class_behind_the_background(
    network, data_dir, tmp_path, answer, num_right
):
    network.head.classifier.bias.assign(tf.one_hot(answer, 1001))
    results = evaluation_run.run(
        network,
        ["imagenet"],
        data_dir=data_dir,
        out_dir=str(tmp_path),
        allow_incomplete=True,
        image_size=32,
        batch_size=3,
        log=lambda line: None,
    )
    score = results.test_sets["imagenet"].score
    assert (score.num_images, round(score.top1 * 3)) == (3, num_right)


def test_the_pipelines_labels_are_the_networks_classes(data_dir):
    config = ExperimentConfig()
    config.data.image_size = 32
    split = records.open_split(data_dir, "validation")
    for num_classes, label in ((1000, LABEL), (1001, LABEL + 1)):
        batch = next(
            iter(
                labeled_images.make_eval_dataset(
                    config.data, split, global_batch_size=3, num_classes=num_classes
                )
            )
        )
        np.testing.assert_array_equal(batch["labels"], [label] * 3)
        batch = next(
            iter(
                pipeline.make_train_dataset(
                    config.data, split, global_batch_size=3, seed=0, num_classes=num_classes
                )
            )
        )
        np.testing.assert_array_equal(batch["labels"], [label] * 3)


def test_a_labels_map_of_the_data_sets_classes_names_the_background_too(tmp_path):
    write_class_names(str(tmp_path), [f"class {label}" for label in range(1000)])
    path = str(tmp_path / "labels_map.txt")
    assert read_class_names(path, 1001)[:2] == ["background", "class 0"]
    assert read_class_names(path, 1000)[:2] == ["class 0", "class 1"]
