"""The released format: TensorFlow 1's name-based checkpoints, read for a model and
written from one.
"""

import os
import types
from typing import Any, Mapping, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints.architecture import recognize
from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    AVERAGE_SUFFIX,
    STEP,
    CheckpointContents,
    read_contents,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    READ_ERRORS,
    CheckpointError,
    find_checkpoint,
)
from efficientnet_advprop.models.checkpoints.file_weights import (
    CLASSIFIER,
    Difference,
    FileWeights,
    main_name,
    variable_name,
)
from efficientnet_advprop.models.checkpoints.model_settings import (
    SETTINGS_SUFFIX,
    known_kind,
    known_settings,
    write_settings,
)
from efficientnet_advprop.models.checkpoints.published_checkpoints import prefers_averages
from efficientnet_advprop.models.network import official_name
from efficientnet_advprop.models.scaling import network_name
from efficientnet_advprop.runtime.errors import brief_message, list_names
from efficientnet_advprop.runtime.files import list_folder


def read_released(
    model: keras.Model,
    source: str,
    variables: Mapping[str, tf.Variable],
    use_ema: Optional[bool],
    cache_dir: Optional[str],
) -> FileWeights:
    """Reads a checkpoint for `variables`, by their names in the network; see `load_weights`."""
    contents = read_contents(find_checkpoint(source, cache_dir))
    if use_ema is None:
        kind = known_kind(source, contents)
        use_ema = prefers_averages(source, kind) or not contents.plain
    if not use_ema and contents.averages and not contents.plain:
        raise CheckpointError(
            f"`use_ema` is False, but {source!r} holds only averages; load it with use_ema=True."
        )
    tensors = {**contents.plain, **contents.averages} if use_ema else contents.plain
    held = contents.plain.keys() | contents.averages.keys()
    names = {
        name: tensors.get(name, f"{model.name}/{name}")
        for name in variables
        if main_name(name) == name or name in held
    }
    # Auxiliary batch norms that the model has no branch for are no misfit.
    unused_aux = {name for name in held if name not in variables and main_name(name) in variables}
    known = variables.keys() | set(CLASSIFIER) | unused_aux
    reader = _TensorReader(contents)
    values = {name: reader.read(name, names[name]) for name in names if name in tensors}
    return FileWeights(
        network=contents.description(),
        names=names,
        values={name: value for name, value in values.items() if value is not None},
        left_over=[
            tensor
            for part in (contents.plain, contents.averages)
            for name, tensor in part.items()
            if name not in known
        ]
        + contents.unknown,
        ignored=contents.slots
        + ([STEP] if contents.step is not None else [])
        + [tensors[name] for name in sorted(unused_aux) if name in tensors],
        settings=known_settings(source, contents),
        averaged=frozenset(contents.averages) if use_ema else frozenset(),
        problems=reader.problems,
        difference=reader.difference if reader.difference.num_tensors else None,
        step=contents.step,
        misfit="\n  " + _describe_misfit(contents, variables),
    )


class _TensorReader:
    """Reads tensors, collects their problems, and compares averages with plain weights."""

    def __init__(self, contents: CheckpointContents):
        self._contents, self.difference = contents, Difference()
        self.problems: dict[str, list[str]] = {}

    def read(self, variable: str, tensor: str) -> Optional[np.ndarray]:
        value = self._read_tensor(tensor)
        average, plain = (
            part.get(variable) for part in (self._contents.averages, self._contents.plain)
        )
        if value is not None and average and plain:
            other = self._read_tensor(plain if tensor == average else average)
            if other is not None and other.shape == value.shape:
                pair = (value, other) if tensor == average else (other, value)
                self.difference.add(plain, *pair)
        return value

    def _read_tensor(self, tensor: str) -> Optional[np.ndarray]:
        try:
            value = self._contents.value(tensor)
        except READ_ERRORS as error:
            self._note("cannot be read, the file is damaged", f"{tensor} ({brief_message(error)})")
            return None
        if not np.issubdtype(value.dtype, np.floating):
            self._note("are no floating-point tensors", f"{tensor} ({value.dtype})")
            return None
        return value.astype(np.float32, copy=False)

    def _note(self, problem: str, text: str) -> None:
        self.problems.setdefault(problem, []).append(text)


def _describe_misfit(contents: CheckpointContents, variables: Mapping[str, Any]) -> str:
    """Returns what the file is, what the model is, and the way out."""
    looks = f"The file looks like {contents.description()}"
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    own, found = recognize(shapes, shapes.get), contents.architecture
    if found is None:
        return f"{looks}."
    if own is not None and own.constructor() == found.constructor():
        return f"{looks}, as the model is, but not all of its tensors are the model's."
    model = "no EfficientNet" if own is None else str(own)
    return f"{looks}, but the model is {model}: build it with {found.constructor()}."


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
    if others:
        raise CheckpointError(
            f"{directory!r} holds {list_names(others)}, which this project's `release` did not"
            " write; give a prefix in another folder."
        )
