"""A look at the first batch before the first step: what does not fit is said in words,
not by a trace.
"""

from typing import Any

import keras
import numpy as np
from keras import ops, tree

from efficientnet_advprop.keras3 import auxiliary_norms
from efficientnet_advprop.keras3.keras_internals import compiled_loss, creation_scope
from efficientnet_advprop.keras_common import fit_rules as rules
from efficientnet_advprop.keras_common.fit_model import split_inputs
from efficientnet_advprop.runtime.errors import ModelError


class _Shapes(keras.Operation):
    """A function of which only the shapes of its results are asked; creates variables."""

    def __init__(self, function):
        super().__init__()
        self.call = function


def look(x: Any, y: Any, sample_weight: Any, batch_size) -> tuple[Any, Any]:
    """Returns what `fit` shall get in place of `x`, and the first batch: (inputs,
    labels, sample weights), or None where it cannot be seen.

    Arrays and data sets are looked at without using them up; of a generator the first
    batch is taken and put back.
    """
    batch = None
    if isinstance(x, keras.utils.PyDataset):
        batch = x[0]
    elif hasattr(x, "__next__"):
        batch = next(x)
        x = _put_back(batch, x)
    elif hasattr(x, "__iter__") and not (hasattr(x, "shape") or isinstance(x, (list, tuple, dict))):
        if "Distributed" not in type(x).__name__:  # each replica has its own part
            batch = next(iter(x))
    else:
        size = batch_size or 32
        batch = tree.map_structure(lambda values: None if values is None else values[:size],
                                   (x, y, sample_weight))  # fmt: skip
    return x, None if batch is None else keras.utils.unpack_x_y_sample_weight(batch)


def _put_back(batch, rest):
    yield batch
    yield from rest


def check(model: Any, batch: Any) -> None:
    """Builds what is not built yet, and raises a `ModelError` for what cannot be trained."""
    if batch is None:
        return
    key = model.attacked_input
    rules.check_key(batch[0], key)
    images, _ = split_inputs(batch[0], key)
    rules.check_images(images.shape, _dtype(images), key)
    values = ops.convert_to_numpy(images)
    low, high = float(np.min(values)), float(np.max(values))
    if low < model.pixel_range[0] or high > model.pixel_range[1]:
        found = f"values from {low:g} to {high:g}"
        raise ModelError(rules.out_of_range(key, model.pixel_range, found))
    specs = tree.map_structure(
        lambda tensor: None if tensor is None else keras.KerasTensor(tensor.shape, _dtype(tensor)),
        tuple(batch),
    )
    with creation_scope(model):
        outputs = _Shapes(lambda inputs: model(inputs, training=False)).compute_output_spec(
            specs[0]
        )
        if model.aux_branches:
            auxiliary_norms.convert(model.network, model.aux_branches)  # norms made only now
        _check_loss(model, outputs, *specs[1:])


def _check_loss(model, outputs, labels, sample_weight) -> None:
    rules.require_loss(compiled_loss(model))
    shapes = [
        [tensor.shape for tensor in tree.flatten(part) if tensor is not None]
        for part in (labels, outputs)
    ]
    model.labels_are_weights = rules.check_loss(model, model.loss, "keras", *shapes)
    try:
        _Shapes(lambda *arguments: compiled_loss(model)(*arguments)).compute_output_spec(
            labels, outputs, sample_weight
        )
    except (ValueError, TypeError) as error:
        reason = str(error).rpartition("Error encountered:")[2].strip()
        told = rules.told_shapes(*shapes)
        raise ModelError(f"The loss cannot take the labels ({told}): {reason}") from error


def _dtype(tensor: Any) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)
