"""ImageNet's validation images as they are downloaded: one flat folder, and a file with
the class of each.

    paths, labels = list_flat_validation("/data/ILSVRC2012_img_val")
    validation_number("val/n01/ILSVRC2012_val_00000293.JPEG", "/data/val.tar")    # 293

The file is looked for in the folder and beside it. Its lines belong to
ILSVRC2012_val_00000001.JPEG, …_00000002.JPEG and so on, and hold one of:

- WordNet ids, as `synset_labels.txt` of TensorFlow's converters does;
- labels from 0 to 999, as the official `eval_ckpt_main.py` wants them;
- the numbers of ILSVRC's development kit, from 1 to 1000, whose order is another one: the kit's
  `meta.mat` must lie beside them.
"""

import os
import re
from typing import Optional

import scipy.io
import tensorflow as tf
from scipy.io.matlab import MatReadError

from efficientnet_advprop.data.image_formats import is_image
from efficientnet_advprop.images.class_numbers import imagenet_ids, require_known
from efficientnet_advprop.runtime.errors import DataError, brief_message

NAMES = ("ILSVRC2012_validation_ground_truth.txt", "synset_labels.txt", "imagenet_val_labels.txt")
META = "meta.mat"
NUM_VALIDATION = 50_000
_IMAGE = re.compile(r"ILSVRC2012_val_0*(\d+)\.[a-z]+", re.IGNORECASE)
_NUM_CLASSES = 1000


def read_text(path: str) -> str:
    """Reads a list of somebody: a text in UTF-8, with or without a byte order mark, local or
    remote.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"it is no text in UTF-8 ({error}); save it as such.", path) from error
    except tf.errors.OpError as error:
        raise DataError(f"it cannot be read: {brief_message(error)}", path) from error


def validation_number(path: str, where: str, last: int = NUM_VALIDATION) -> int:
    """Returns the number in a validation image's name, by which every list knows it; it is
    refused unless it is one of 1 … `last`. `where` is what holds the image, for the message.
    """
    match = _IMAGE.fullmatch(os.path.basename(path))
    number = int(match[1]) if match else 0
    if not 1 <= number <= last:
        raise DataError(
            f"it holds {path!r}, but its images are known by their names, ILSVRC2012_val_00000001"
            f".JPEG to …_{last:08d}.JPEG; take others away, or number them so.",
            where,
        )
    return number


def find_ground_truth(directory: str) -> Optional[str]:
    """Returns the file with the classes of a flat folder's images; None if there is none
    of the usual names.
    """
    above = os.path.dirname(directory.rstrip("/"))
    for folder in (directory, above):
        for name in NAMES:
            path = os.path.join(folder, name)
            if tf.io.gfile.exists(path):
                return path
    return None


def is_flat(directory: str) -> bool:
    """Whether a folder holds validation images itself rather than folders of them."""
    return any(_IMAGE.fullmatch(name) for name in tf.io.gfile.listdir(directory))


def list_flat_validation(directory: str) -> tuple[list[str], list[int]]:
    """Returns the images of a flat folder, sorted, and their labels, 0 to 999."""
    truth = find_ground_truth(directory)
    if truth is None:
        raise DataError(
            f"{directory!r} holds images without class folders, and no file says their classes; put"
            f" one of {', '.join(NAMES)} into it, or sort the images into one folder per class."
        )
    labels = read_ground_truth(truth)
    names = sorted(name for name in tf.io.gfile.listdir(directory) if is_image(name))
    numbers = [validation_number(name, directory, len(labels)) for name in names]
    return [os.path.join(directory, name) for name in names], [labels[n - 1] for n in numbers]


def read_ground_truth(path: str) -> list[int]:
    """Returns the labels in a file's lines, 0 to 999."""
    lines = read_text(path).split()
    by_id = {name: label for label, name in enumerate(imagenet_ids())}
    if lines and all(re.fullmatch(r"n\d{8}", line) for line in lines):
        require_known(sorted(set(lines)), by_id, path, "none of ImageNet's 1000 classes")
        return [by_id[line] for line in lines]
    if not lines or not all(re.fullmatch("[0-9]+", line) for line in lines):
        raise DataError(
            f"{path!r} must have a line for each image with a WordNet id, a label from 0 to 999 or"
            " a number of the development kit, and nothing else."
        )
    numbers = list(map(int, lines))
    if min(numbers) == 0 and max(numbers) < _NUM_CLASSES:
        return numbers
    meta = os.path.join(os.path.dirname(path), META)
    if not 1 <= min(numbers) <= max(numbers) <= _NUM_CLASSES or not tf.io.gfile.exists(meta):
        raise DataError(
            f"{path!r} holds numbers from {min(numbers)} to {max(numbers)}. Labels would begin with"
            f" 0; those of the development kit, 1 to {_NUM_CLASSES}, are in another order, which"
            f" its {META} tells: put that beside the file."
        )
    of_kit = _read_meta(meta)
    return [by_id[of_kit[number]] for number in numbers]


def _read_meta(path: str) -> dict[int, str]:
    """Returns the development kit's numbers → WordNet ids."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            synsets = scipy.io.loadmat(file, squeeze_me=True)["synsets"]
        of_kit = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except (MatReadError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{path!r} is no table of the development kit: {brief_message(error)}"
        ) from error
    # Above 1000 it lists groups of classes.
    leaves = {number: name for number, name in of_kit.items() if number <= _NUM_CLASSES}
    if set(leaves.values()) != set(imagenet_ids()):
        raise DataError(f"{path!r} does not name ImageNet's 1000 classes; take the kit of 2012.")
    return leaves
