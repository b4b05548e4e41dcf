"""Reads IDX files, the format of MNIST and Fashion-MNIST, gzipped or not.

    images = read_idx("/data/train-images-idx3-ubyte.gz")    # uint8 [60000, 28, 28]
    images, labels = read_idx_split("/data", "train")

The format is Y. LeCun's (http://yann.lecun.com/exdb/mnist): two zero bytes, one for the
type of the values, one for the number of axes, their sizes, then the values.
"""

import gzip
import os
from typing import Optional, Tuple

import numpy as np
import tensorflow as tf

from efficientnet_advprop.runtime.errors import DataError

_UNSIGNED_BYTES = 8
_PREFIXES = {"train": "train", "validation": "t10k"}


def read_idx(path: str) -> np.ndarray:
    """Returns the array in a file of unsigned bytes.

    Raises:
        DataError: the file cannot be read, is no IDX file of bytes, or is cut short.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            contents = file.read()
        if contents[:2] == b"\x1f\x8b":
            contents = gzip.decompress(contents)
    except (OSError, EOFError, tf.errors.OpError) as error:
        raise DataError(f"the file cannot be read: {error}", path) from error
    if contents[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or len(contents) < 8:
        raise DataError("it is no IDX file of unsigned bytes.", path)
    num_axes = contents[3]
    start = 4 + 4 * num_axes
    shape = np.frombuffer(contents[4:start].ljust(4 * num_axes, b"\0"), ">u4").astype(int)
    if len(contents) - start != shape.prod():
        raise DataError(
            f"it holds {max(0, len(contents) - start):,} values, but its head says"
            f" {' × '.join(map(str, shape))}.",
            path,
        )
    return np.frombuffer(contents, np.uint8, offset=start).reshape(shape)


def find_idx_file(folder: str, split: str, kind: str) -> Optional[str]:
    """Returns the file of the "images" or "labels" of "train" or "validation" (MNIST's
    "t10k"); None: there is none.
    """
    axes = {"images": 3, "labels": 1}[kind]
    name = f"{_PREFIXES[split]}-{kind}-idx{axes}-ubyte"
    for path in (os.path.join(folder, name), os.path.join(folder, f"{name}.gz")):
        if tf.io.gfile.exists(path):
            return path
    return None


def read_idx_split(folder: str, split: str) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the images (uint8 [n, height, width]) and labels (uint8 [n]) of a split."""
    paths = {kind: find_idx_file(folder, split, kind) for kind in ("images", "labels")}
    if None in paths.values():
        raise DataError(
            f"it holds no {_PREFIXES[split]}-images-idx3-ubyte and -labels-idx1-ubyte, gzipped or"
            " not.",
            folder,
        )
    images, labels = read_idx(paths["images"]), read_idx(paths["labels"])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"its images are {list(images.shape)} and its labels {list(labels.shape)}, but must be"
            " [n, height, width] and [n].",
            folder,
        )
    return images, labels
