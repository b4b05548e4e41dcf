"""The images that an export is checked on, and that full-integer ranges are measured with."""

import dataclasses
import importlib.resources
import re
from typing import Optional, Sequence, Union

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.config.tables import background_offset
from efficientnet_advprop.data import image_formats, preprocessing, records
from efficientnet_advprop.images.image_folders import label_folder, list_folders
from efficientnet_advprop.images.labeled_images import RecordImages, drawn_positions
from efficientnet_advprop.runtime.errors import DataError, UsageError, brief_message
from efficientnet_advprop.serving.image_classification import find_images


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images as encoded, and as float32 [n, size, size, 3], pre-processed."""

    files: Sequence[bytes]
    images: np.ndarray
    labels: Optional[Sequence[int]] = None  # None: not known


def default_examples(
    image_size: int, crop: Union[str, float], resize_method: str = "bicubic"
) -> Examples:
    """Returns two photographs that scikit-learn ships, and the quarters of each."""
    files = []
    for name in ("china.jpg", "flower.jpg"):
        file = importlib.resources.files("sklearn.datasets.images").joinpath(name).read_bytes()
        photograph = tf.io.decode_jpeg(file)
        height, width = photograph.shape[0] // 2, photograph.shape[1] // 2
        files.append(file)
        for y in (0, height):
            for x in (0, width):
                quarter = photograph[y : y + height, x : x + width]
                files.append(tf.io.encode_jpeg(quarter, quality=95).numpy())
    return _examples(files, image_size, crop, resize_method)


def read_examples(
    directory: str,
    image_size: int,
    crop: Union[str, float],
    num_classes: int,
    max_images: int,
    class_names: Optional[Sequence[str]] = None,
    resize_method: str = "bicubic",
) -> Examples:
    """Returns at most `max_images` images of a folder, evenly drawn.

    The folder has TFRecords, `validation-…-of-…` or else `train-…-of-…`, or one sub-folder
    per class (see `label_folder`), which label the images; or images alone. `num_classes` and
    `class_names` are the network's, its background class included.

    Raises:
        UsageError: there is no such folder.
        DataError: it has no images, or one of them cannot be decoded.
    """
    if not tf.io.gfile.isdir(directory):
        raise UsageError(f"`--calibration_dir` is {directory!r}, but there is no such folder.")
    prefix = _find_records(directory)
    offset = background_offset(num_classes)
    if prefix is not None:
        images = RecordImages(records.open_split(directory, prefix), num_classes - offset)
        drawn = drawn_positions(min(max_images, images.num_images), images.num_images)
        rows = list(images.rows(drawn).as_numpy_iterator())
        labels = [int(label) + offset for _, label, _ in rows]
        return _examples([file for file, _, _ in rows], image_size, crop, resize_method, labels)
    if list_folders(directory):
        names = class_names[offset:] if class_names else None
        found = label_folder(directory, num_classes - offset, class_names=names)
        paths, labels = found.paths, [label + offset for label in found.labels]
        for line in found.remarks:
            logging.warning("%s: %s", directory, line)
    else:
        paths, labels = find_images([directory]), None
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(max_images, len(paths))).astype(int))
    files = []
    for index in chosen:
        try:
            files.append(image_formats.read_file(paths[index]))
            image_formats.decode(files[-1])
        except (DataError, tf.errors.OpError) as error:
            raise DataError(
                f"{paths[index]!r} in `--calibration_dir` cannot be read: {brief_message(error)}"
            ) from error
    chosen_labels = None if labels is None else [labels[index] for index in chosen]
    return _examples(files, image_size, crop, resize_method, chosen_labels)


def _find_records(directory: str) -> Optional[str]:
    """Returns the prefix of the TFRecords in a folder, "validation" rather than "train";
    None if there are none.
    """
    names = tf.io.gfile.listdir(directory)
    for prefix in ("validation", "train"):
        if any(re.fullmatch(rf"{prefix}-\d+-of-\d+", name) for name in names):
            return prefix
    return None


def _examples(files, image_size, crop, resize_method, labels=None) -> Examples:
    prepare = tf.function(
        lambda file: preprocessing.preprocess_for_eval(
            file, image_size, crop, resize_method, exact_jpeg=True
        ),
        autograph=False,
    )
    return Examples(files, np.stack([prepare(tf.constant(file)).numpy() for file in files]), labels)
