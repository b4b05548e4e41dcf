"""Suites by name, scored against counting by hand."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import records
from efficientnet_advprop.evaluation.evaluator import Evaluator
from efficientnet_advprop.evaluation.named_suites import ITERATION_ERRORS, SuiteError, SuiteSettings, open_suite

CLASSES = 10


def settings(data_dir=None, strategy=None, batch=4):
    return SuiteSettings(data_dir, 8, "released", CLASSES, batch, strategy or tf.distribute.get_strategy())


def logits_of(images):
    """Class k for an image of the gray level 20·k, with a loss that depends on the level's rest."""
    levels = tf.reduce_mean(images, [1, 2, 3])[:, None]
    return -tf.abs(levels / 20.0 - tf.range(CLASSES, dtype=tf.float32)[None])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """11 images of the gray levels 0, 20, … and 5, 25, …; those at index 3, 6 and 9 carry the next class as their label: 9
    that of 0, far away."""
    root = tmp_path_factory.mktemp("data")
    levels = [20 * (index % CLASSES) + (5 if index % 2 else 0) for index in range(11)]
    labels = [(index + (index in (3, 6, 9))) % CLASSES for index in range(11)]
    files = [tf.io.encode_png(np.full([9, 9, 3], level, np.uint8)).numpy() for level in levels]
    (root / "tfrecords").mkdir()
    with records.ShardWriter(str(root / "tfrecords" / "validation-00000-of-00001")) as writer:
        for file, label in zip(files, labels):
            writer.write(records.make_example(file, label))
    for label in range(CLASSES):
        (root / "folder" / f"class{label}").mkdir(parents=True)
    for index, (file, label) in enumerate(zip(files, labels)):
        (root / "folder" / f"class{label}" / f"{index:02d}.png").write_bytes(file)
    distances = np.abs(np.array(levels)[:, None] / 20.0 - np.arange(CLASSES))
    losses = distances[np.arange(11), labels] + np.log(np.exp(-distances).sum(1))
    return root, losses.mean()


@pytest.mark.parametrize("name", ["imagenet", "folder"])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_scores_are_those_counted_by_hand(data, name, num_replicas, two_replicas):
    root, loss = data
    strategy = two_replicas if num_replicas > 1 else None
    own = settings(str(root / "tfrecords"), strategy)
    (test_set,) = open_suite("imagenet" if name == "imagenet" else f"folder:{root / 'folder'}", own)
    score = Evaluator(logits_of, strategy=own.strategy)(test_set.open_batches())
    assert (test_set.num_images, score.num_images, score.num_top1, score.num_top5) == (11, 11, 8, 10)
    assert score.loss == pytest.approx(loss, rel=1e-4)
    assert not test_set.is_imagenet


@pytest.mark.parametrize(
    "text, words", [("imagenet_z", "there are only imagenet, folder"), ("imagenet:x", "no argument"), ("folder", "say which")]
)
def test_suites_that_there_are_not(text, words):
    with pytest.raises(SuiteError, match=words):
        open_suite(text, settings("/somewhere"))


def test_missing_data():
    with pytest.raises(SuiteError, match="--data_dir"):
        open_suite("imagenet", settings())
    with pytest.raises(records.DataError):
        open_suite("imagenet", settings("/no/such/folder"))
    with pytest.raises(records.DataError, match="no folder"):
        open_suite("folder:/no/such/folder", settings())


def test_a_broken_image_is_named(data, tmp_path):
    for label in range(CLASSES):
        (tmp_path / str(label)).mkdir()
    (tmp_path / "3" / "broken.jpg").write_bytes(b"x")
    (test_set,) = open_suite(f"folder:{tmp_path}", settings())
    with pytest.raises(ITERATION_ERRORS) as error:
        Evaluator(logits_of)(test_set.open_batches())
    assert "3/broken.jpg" in test_set.explain(error.value)
