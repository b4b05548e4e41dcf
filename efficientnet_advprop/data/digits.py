"""The embedded data set: scikit-learn's handwritten digits as sharded TFRecords, with
corrupted test sets.

    # train: 797 images, validation: 1000
    ensure_digits("/tmp/digits")
    # -> the folder with its validation files
    ensure_corrupted_digits("/tmp/digits", "gaussian_noise", severity=3)

1,797 real handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition of
Handwritten Digits, UCI, CC BY 4.0), 8×8 in 17 grays, come with scikit-learn. Here each
is enlarged to 32×32 RGB (bicubic) and kept as a PNG. Enough test images are held out
that a percentage is sure to ±1.4 at 95 % accuracy (two standard deviations).
"""

import io
import os
import uuid
from typing import List, Tuple

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from efficientnet_advprop import files
from efficientnet_advprop.data import corruptions, records

IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_VALIDATION = 1000
_SPLIT_SEED = 0
_NUM_SHARDS = {"train": 8, "validation": 4}


def _interleave_classes(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorders so that every leading part holds the classes as evenly as there are
    images of them.
    """
    rank = np.zeros(len(indices), np.int64)
    for label in range(NUM_CLASSES):
        of_class = np.flatnonzero(labels[indices] == label)
        rank[of_class] = np.arange(len(of_class))
    return indices[np.lexsort((labels[indices], rank))]


def load_digits(split: str) -> Tuple[np.ndarray, np.ndarray]:
    """The images (uint8 [n, 32, 32, 3]) and labels (int64 [n]) of "train" or
    "validation", in the order of the records.
    """
    from sklearn import datasets  # imported here: only this data set needs scikit-learn

    source = datasets.load_digits()
    order = _interleave_classes(
        np.random.RandomState(_SPLIT_SEED).permutation(len(source.target)), source.target
    )
    chosen = order[:NUM_VALIDATION] if split == "validation" else order[NUM_VALIDATION:]
    chosen = _interleave_classes(chosen, source.target)
    images = np.stack(
        [
            np.asarray(
                Image.fromarray((digit * (255 / 16)).round().astype(np.uint8)).resize(
                    (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
                )
            )
            for digit in source.images[chosen]
        ]
    )
    return np.repeat(images[..., None], 3, axis=-1), source.target[chosen].astype(np.int64)


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_split(folder: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    num_shards = _NUM_SHARDS[split]
    for shard in range(num_shards):
        with records.ShardWriter(
            os.path.join(folder, records.shard_name(split, shard, num_shards))
        ) as writer:
            for index in range(shard, len(labels), num_shards):
                writer.write(
                    records.make_example(
                        _encode(images[index]),
                        int(labels[index]),
                        height=IMAGE_SIZE,
                        width=IMAGE_SIZE,
                        image_format="PNG",
                        filename=f"{split}-{index:05d}.png",
                    )
                )


def _is_complete(directory: str, splits: List[str]) -> bool:
    return all(
        tf.io.gfile.exists(
            os.path.join(directory, records.shard_name(split, shard, _NUM_SHARDS[split]))
        )
        for split in splits
        for shard in range(_NUM_SHARDS[split])
    )


def _publish(directory: str, write, splits: List[str]) -> None:
    """Has `write(folder)` fill a folder of its own, then moves it into place: two
    processes at once end with one whole set.
    """
    directory = directory.rstrip("/")
    temporary = f"{directory}.{uuid.uuid4().hex}.tmp"
    tf.io.gfile.makedirs(temporary)
    try:
        write(temporary)
        tf.io.gfile.makedirs(directory)
        # File by file: the folder may hold other things, and both processes' files are
        # the same.
        for name in files.list_folder(temporary):
            tf.io.gfile.rename(
                os.path.join(temporary, name), os.path.join(directory, name), overwrite=True
            )
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)
    assert _is_complete(directory, splits)


def ensure_digits(directory: str) -> None:
    """Writes the digits' `train-*` and `validation-*` files into `directory` unless
    they are there.

    Always the same bytes.

    Raises:
        records.DataError: the folder cannot be written.
    """
    splits = ["train", "validation"]
    if not directory:
        raise records.DataError(
            "`data_dir` is empty; give a folder in which the digits may be written."
        )
    if _is_complete(directory, splits):
        return
    logging.info("Writing scikit-learn's handwritten digits into %s.", directory)

    def write(folder: str) -> None:
        for split in splits:
            _write_split(folder, split, *load_digits(split))

    _publish_or_explain(directory, write, splits)


def corrupted_directory(directory: str, corruption: str, severity: int) -> str:
    return os.path.join(directory, "corrupted", corruption, str(severity))


def ensure_corrupted_digits(directory: str, corruption: str, severity: int) -> str:
    """Writes the validation images under one corruption unless they are there.

    Args:
        directory: the one given to `ensure_digits`; the corrupted set lies below it.
        corruption: a name of `corruptions.CORRUPTIONS`.
        severity: 1…5.

    Returns:
        The folder with its `validation-*` files: the same images in the same order as
        the clean ones.
    """
    folder = corrupted_directory(directory, corruption, severity)
    if not _is_complete(folder, ["validation"]):
        images, labels = load_digits("validation")
        corrupted = np.stack(
            [
                corruptions.corrupt(image, corruption, severity, seed=index)
                for index, image in enumerate(images)
            ]
        )
        _publish_or_explain(
            folder,
            lambda temporary: _write_split(temporary, "validation", corrupted, labels),
            ["validation"],
        )
    return folder


def _publish_or_explain(directory: str, write, splits: List[str]) -> None:
    try:
        _publish(directory, write, splits)
    except (OSError, tf.errors.OpError) as error:
        raise records.DataError(
            f"the digits cannot be written into {directory!r}: {error}"
        ) from error
