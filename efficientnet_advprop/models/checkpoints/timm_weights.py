"""timm's files (`tf_efficientnet_b*.ap_in1k` and its siblings), read and written without
PyTorch.

timm's `tf_` networks only: its `efficientnet_b*` have the same names and shapes but
another ε and padding, and would come out wrong. EdgeTPU's files (`tf_efficientnet_es`)
have no background class.
"""

import itertools
import json
import os
from typing import Any, Callable, Mapping

import numpy as np
import safetensors.numpy
import tensorflow as tf

from efficientnet_advprop.models.checkpoints import hub
from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    CheckpointContents,
    ported_contents,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import READ_ERRORS, CheckpointError
from efficientnet_advprop.models.checkpoints.ported_names import (
    TIMM,
    is_norm,
    kernel_leaf,
    module_names,
    places_in_file,
    portable_values,
)
from efficientnet_advprop.models.network import NORMALIZATIONS
from efficientnet_advprop.runtime.errors import brief_message
from efficientnet_advprop.runtime.files import write_atomically

CONFIG = "config.json"
OWN_SETTINGS = "efficientnet_advprop"  # a key of the config that `write_timm_files` writes
# The batch norm behind each convolution of a routed block.
_NORMS_BEHIND = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}
_NORM_LEAVES = {
    **{"weight": "gamma", "bias": "beta"},
    **{"running_mean": "moving_mean", "running_var": "moving_variance"},
}
_READS_OF_AN_OPEN_FILE = 100
_COUNTER = ".num_batches_tracked"


def read_timm_file(file: str) -> CheckpointContents:
    """Sorts the tensors of `.safetensors`, or of `.npz` of a state dict, and believes the
    `config.json` beside it.

    Raises:
        CheckpointError: the file cannot be read, or its config contradicts its tensors.
    """
    shapes, read = _open_state(file)
    modules = {name.rpartition(".")[0] for name in shapes}
    names = module_names(TIMM, places_in_file(TIMM, modules))
    variables = timm_names(names)
    ours_of = {theirs: ours for ours, theirs in variables.items()}

    def value(name: str) -> np.ndarray:
        variable = ours_of.get(name)
        if variable is None:
            return read(name)
        channels = 0
        if "condconv" in variable:
            position, module, _ = name.rsplit(".", 2)
            channels, *_ = shapes.get(f"{position}.{_NORMS_BEHIND[module]}.weight", (1,))
        return _to_tensorflow(variable, read(name), channels)

    our_shapes = {
        name: shape
        if "condconv" in ours_of.get(name, "")
        # The shape alone: a view of one number.
        else _to_tensorflow(ours_of.get(name, ""), np.broadcast_to(np.float32(), shape), 0).shape
        for name, shape in shapes.items()
    }
    counters = [name for name in shapes if name.endswith(_COUNTER)]
    settings, told = _read_config(file)
    contents = ported_contents(TIMM, file, our_shapes, variables, value, counters, settings)
    _require_same(file, contents, told)
    return contents


def timm_names(modules: Mapping[str, str]) -> dict[str, str]:
    """Returns variable → tensor of all that the modules can have, by their names here and there."""
    names = {}
    for ours, theirs in modules.items():
        leaves = {kernel_leaf(ours): "weight", "bias": "bias"}
        if is_norm(ours):
            leaves = {our_leaf: leaf for leaf, our_leaf in _NORM_LEAVES.items()}
        names |= {f"{ours}/{our_leaf}": f"{theirs}.{leaf}" for our_leaf, leaf in leaves.items()}
    return names


def _open_state(file: str):
    """Returns the shapes of a state dict's tensors, and a function that reads one."""
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            is_zip = stream.read(2) == b"PK"
        if not is_zip and os.path.exists(file):
            with safetensors.safe_open(file, "np") as opened:
                tensors = {name: opened.get_slice(name) for name in opened.keys()}
                shapes = {name: tuple(part.get_shape()) for name, part in tensors.items()}
            return shapes, _reader_of(file)
        with tf.io.gfile.GFile(file, "rb") as stream:
            if is_zip:
                with np.load(stream, allow_pickle=False) as arrays:
                    state = dict(arrays)
            else:
                state = safetensors.numpy.load(stream.read())
    except READ_ERRORS as error:
        raise CheckpointError(f"{file!r} cannot be read: {brief_message(error)}") from error
    if not all(isinstance(value, np.ndarray) for value in state.values()):
        raise CheckpointError(
            f"{file!r} is no .npz of arrays. Write a pickle of PyTorch's (.pth) again, with"
            " PyTorch, by `safetensors.torch.save_file(torch.load(PATH), 'model.safetensors')`;"
            " a whole Keras model's file must end in .keras."
        )
    return {name: value.shape for name, value in state.items()}, state.__getitem__


def _reader_of(file: str) -> Callable[[str], np.ndarray]:
    """Returns a function that reads one tensor of `.safetensors`."""
    count, opened = itertools.count(), None

    def read(name: str) -> np.ndarray:
        nonlocal opened
        # What is mapped of an open file counts as memory, in the end once more the weights.
        if next(count) % _READS_OF_AN_OPEN_FILE == 0:
            opened = safetensors.safe_open(file, "np")
        return opened.get_tensor(name)

    return read


