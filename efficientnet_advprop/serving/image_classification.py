"""The most probable classes of image files.

images = find_images(["photos/", "*.png"])
for prediction in predict(network.model, images, image_size=300, crop="released"):
    prediction.path, prediction.classes, prediction.probabilities  # or prediction.problem
"""

import dataclasses
import glob
import os
from typing import Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import image_formats, preprocessing
from efficientnet_advprop.data.image_formats import IMAGE_SUFFIXES, is_hidden
from efficientnet_advprop.images.image_folders import list_images
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.errors import DataError, UsageError, brief_message

_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The top classes of one file, the most probable first, or why there are none."""

    path: str
    classes: Sequence[int] = ()
    probabilities: Sequence[float] = ()  # in [0, 1]
    problem: Optional[str] = None


def find_images(arguments: Sequence[str]) -> list[str]:
    """Lists the image files of `arguments`: files, folders, patterns; local or remote.

    Hidden files in a folder, or that a pattern fits, do not count.

    Raises:
        UsageError: an argument stands for none.
        DataError: a folder holds an image whose name is no text in UTF-8.
    """
    paths = []
    for argument in arguments:
        if tf.io.gfile.isdir(argument):
            found = list_images(argument)
        elif tf.io.gfile.exists(argument):
            found = [argument]
        else:
            folder, name = os.path.split(argument)
            if tf.io.gfile.isdir(folder):  # brackets and the like in it are then its name
                folder = glob.escape(folder)
            matches = sorted(tf.io.gfile.glob(os.path.join(folder, name)))
            found = [path for path in matches if is_hidden(name) or not is_hidden(path)]
        if not found:
            raise UsageError(
                f"{argument!r} is no image, no folder with images ({', '.join(IMAGE_SUFFIXES)}) "
                "and no pattern of any."
            )
        paths += found
    return paths


def predict(
    model: keras.Model,
    paths: Sequence[str],
    *,
    image_size: int,
    crop: str = "released",
    num_top: int = 5,
) -> Iterator[Prediction]:
    """Classifies image files; those that cannot be read have a `problem` instead.

    Args:
        model: a `Network`.
        paths: of JPEG, PNG, GIF, BMP or WebP files.
        image_size, crop: see `preprocessing.preprocess_for_eval`.
        num_top: how many classes, at most.
    """
    images_spec = tf.TensorSpec([None, image_size, image_size, 3])

    @tf.function(input_signature=[images_spec], autograph=False)
    def classify(images):
        return tf.math.top_k(
            model.probabilities(model(images, training=False)), min(num_top, model.num_classes)
        )

    for start in range(0, len(paths), _BATCH_SIZE):
        readable, predictions = [], {}
        for path in paths[start : start + _BATCH_SIZE]:
            try:
                encoded = image_formats.read_file(path)
                pixels = preprocessing.preprocess_for_eval(encoded, image_size, crop)
                readable.append((path, pixels))
            except (DataError, tf.errors.OpError) as error:
                predictions[path] = Prediction(path, problem=brief_message(error))
        if readable:
            top = classify(tf.stack([image for _, image in readable]))
            for (path, _), classes, probabilities in zip(
                readable, top.indices.numpy(), top.values.numpy()
            ):
                predictions[path] = Prediction(
                    path, np.ndarray.tolist(classes), np.ndarray.tolist(probabilities)
                )
        yield from (predictions[path] for path in paths[start : start + _BATCH_SIZE])
