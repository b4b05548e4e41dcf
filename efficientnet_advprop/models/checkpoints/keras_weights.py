"""Keras's files, read and written: `keras.applications`' EfficientNets, V1 and V2, with
those of qubvel's package, from which Keras has its names; and, read only, ResNet50,
ResNet101 and ResNet152, whose logits are then Keras's own.

A ResNet's convolutions have biases: each is taken off the moving mean of the batch norm
behind it, which gives the same network, in training too. Its pixels are BGR: the first
kernel is turned around instead.
"""

import collections
import io
import json
import os
import re
from typing import Any, Optional

import h5py
import numpy as np
import tensorflow as tf

from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    CheckpointContents,
    ported_contents,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import READ_ERRORS, CheckpointError
from efficientnet_advprop.models.checkpoints.ported_names import (
    KERAS,
    is_norm,
    kernel_leaf,
    module_names,
    places_in_file,
    places_of_table,
    portable_values,
)
from efficientnet_advprop.models.network import NORMALIZATIONS
from efficientnet_advprop.runtime.errors import brief_message
from efficientnet_advprop.runtime.files import write_atomically

# What Keras's ResNets are among ours.
KERAS_ARGUMENTS = dict(
    stride_in="1x1", pool_padding="symmetric", normalization="caffe", batch_norm_epsilon=1.001e-5
)
SETTINGS = "efficientnet_advprop"  # an attribute of files that `release` writes
NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
_NORMALIZATION_LEAVES = ("mean", "variance", "count")
_RESNET_LAYER = re.compile(r"conv(\d+)_block(\d+)_(\d)_(conv|bn)")
_BY_CLASS = re.compile(r"layers/([a-z0-9_]+?)(_\d+)?/vars/(\d+)")


def read_keras_file(file: str) -> CheckpointContents:
    """Sorts the variables of HDF5, as Keras 2 or 3 writes it: weights or a whole model.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        # A remote file has to be read as a whole.
        with tf.io.gfile.GFile(file, "rb") as stream:
            opened = h5py.File(file if os.path.exists(file) else io.BytesIO(stream.read()))
        datasets = _named_by_layer(opened)
        told = json.loads(opened.attrs.get(SETTINGS, "{}"))
    except READ_ERRORS as error:
        raise CheckpointError(f"{file!r} cannot be read as HDF5: {brief_message(error)}") from error
    layers = {name.split("/")[0] for name in datasets}
    if any(map(_RESNET_LAYER.fullmatch, layers)):
        return _resnet_contents(file, datasets, layers)
    names = module_names(KERAS, places_in_file(KERAS, layers))
    is_qubvels = "probs" in layers
    variables = {}
    for ours, layer in names.items():
        layer = "probs" if is_qubvels and ours == "head/dense" else layer
        for leaf in NORM_LEAVES if is_norm(ours) else ("kernel", "bias"):
            our_leaf = kernel_leaf(ours) if leaf == "kernel" else leaf
            # Keras 3 calls depthwise kernels as all others.
            is_own = f"{layer}/{our_leaf}" in datasets
            variables[f"{ours}/{our_leaf}"] = f"{layer}/{our_leaf if is_own else leaf}"
    pixels = [name for name in datasets if re.match(r"normalization(_\d+)?/", name)]
    contents = ported_contents(
        KERAS,
        file,
        {name: tuple(dataset.shape) for name, dataset in datasets.items()},
        variables,
        lambda name: np.asarray(datasets[name]),
        pixels,
        {},
    )
    if contents.architecture is not None:
        normalization = _find_normalization(file, contents, is_qubvels)
        contents.settings |= {"normalization": normalization, **told}
    return contents


def _named_by_layer(opened: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns "<layer>/<leaf>" → values, of every variable in the file."""
    found: dict[str, h5py.Dataset] = {}
    by_class: dict[tuple[str, int], list[h5py.Dataset]] = {}

    def keep(path: str, item) -> None:
        if not isinstance(item, h5py.Dataset) or path.startswith(("optimizer", "vars/")):
            return
        numbered = _BY_CLASS.fullmatch(path)
        if numbered:
            key = numbered[1], int((numbered[2] or "_0")[1:])
            by_class.setdefault(key, []).append(item)  # visited in the order of their numbers
        else:
            parts = path.removeprefix("model_weights/").split("/")
            found[f"{parts[0]}/{parts[-1].split(':')[0]}"] = item

    opened.visititems(keep)
    names = {}
    if by_class:
        names = {key: found[0].parent.attrs.get("name") for key, found in by_class.items()}
        if None in names.values():  # Keras 2 does not say the layers' names
            names = _name_by_table(by_class)
    for key, datasets in by_class.items():
        layer = names.get(key) or f"{key[0]}_{key[1]}"
        leaves = {"batch_normalization": NORM_LEAVES, "normalization": _NORMALIZATION_LEAVES}
        for leaf, dataset in zip(leaves.get(key[0], ("kernel", "bias")), datasets):
            found[f"{layer}/{leaf}"] = dataset
    return found


