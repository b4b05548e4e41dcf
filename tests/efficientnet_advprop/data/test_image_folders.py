"""Folders of images by class: which label a folder has, and that every image comes once."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.image_folders import ImageFolder, imagenet_ids
from efficientnet_advprop.data.records import DataError


def write_images(root, counts):
    """`counts`: class folder → number of images; every image is of another colour."""
    colour = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            pixels = np.full([9 + index, 12, 3], colour := colour + 5, np.uint8)
            name, encode = [("a.png", tf.io.encode_png), ("b.JPEG", tf.io.encode_jpeg)][index % 2]
            (root / folder / f"{index}{name}").write_bytes(encode(pixels).numpy())
    return str(root)


def test_labels_are_the_sorted_folders(tmp_path):
    directory = write_images(tmp_path, {"dog": 2, "cat": 3, "emu": 0})
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cat" / "notes.txt").touch()
    folder = ImageFolder(directory, num_classes=3)
    assert folder.labels == [0, 0, 0, 1, 1] and folder.paths[3].endswith("dog/0a.png")


def test_some_of_imagenets_classes_keep_their_labels(tmp_path):
    directory = write_images(tmp_path, {"n01440764": 1, "n02099601": 1, "n15075141": 1})
    assert ImageFolder(directory, num_classes=1000).labels == [0, 207, 999]  # tench, golden retriever, toilet tissue
    assert len(set(imagenet_ids())) == 1000


@pytest.mark.parametrize(
    "counts, num_classes, words",
    [
        ({"a": 1, "b": 1}, 3, "2 folders, but the network has 3 classes"),
        ({"a": 1, "n01440764": 1}, 1000, "2 folders, but the network has 1000"),
        ({"n99999999": 1, "n01440764": 1}, 1000, "n99999999, which are none"),
        ({"a": 0, "b": 0}, 2, "no image"),
        ({}, 2, "no folder|0 folders"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, counts, num_classes, words):
    with pytest.raises(DataError, match=words):
        ImageFolder(write_images(tmp_path / "x", counts), num_classes)


@pytest.mark.parametrize(
    "num_hosts, num_replicas, global_batch_size", [(1, 1, 4), (1, 2, 4), (3, 3, 6), (2, 4, 8), (1, 1, 100)]
)
def test_every_image_comes_once(tmp_path, num_hosts, num_replicas, global_batch_size):
    folder = ImageFolder(write_images(tmp_path, {"a": 4, "b": 7}), num_classes=2)
    found, numbers = [], set()
    for host in range(num_hosts):
        context = tf.distribute.InputContext(num_hosts, host, num_replicas)
        batches = list(folder.make_eval_dataset(image_size=8, global_batch_size=global_batch_size, input_context=context))
        numbers.add(len(batches))
        for batch in batches:
            assert batch["images"].shape == [global_batch_size // num_replicas, 8, 8, 3]
            rows = zip(batch["images"].numpy(), batch["labels"].numpy(), batch["mask"].numpy())
            found += [(int(round(image.mean())), label) for image, label, mask in rows if mask]
    assert len(numbers) == 1
    wanted = [(5 * (index + 1), 0 if index < 4 else 1) for index in range(11)]
    assert sorted(found) == wanted


def test_pixels_are_those_of_the_evaluation(tmp_path):
    folder = ImageFolder(write_images(tmp_path, {"a": 2}), num_classes=1)
    batch = next(iter(folder.make_eval_dataset(image_size=8, crop="0.5", global_batch_size=2)))
    for path, image in zip(folder.paths, batch["images"]):
        np.testing.assert_array_equal(image, preprocessing.preprocess_for_eval(tf.io.read_file(path), 8, "0.5"))


def test_unreadable_files_are_named(tmp_path):
    folder = ImageFolder(write_images(tmp_path, {"a": 2}), num_classes=1)
    (tmp_path / "a" / "0a.png").write_bytes(b"broken")
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(folder.make_eval_dataset(image_size=8, global_batch_size=2))
    assert folder.find_unreadable() == [str(tmp_path / "a" / "0a.png")]
