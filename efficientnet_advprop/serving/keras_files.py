"""A Keras model from a file, as a network that is evaluated and exported by branch.

    network, description = load("model.keras", image_size=None, normalization=None)

The file is what `save` of a converted model, of an `AdvPropModel` or of a plain model
has written. A class of one's own must be importable under the name of its module.
"""

from typing import Optional

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.evaluation.classifiers import probe
from efficientnet_advprop.keras import AdvPropModel
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import CheckpointError, KerasNetwork
from efficientnet_advprop.models.network import normalize_pixels
from efficientnet_advprop.runtime.errors import brief_message

SUFFIX = ".keras"
# What an `AdvPropModel` knows of its images, in our words.
_NORMALIZATIONS = {(0.0, 255.0): "none", (0.0, 1.0): "unit", (-1.0, 1.0): "advprop"}


def load(
    path: str, image_size: Optional[int], normalization: Optional[str]
) -> tuple[KerasNetwork, str]:
    """Loads a model as a network, with a line for people that describes it.

    Args:
        path: of a .keras file.
        image_size: pixels; None: the only size that the model takes.
        normalization: what pixels in [0, 255] become before the model gets them; None:
            the `pixel_range` of an `AdvPropModel`, else "none".

    Raises:
        CheckpointError: the file is not there, or Keras cannot load it.
        ModelError: the model does not turn images into logits or probabilities.
        ConfigError: an argument does not fit the model.
    """
    if not tf.io.gfile.exists(path):
        raise CheckpointError(f"`--checkpoint` is {path!r}, but there is no such file.")
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # of Keras or of a class of the model's author
        raise CheckpointError(
            f"`--checkpoint` is {path!r}, which Keras cannot load: {type(error).__name__}: "
            f"{brief_message(error)}. Classes of your own must be importable; start the program in "
            "their folder, or name it in PYTHONPATH."
        ) from error
    origin = "pixels as given" if normalization else "pixels assumed in 0 to 255"
    if isinstance(model, AdvPropModel):
        if normalization is None:
            normalization = _NORMALIZATIONS.get(tuple(model.pixel_range))
            origin = f"its pixel_range is {model.pixel_range}"
        if normalization is None:
            raise ConfigError(
                f"`--normalization` is missing: {path!r} was trained with pixel_range="
                f"{model.pixel_range}, which none of them makes."
            )
        model = model.network
    normalization = normalization or "none"
    fixed = None if model.inputs is None else model.inputs[0].shape[1]
    if image_size is None and fixed is None:
        raise ConfigError(f"`--image_size` is missing; {path!r} takes images of any size.")
    if image_size is not None and fixed not in (None, image_size):
        raise ConfigError(
            f"`--image_size` is {image_size}, but {path!r} takes {fixed} pixels only; leave it out."
        )
    size = image_size or fixed

    def answer(images):
        return model(normalize_pixels(images, normalization), training=False)

    num_classes, _, output = probe(answer, path, size, tf.float32)
    network = KerasNetwork(
        model, image_size=size, num_classes=num_classes, normalization=normalization, output=output
    )
    branches = f"{network.aux_branches} auxiliary branches" if network.aux_branches else "plain"
    return network, f"{type(model).__name__} {model.name!r}, {branches}; {origin}; {output}"
