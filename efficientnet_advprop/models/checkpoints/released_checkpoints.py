"""Writes the released format: TensorFlow 1's name-based checkpoints."""

import os
import types
from typing import Any, Mapping, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints.checkpoint_contents import AVERAGE_SUFFIX, STEP
from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.model_settings import SETTINGS_SUFFIX, write_settings
from efficientnet_advprop.models.checkpoints.variable_names import main_name, variable_name
from efficientnet_advprop.models.network import official_name
from efficientnet_advprop.models.scaling import network_name
from efficientnet_advprop.runtime.errors import list_names
from efficientnet_advprop.runtime.files import list_folder


def save_released_checkpoint(
    model: keras.Model,
    prefix: str,
    averages: Optional[Mapping[str, np.ndarray]] = None,
    global_step: Optional[int] = None,
    include_aux: bool = False,
    preprocessing: Mapping[str, Any] = types.MappingProxyType({}),
) -> str:
    """Writes a model in the official names and format: `<prefix>.index`,
    `<prefix>.data-00000-of-00001` and a `checkpoint` file; and, for this project alone,
    `<prefix>.settings.json`, with what tensors do not tell (see `model_settings`).

    Args:
        model: an `EfficientNet`; its values become the plain weights.
        prefix: "…/efficientnet-b3/model.ckpt", local or gs://; directories are made.
        averages: of every variable, by its name in the model
            ("efficientnet-b3/stem/conv2d/kernel"); None writes the model's own values
            under the averages' names too, since the official programs read those.
        global_step: the number of updates done, if it is to be in the file.
        include_aux: write the auxiliary batch norms too (`…/aux/gamma`), for going on
            with AdvProp; other programs do not know them.
        preprocessing: of evaluation images, to be kept too: "crop" (see
            `preprocessing.preprocess_for_eval`) and "image_size" in pixels.

    Returns:
        `prefix`.

    Raises:
        CheckpointError: an average is missing, a value is not finite, or files that are
            not of this function are in the way. Nothing is written.
    """
    directory, base = os.path.dirname(prefix) or ".", os.path.basename(prefix)
    _require_free(directory, base)
    names, tensors, missing, not_finite = [], [], [], []
    for variable in model.variables:
        own_name = official_name(variable.name)
        name = f"{network_name(model.variant)}/{variable_name(model, variable)}"
        if main_name(name) != name and not include_aux:
            continue
        if averages is not None and own_name not in averages:
            missing.append(own_name)
            continue
        average = variable if averages is None else averages[own_name]
        for key, value in ((name, variable), (name + AVERAGE_SUFFIX, average)):
            tensor = tf.convert_to_tensor(value)
            if not np.isfinite(tensor.numpy()).all():
                not_finite.append(key)
            names.append(key)
            tensors.append(tensor)
    if missing or not_finite:
        wrong = f"the values of {list_names(not_finite)} are not finite"
        wrong = f"`averages` lacks {list_names(missing)}" if missing else wrong
        raise CheckpointError(f"{prefix!r} is not written: {wrong}.")
    if global_step is not None:
        names.append(STEP)
        tensors.append(tf.constant(global_step, tf.int64))
    tf.io.gfile.makedirs(directory)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    write_settings(prefix, model, preprocessing)
    with tf.io.gfile.GFile(os.path.join(directory, "checkpoint"), "w") as file:
        file.write(f'model_checkpoint_path: "{base}"\nall_model_checkpoint_paths: "{base}"\n')
    return prefix


def _require_free(directory: str, base: str) -> None:
    """Raises a `CheckpointError` where another program's files would be replaced."""
    # Its `checkpoint` file, too, which says what is the newest of a run.
    entries = list_folder(directory) if tf.io.gfile.isdir(directory) else []
    others = [
        name
        for name in entries
        if name.endswith(".index")
        and name.removesuffix(".index") + SETTINGS_SUFFIX not in entries
        and (name == f"{base}.index" or "checkpoint" in entries)
    ]
    state = os.path.join(directory, "checkpoint")
    if "checkpoint" in entries and not _is_state_file(state):
        others.append("checkpoint")
    if others:
        raise CheckpointError(
            f"{directory!r} holds {list_names(others)}, which this project's `release` did not"
            " write; give a prefix in another folder."
        )


def _is_state_file(path: str) -> bool:
    """Returns whether TensorFlow wrote it: what is the newest checkpoint here."""
    start = b"model_checkpoint_path"
    with tf.io.gfile.GFile(path, "rb") as file:
        return not tf.io.gfile.isdir(path) and file.read(len(start)) == start
