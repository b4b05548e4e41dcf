"""Folders of images by class: every image comes once, and what is passed over is counted and named."""

import os

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.images import image_sources
from efficientnet_advprop.images.image_folders import label_folder, read_image_tree


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


@pytest.mark.parametrize(
    "counts, words",
    [
        ({"a": 1, "aa": 0, "b": 1}, "1 of 3 class folders without an image .*: aa. Put images"),
        ({"a": 0, "b": 0}, "hold no image"),
        ({}, "hold no image"),
    ],
)
def test_a_class_without_images_is_an_error(tmp_path, counts, words):
    directory = write_images(tmp_path / "x", {"z": 0} | counts) if counts else str(tmp_path)
    if counts:
        os.rmdir(tmp_path / "x" / "z")
    for read in (
        lambda: label_folder(directory, 3),
        lambda: image_sources.list_image_folder(directory),
    ):
        with pytest.raises(DataError, match=words):
            read()


def test_the_reason_why_a_class_has_no_images_is_told(tmp_path):
    directory = write_images(tmp_path, {"a": 1, "b": 0, "c": 0})
    (tmp_path / "b" / "x.tif").touch()
    (tmp_path / "c" / "deeper").mkdir()
    (tmp_path / "c" / "deeper" / "x.png").touch()
    with pytest.raises(DataError, match="b, c.*b/x.tif.*below the class folders: c/deeper/x.png"):
        read_image_tree(directory)
    assert read_image_tree(directory, allow_empty=True)[0]["b"] == []


def test_what_is_skipped_is_counted_and_named(tmp_path):
    directory = write_images(tmp_path, {"a": 1, "b": 1})
    for name in ("a/x.tif", "a/y.TIFF", "beside.jpg", "a/deep/er/z.png", "b/._0a.png", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "gone.png", tmp_path / "b" / "link.png")
    (tmp_path / "b" / "taken.WebP").touch()
    told = label_folder(directory, num_classes=2).remarks
    for line in (
        "1 beside the class folders: beside.jpg",
        "1 in folders below the class folders: a/deep/er/z.png",
        "1 no files, but broken links or the like: b/link.png",
        "2 hidden (the name begins with a dot): .DS_Store, b/._0a.png",
    ):
        assert f"passed over: {line}" in told
    assert any(
        line.startswith("passed over: 2 of other kinds") and line.endswith("a/x.tif, a/y.TIFF")
        for line in told
    )
    lines = []
    image_sources.list_image_folder(directory, log=lines.append)
    assert lines == [f"{directory}: {line}" for line in told]


def test_names_that_are_no_text_are_named(tmp_path):
    directory = write_images(tmp_path, {"a": 1})
    with open(os.fsencode(tmp_path) + b"/a/caf\xe9.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"1 names that are no text in UTF-8: a/caf\\xe9.png"):
        label_folder(directory, 1)