def _read_config(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns our settings, and architecture and number of classes, by the file's config."""
    path = os.path.join(os.path.dirname(file), CONFIG)
    try:
        if not tf.io.gfile.exists(path):
            return {}, {}
        with tf.io.gfile.GFile(path, "rb") as stream:
            config = json.loads(stream.read())
        if "architecture" not in config:  # another program's, such as a training run's
            return {}, {}
        row = config.get("pretrained_cfg") or config
        settings: dict[str, Any] = {}
        if "mean" in row:
            mean, deviation = (255 * np.array(row[name], float) for name in ("mean", "std"))
            settings["normalization"] = _find_normalization(mean, deviation)
        if size := (row.get("test_input_size") or row.get("input_size")):
            settings["image_size"] = int(size[-1])
        if fraction := row.get("test_crop_pct") or row.get("crop_pct"):
            size = settings.get("image_size", 0)
            is_released = bool(size) and abs(fraction - size / (size + 32)) < 2e-3
            settings["crop"] = "released" if is_released else str(fraction)
        settings |= config.get(OWN_SETTINGS, {})  # crops that timm has no words for
    except (tf.errors.OpError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path!r}, which says how pixels are normalised, cannot be used:"
            f" {brief_message(error)}."
        ) from error
    return settings, {name: config.get(name) for name in ("architecture", "num_classes")}


def _find_normalization(mean: np.ndarray, deviation: np.ndarray) -> str:
    for name, row in NORMALIZATIONS.items():
        if np.allclose([mean, deviation], row, rtol=0, atol=0.3):
            return name
    raise ValueError(f"nothing here has mean {mean} and deviation {deviation} of 255")


def _require_same(file: str, contents: CheckpointContents, told: Mapping[str, Any]) -> None:
    """Raises a `CheckpointError` where a config tells of another network."""
    architecture, found = told.get("architecture"), contents.architecture
    if architecture and not architecture.startswith("tf_"):
        raise CheckpointError(
            f"{file!r} is of timm's {architecture!r}, which pads and normalises otherwise than the"
            " released networks; those are timm's tf_efficientnet… and tf_efficientnetv2_…."
        )
    if not architecture or found is None:
        return
    own = hub.timm_architecture(found.variant) if found.width_coefficient is None else None
    num_classes = told.get("num_classes")
    if own != architecture or (found.num_classes or num_classes) != (
        num_classes or found.num_classes
    ):
        raise CheckpointError(
            f"{file!r} holds {found} of {found.num_classes} classes, but the config beside it says"
            f" {architecture} of {num_classes}; fetch both anew."
        )


def _to_tensorflow(variable: str, value: np.ndarray, output_channels: int) -> np.ndarray:
    """Returns a tensor with TensorFlow's axes: [out, in, h, w] → [h, w, in, out], depthwise
    [c, 1, h, w] → [h, w, c, 1].
    """
    if variable.endswith("condconv_kernel") and value.ndim == 2:
        # The experts lie flat, [experts, out · in] or [experts, c · h · w].
        if value.shape[1] % output_channels:
            return value
        value = value.reshape(len(value), output_channels, -1)  # [experts, out, in or h · w]
        return value.transpose(0, 2, 1).reshape(len(value), -1)
    if variable.endswith("/depthwise_kernel"):
        return np.transpose(value, (2, 3, 0, 1)) if value.ndim == 4 else value
    if variable.endswith("/kernel"):
        return np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value.T
    return value


def _to_pytorch(variable: str, value: np.ndarray, output_channels: int) -> np.ndarray:
    """Undoes `_to_tensorflow`."""
    if variable.endswith("condconv_kernel"):
        value = value.reshape(len(value), -1, output_channels)
        value = value.transpose(0, 2, 1).reshape(len(value), -1)
    elif variable.endswith("/depthwise_kernel"):
        value = np.transpose(value, (2, 3, 0, 1))
    elif variable.endswith("/kernel"):
        value = np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value)


def write_timm_files(
    model, file: str, *, image_size: int, crop: str, crop_fraction: float, resize: str
) -> None:
    """Writes an EfficientNet's main branch as `.safetensors`, with timm's `config.json` beside it.

    Args:
        model: an `EfficientNet` of the family's own activation and ε.
        file: to write; its folder must have no other model's config.
        image_size: pixels.
        crop, crop_fraction: of evaluation images, in our words and as a number.
        resize: "bicubic" or "bilinear".

    Raises:
        CheckpointError: timm has no such network.
    """
    modules, values = portable_values(model, TIMM)
    names = timm_names(modules)
    channels = {
        modules[variable.removesuffix("/gamma")]: len(value)
        for variable, value in values.items()
        if variable.endswith("/gamma")
    }
    state = {f"{module}{_COUNTER}": np.zeros([], np.int64) for module in channels}
    for variable, value in values.items():
        position, _, module = modules[variable.rpartition("/")[0]].rpartition(".")
        norm = f"{position}.{_NORMS_BEHIND.get(module)}"
        state[names[variable]] = _to_pytorch(variable, value, channels.get(norm, 0))
    config = model.get_config()
    is_of_table = config["width_coefficient"] is None and config["depth_coefficient"] is None
    pixels = np.round(np.array(NORMALIZATIONS[model.normalization]) / 255, 7)
    settings = {
        "architecture": hub.timm_architecture(model.variant) if is_of_table else None,
        "num_classes": model.num_classes,
        "num_features": len(values["head/tpu_batch_normalization/gamma"]),
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "fixed_input_size": False,
            "interpolation": resize,
            "crop_pct": round(crop_fraction, 6),
            "crop_mode": "squash" if crop.startswith("v2") and crop_fraction == 1 else "center",
            "mean": pixels[0].tolist(),
            "std": pixels[1].tolist(),
            "num_classes": model.num_classes,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
        OWN_SETTINGS: {"normalization": model.normalization, "crop": crop},
    }
    # The weights last: where they are, the config is, too.
    write_atomically(
        os.path.join(os.path.dirname(file), CONFIG),
        (json.dumps(settings, indent=1) + "\n").encode(),
    )
    write_atomically(file, safetensors.numpy.save(state, {"format": "pt"}))