def layer_class(module: str) -> str:
    """Returns the class of Keras's layer for one of our modules, as its files have it."""
    if is_norm(module):
        return "batch_normalization"
    if "depthwise" in module:
        return "depthwise_conv2d"
    return "dense" if module == "head/dense" else "conv2d"


def layer_keys(names: dict[str, str]) -> dict[str, tuple[str, int]]:
    """Returns module → class and number among the class of its layer in Keras's files."""
    counts: collections.Counter = collections.Counter()
    keys = {}
    for module in names:
        kind = layer_class(module)
        keys[module] = kind, counts[kind]
        counts[kind] += 1
    return keys


def _name_by_table(by_class) -> dict[tuple[str, int], str]:
    """Returns the names of layers that a file only counts, by the network they count for."""
    found = collections.Counter(kind for kind, _ in by_class if kind != "dense")
    del found["normalization"]
    for variant, row in scaling.VARIANTS.items():
        if keras_function(variant):
            names = module_names(KERAS, places_of_table(row.design, row.depth_coefficient))
            keys = layer_keys(names)
            if found == collections.Counter(kind for kind, _ in keys.values() if kind != "dense"):
                return {
                    ("normalization", 0): "normalization",
                    **{key: names[module] for module, key in keys.items()},
                }
    return {}


def default_normalization(variant: str) -> Optional[str]:
    """Returns what `keras.applications` does to pixels, where no file can say otherwise."""
    design = scaling.VARIANTS[variant].design
    return design.normalization if variant.startswith("v2-") else None


def _find_normalization(file: str, contents: CheckpointContents, is_qubvels: bool) -> str:
    assert contents.architecture is not None
    statistics = {}
    for name in contents.slots:
        statistics[name.split("/")[1]] = np.asarray(contents.reader.get_tensor(name), float)
    if "mean" not in statistics or "variance" not in statistics:
        # qubvel's networks get pixels that are normalised as ImageNet's.
        return default_normalization(contents.architecture.variant) or "imagenet"
    mean, variance = (statistics[name].ravel() for name in ("mean", "variance"))
    for name, (ours, deviation) in NORMALIZATIONS.items():
        wanted = np.array(deviation) / 255  # of pixels that the layer before has divided
        # Keras's own ImageNet files have deviations for variances, and a layer that
        # takes the root out again.
        if np.allclose(255 * mean, ours, rtol=0, atol=1e-2) and any(
            np.allclose(variance, power, rtol=1e-4, atol=0) for power in (wanted, wanted**2)
        ):
            return name
    raise CheckpointError(
        f"{file!r} normalises pixels / 255 by mean {mean} and variance {variance}, which no"
        " network here does."
    )


