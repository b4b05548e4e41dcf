"""The most probable classes of image files.

images = find_images(["photos/", "*.png"])
for path, top, problem in predict(network.model, images, image_size=300, crop="released"):
    ...
"""

import glob
import os
from typing import Iterator, Sequence

import tensorflow as tf

from efficientnet_advprop.data import image_formats, preprocessing
from efficientnet_advprop.data.image_formats import IMAGE_SUFFIXES, is_hidden
from efficientnet_advprop.images.image_folders import list_images
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.errors import DataError, UsageError, brief_message

_BATCH_SIZE = 16


# A file, its classes with their probabilities in [0, 1], the most probable first, and why there
# are none: "" or what is wrong with it.
Prediction = tuple[str, list[tuple[int, float]], str]


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
    """Classifies image files by a `Network`; `image_size` and `crop` are those of
    `preprocessing.preprocess_for_eval`.
    """
    images_spec = tf.TensorSpec([None, image_size, image_size, 3])

    @tf.function(input_signature=[images_spec], autograph=False)
    def classify(images):
        return tf.math.top_k(
            model.probabilities(model(images, training=False)), min(num_top, model.num_classes)
        )

    for start in range(0, len(paths), _BATCH_SIZE):
        part = paths[start : start + _BATCH_SIZE]
        images, problems = [], {}
        for path in part:
            try:
                encoded = image_formats.read_file(path)
                images.append(preprocessing.preprocess_for_eval(encoded, image_size, crop))
            except (DataError, tf.errors.OpError) as error:
                problems[path] = brief_message(error)
        found = iter(())
        if images:
            top = classify(tf.stack(images))
            found = zip(top.indices.numpy().tolist(), top.values.numpy().tolist())
        for path in part:
            if path in problems:
                yield path, [], problems[path]
            else:
                yield path, list(zip(*next(found))), ""
