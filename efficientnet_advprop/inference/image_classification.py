"""What a network says about image files: the most probable classes.

Usage:

    for prediction in predict(network.model, find_images(["photos/", "*.png"]), image_size=300, crop="released"):
        prediction.path, prediction.classes, prediction.probabilities  # or prediction.problem
"""

import dataclasses
import json
import os
from typing import Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.labeled_images import IMAGE_SUFFIXES
from efficientnet_advprop.errors import UsageError
from efficientnet_advprop.keras2 import keras
from tpu_utils.errors import brief_message

_BATCH_SIZE = 16


class PredictionError(UsageError, ValueError):
    """Images or class names that are not there; the message says which."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of one file: the top classes, the most probable first, or why there are none."""

    path: str
    classes: Sequence[int] = ()
    probabilities: Sequence[float] = ()  # in [0, 1]
    problem: Optional[str] = None


def find_images(arguments: Sequence[str]) -> list[str]:
    """The files that `arguments` (files, folders, patterns; local or remote) stand for, in order.

    Raises:
        PredictionError: an argument stands for none.
    """
    paths = []
    for argument in arguments:
        if tf.io.gfile.isdir(argument):
            names = sorted(
                name
                for name in tf.io.gfile.listdir(argument)
                if name.lower().endswith(IMAGE_SUFFIXES)
            )
            found = [os.path.join(argument, name) for name in names]
        else:
            found = (
                [argument] if tf.io.gfile.exists(argument) else sorted(tf.io.gfile.glob(argument))
            )
        if not found:
            raise PredictionError(
                f"{argument!r} is no image, no folder with images ({', '.join(IMAGE_SUFFIXES)}) and no pattern of any."
            )
        paths += found
    return paths


def read_class_names(path: str, num_classes: int) -> list[str]:
    """The names of the classes, from the official tool's labels map: JSON {"0": "tench, Tinca tinca", …}.

    Raises:
        PredictionError: it is not such a file, or lacks a class.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            names = json.load(file)
        return [names[str(index)] for index in range(num_classes)]
    except (tf.errors.OpError, ValueError, TypeError, KeyError) as error:
        reason = f"it has no class {error}" if isinstance(error, KeyError) else brief_message(error)
        raise PredictionError(
            f"{path!r} must be JSON with a name for each of the {num_classes} classes, "
            f'{{"0": "tench, Tinca tinca", …}}, but {reason}.'
        ) from error


def predict(
    model: keras.Model,
    paths: Sequence[str],
    *,
    image_size: int,
    crop: str = "released",
    num_top: int = 5,
) -> Iterator[Prediction]:
    """Classifies files one after the other; those that cannot be read have a `problem` instead.

    Args:
        model: an `EfficientNet`.
        paths: of JPEG, PNG, GIF or BMP files.
        image_size, crop: see `preprocessing.preprocess_for_eval`.
        num_top: how many classes, at most.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, image_size, image_size, 3])])
    def classify(images):
        return tf.math.top_k(
            tf.nn.softmax(model(images, training=False)), min(num_top, model.num_classes)
        )

    for start in range(0, len(paths), _BATCH_SIZE):
        readable, predictions = [], {}
        for path in paths[start : start + _BATCH_SIZE]:
            try:
                readable.append(
                    (
                        path,
                        preprocessing.preprocess_for_eval(tf.io.read_file(path), image_size, crop),
                    )
                )
            except tf.errors.OpError as error:
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