def _resnet_contents(file: str, datasets, layers) -> CheckpointContents:
    places = sorted(
        {(int(match[1]), int(match[2])) for match in map(_RESNET_LAYER.fullmatch, layers) if match}
    )
    names = {"stem/conv2d": "conv1_conv", "stem/batch_normalization": "conv1_bn"}
    for number, (group, block) in enumerate(places):
        layer = f"conv{group}_block{block}"
        # Keras counts the shortcut as 0, where there is one.
        for part, prefix, suffix in (
            (0, "shortcut_", ""),
            (1, "", ""),
            (2, "", "_1"),
            (3, "", "_2"),
        ):
            for kind, ours in (("conv", "conv2d"), ("bn", "batch_normalization")):
                names[f"blocks_{number}/{prefix}{ours}{suffix}"] = f"{layer}_{part}_{kind}"
    # Keras once called it probs.
    names["head/dense"] = "probs" if "probs/kernel" in datasets else "predictions"
    variables = {}
    for ours, layer in names.items():
        leaves = NORM_LEAVES if "batch_norm" in ours else ("kernel",)
        for leaf in (*leaves, "bias") if ours == "head/dense" else leaves:
            variables[f"{ours}/{leaf}"] = f"{layer}/{leaf}"
    biases = {
        f"{layer.removesuffix('_bn')}_conv/bias"
        for layer in names.values()
        if layer.endswith("_bn") and f"{layer.removesuffix('_bn')}_conv/bias" in datasets
    }

    def value(name: str) -> np.ndarray:
        array = np.asarray(datasets[name])
        bias = name.replace("_bn/moving_mean", "_conv/bias")
        if name == "conv1_conv/kernel":
            return array[:, :, ::-1]
        is_mean = bias != name and bias in datasets
        return array - np.asarray(datasets[bias]) if is_mean else array

    settings: dict[str, Any] = {**KERAS_ARGUMENTS, "activation": "relu", "denoise": "none"}
    shapes = {name: tuple(dataset.shape) for name, dataset in datasets.items()}
    return ported_contents(KERAS, file, shapes, variables, value, sorted(biases), settings)


def keras_function(variant: str) -> Optional[str]:
    """Returns the function of `keras.applications` that builds a variant; None where none does."""
    match = re.fullmatch(r"b[0-7]|v2-(b[0-3]|[sml])", variant)
    return f"EfficientNet{variant.upper().replace('-', '')}" if match else None


def write_keras_file(model, file: str, *, image_size: int, crop: str) -> None:
    """Writes an EfficientNet's main branch as `.weights.h5`, which the network of
    `keras.applications` loads, with and without its top, in Keras 2 and 3.

    An EfficientNet of the first version normalises pixels by its own layer, in the file.

    Raises:
        CheckpointError: Keras has no such network.
    """
    modules, values = portable_values(model, KERAS)
    # Of other widths and depths, too: Keras's constructors take them.
    if keras_function(model.variant) is None:
        raise CheckpointError(f"{model.name} is none of the networks of keras.applications.")
    variables: dict[str, list[np.ndarray]] = {}
    names = {}
    for module, (kind, number) in layer_keys(modules).items():
        key = kind if not number else f"{kind}_{number}"
        leaves = NORM_LEAVES if is_norm(module) else (kernel_leaf(module), "bias")
        variables[key] = [
            values[f"{module}/{leaf}"] for leaf in leaves if f"{module}/{leaf}" in values
        ]
        names[key] = modules[module]
    if not model.variant.startswith("v2-"):
        # The layer before divides by 255.
        mean, deviation = (np.float32(row) / 255 for row in NORMALIZATIONS[model.normalization])
        variables["normalization"] = [mean, deviation**2, np.zeros([], np.int32)]
        names["normalization"] = "normalization"
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        told = {"normalization": model.normalization, "crop": crop, "image_size": image_size}
        opened.attrs[SETTINGS] = json.dumps(told)
        opened.create_group("vars").attrs["name"] = model.name
        for key, arrays in variables.items():
            if not arrays:  # gates that the network does not have
                continue
            group = opened.create_group(f"layers/{key}/vars")
            group.attrs["name"] = names[key]
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array)
    write_atomically(file, buffer.getvalue())
