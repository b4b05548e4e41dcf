"""Folders of images by class: which label a folder has, and that every image comes once."""

import numpy as np
import pytest
import tensorflow as tf

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
    assert ImageFolder(directory, num_classes=1000).labels == [
        0,
        207,
        999,
    ]  # tench, golden retriever, toilet tissue
    assert len(set(imagenet_ids())) == 1000


@pytest.mark.parametrize(
    "counts, num_classes, words",
    [
        ({"a": 1, "b": 1}, 3, "2 folders, but the network has 3 classes"),
        ({"a": 1, "n01440764": 1}, 1000, "2 folders, but the network has 1000"),
        ({"n99999999": 1, "n01440764": 1}, 1000, "n99999999, which is none"),
        ({"a": 0, "b": 0}, 2, "no image"),
        ({}, 2, "no folder|0 folders"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, counts, num_classes, words):
    with pytest.raises(DataError, match=words):
        ImageFolder(write_images(tmp_path / "x", counts), num_classes)


def test_folders_named_by_numbers_are_not_sorted_as_text(tmp_path):
    """ImageNet-V2's: "10" comes after "9"."""
    directory = write_images(tmp_path, {str(label): 1 for label in range(12)})
    folder = ImageFolder(directory, num_classes=12)
    assert {path.split("/")[-2]: label for path, label in zip(folder.paths, folder.labels)} == {
        str(i): i for i in range(12)
    }


def test_ids_are_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    path = tfds.core.tfds_path(
        "image_classification/imagenet_resized_labels.txt"
    )  # the same classes, in another order
    assert imagenet_ids() == sorted(path.read_text().split())
