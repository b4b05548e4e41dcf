"""A look at the first batch before the first step: what does not fit is said in words,
not by a trace.

    first = FirstBatch(x, y, sample_weight, batch_size)
    first.check(model)
    with readable_errors():
        keras.Model.fit(model, first.data, y, …)

Arrays, `tf.data` and Keras's sequences are looked at without using them up; of a
generator the first batch is taken and put back.
"""

import contextlib
import itertools
import re
from typing import Any, Iterator

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.keras_common import fit_rules as rules
from efficientnet_advprop.keras_common.fit_model import join_inputs, split_inputs
from efficientnet_advprop.runtime.autograph import call_rewritten
from efficientnet_advprop.runtime.errors import ModelError, brief_message
from efficientnet_advprop.runtime.pass_mode import use_branch

PACKAGE = keras.losses.Loss.__module__.split(".")[0]  # in which Keras's own classes are


class FirstBatch:
    """The first batch of what `fit` gets; `data` is to be given to Keras in place of
    `x`.
    """

    def __init__(self, x: Any, y: Any, sample_weight: Any, batch_size):
        self.data, self._values = x, True
        if isinstance(x, tf.data.Dataset):
            batch, self._values = x.element_spec, False
        elif isinstance(x, keras.utils.Sequence):
            batch = x[0]
        elif hasattr(x, "__next__"):
            batch = next(x)
            self.data = itertools.chain([batch], x)
        elif isinstance(x, (tf.distribute.DistributedDataset, tf.distribute.DistributedIterator)):
            batch = None
        elif isinstance(x, keras.utils.experimental.DatasetCreator):
            batch = None
        else:
            size = batch_size or 32
            batch = tf.nest.map_structure(
                lambda values: None if values is None else values[:size], (x, y, sample_weight)
            )
        self._parts = None if batch is None else keras.utils.unpack_x_y_sample_weight(batch)

    def check(self, model: keras.Model) -> None:
        """Builds what is not built yet, and raises a `ModelError` for what cannot be
        trained.
        """
        if self._parts is None:
            return
        inputs, labels, sample_weight = self._parts
        key = model.attacked_input
        rules.check_key(inputs, key)
        images, others = split_inputs(inputs, key)
        shape, dtype = tf.TensorShape(images.shape), tf.as_dtype(images.dtype)
        rules.check_images(shape, dtype.name, key)
        if self._values:
            _check_pixels(np.asarray(images), key, model.pixel_range)
        elif dtype.is_floating or tuple(model.pixel_range) != (0.0, 255.0):
            self.data = self.data.map(_pixel_check(key, model.pixel_range))
        if model.row.adversarial_share is not None and not self._values and shape[0] is None:
            raise ModelError(
                f"The batches of `x` have no fixed size, but method {model.method!r} makes a share"
                " of each adversarial; batch them with drop_remainder=True."
            )
        model.build_network(inputs)
        _check_loss(model, images, others, labels, sample_weight)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Takes our own messages out of what TensorFlow wraps around them."""
    try:
        yield
    except Exception as error:
        found = re.search(r"ModelError: (.*)|(`pixel_range` does not fit:[^\n]*)", str(error), re.S)
        if found is None:
            raise
        message = (found[1] or found[2]).split("\n\n")[0].split("[[")[0].strip(" \n]")
        raise ModelError(message) from None


def _check_pixels(images: np.ndarray, key, pixel_range) -> None:
    low, high = float(images.min()), float(images.max())
    if low < pixel_range[0] or high > pixel_range[1]:
        found = f"values from {low:g} to {high:g}"
        raise ModelError(rules.out_of_range(key, pixel_range, found))


def _pixel_check(key, pixel_range):
    """A function for `Dataset.map` that lets batches pass whose pixels are in range."""
    black, white = pixel_range
    message = rules.out_of_range(key, pixel_range, "other values")

    def check(*batch):
        parts = batch[0] if len(batch) == 1 else batch
        inputs = keras.utils.unpack_x_y_sample_weight(parts)[0]
        values = tf.cast(split_inputs(inputs, key)[0], tf.float32)
        is_inside = tf.reduce_all((values >= black) & (values <= white))
        with tf.control_dependencies([tf.debugging.Assert(is_inside, [message], summarize=1)]):
            return tf.nest.map_structure(tf.identity, parts)

    return check


def _check_loss(model, images, others, labels, sample_weight) -> None:
    """Traces the loss that an attack climbs, in inference mode, and looks at what came
    out.
    """
    rules.require_loss(model.loss)
    found: dict[str, Any] = {}

    def probe(images, others, labels, sample_weight):
        images = tf.cast(images, tf.float32)
        with use_branch("main"), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            outputs = call_rewritten(
                model.network,
                join_inputs(images, others, model.attacked_input),
                training=False,
            )
            found["outputs"] = _shapes(outputs)
            try:
                loss = call_rewritten(
                    model.attack_scores.compiled_loss, labels, outputs, sample_weight
                )
            except (ValueError, TypeError) as error:
                found["error"] = brief_message(error)
                return
        found["gradient"] = tape.gradient(loss, images)

    def in_replica(*arguments):
        model.distribute_strategy.run(probe, arguments)

    specs = tf.nest.map_structure(spec_of, (images, others, labels, sample_weight))
    tf.function(in_replica, autograph=False).get_concrete_function(*specs)
    shapes = _shapes(specs[2]), found["outputs"]
    if "error" in found:
        told = rules.told_shapes(*shapes)
        raise ModelError(f"The loss cannot take the labels ({told}): {found['error']}")
    model.labels_are_weights = rules.check_loss(model, model.loss, PACKAGE, *shapes)
    if isinstance(model.attack, PGD) and found["gradient"] is None:
        raise ModelError(
            "The loss has no gradient with respect to"
            f" {rules.images_name(model.attacked_input)}: either it does not depend on them, or"
            " something on the way cannot be differentiated (rounding, argmax, a cast to whole"
            " numbers). An attack has nothing to follow; take UniformNoise, or mend the model or"
            " loss."
        )


def spec_of(values):
    """Returns what a batch of any size of these values looks like to a trace."""
    if values is None:
        return None
    if isinstance(values, tf.TypeSpec):
        return values
    values = tf.convert_to_tensor(values)
    return tf.TensorSpec([None, *values.shape[1:]], values.dtype)


def _shapes(structure) -> list[tuple]:
    return [tuple(part.shape) for part in tf.nest.flatten(structure) if part is not None]
