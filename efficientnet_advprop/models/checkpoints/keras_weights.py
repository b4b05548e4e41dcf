"""Keras's ResNet files (`tf.keras.applications`: ResNet50, ResNet101, ResNet152) into
our ResNet.

    model = ResNet("resnet50", **KERAS_ARGUMENTS)
    # pixels go in as RGB, 0…255
    load_keras_weights(model, "resnet50_weights_tf_dim_ordering_tf_kernels.h5")

The logits are then Keras's own. Its convolutions have biases: each is taken off the
moving mean of the batch norm behind it, which gives the same network, in training too.
Its pixels are BGR: the first kernel is turned around instead.
"""

import io
from typing import Optional

import h5py
import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.branches import MAIN, branch_names
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    CheckpointError,
    require_no_problems,
)
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.resnet import ResNet
from tpu_utils.errors import brief_message

# What Keras's ResNets are among ours.
KERAS_ARGUMENTS = dict(
    stride_in="1x1", pool_padding="symmetric", normalization="caffe", batch_norm_epsilon=1.001e-5
)
_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")


def load_keras_weights(model: ResNet, file: str, include_head: bool = True) -> None:
    """Gives a ResNet the weights of a Keras file; auxiliary batch norms get copies of
    the main ones.

    Args:
        model: a `ResNet` of the file's variant, built with `KERAS_ARGUMENTS`.
        file: HDF5 as Keras 2's `save_weights("….h5")` or `save("….h5")` writes it;
            local or gs://.
        include_head: False leaves the classifier as it is; it must be so where the file
            has another number of classes.

    Raises:
        CheckpointError: the file cannot be read, lacks variables, has others, or holds
            wrong shapes or values that are not finite, or the model was built
            otherwise; the message counts the names and shows the first, the error's
            `problems` name all, and the model is as it was.
    """
    config = model.get_config()
    wrong = [
        f"`{name}` is {config[name]!r}, not {value!r}"
        for name, value in KERAS_ARGUMENTS.items()
        if config[name] != value
    ]
    if config["denoise"] != "none":
        wrong.append(f"`denoise` is {config['denoise']!r}, not 'none'")
    if model.activation.name != "relu":
        wrong.append(f"`activation` is {model.activation.name!r}, not 'relu'")
    if wrong:
        raise CheckpointError(
            f"{file!r}: a Keras ResNet is another network than {model.name}: {', '.join(wrong)}."
        )
    arrays = _read_arrays(file)
    values = _values_by_variable(model, arrays, include_head)
    missing = [name for name, (_, value) in values.items() if value is None]
    misshapen = [
        f"{name} {list(value.shape)}, for {variable.name} {variable.shape.as_list()}"
        for name, (variable, value) in values.items()
        if value is not None and value.shape != tuple(variable.shape)
    ]
    not_finite = [
        name
        for name, (_, value) in values.items()
        if value is not None and not np.isfinite(value).all()
    ]
    biases = {f"{convolution}/bias" for convolution, _, _, _ in _pairs(model)}
    head = {name for name in arrays if name.startswith(("predictions/", "probs/"))}
    require_no_problems(
        f"{file!r} does not fit the model ({model.name}), which is unchanged.",
        {
            "missing in the file": missing,
            "of another shape in the file": misshapen,
            "in the file but not in the model": sorted(set(arrays) - set(values) - biases - head),
            "hold values that are not finite": not_finite,
        },
    )
    for variable, value in values.values():
        variable.assign(value)
    for _, _, _, norm in _pairs(model):
        _copy_to_auxiliary(norm)


def _read_arrays(file: str) -> dict[str, np.ndarray]:
    """ "<layer>/<leaf>" → values, of every variable in the file."""
    arrays = {}

    def keep(path: str, item) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("optimizer_weights"):
            parts = path.removeprefix("model_weights/").split("/")
            arrays[f"{parts[0]}/{parts[-1].split(':')[0]}"] = np.asarray(item, np.float32)

    try:
        with (
            tf.io.gfile.GFile(file, "rb") as stream,
            h5py.File(io.BytesIO(stream.read())) as contents,
        ):
            contents.visititems(keep)
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(f"{file!r} cannot be read as HDF5: {brief_message(error)}") from error
    return arrays


def _pairs(model: ResNet):
    """(Keras's name of a convolution, of its batch norm, our convolution, our batch
    norm), from the pixels up.
    """
    yield "conv1_conv", "conv1_bn", model.stem.convolution, model.stem.norm
    group = number = 0
    for block in model.blocks:
        group, number = (group + 1, 1) if block.block.first else (group, number + 1)
        # Keras counts the shortcut as 0, where there is one.
        for part, (convolution, norm) in enumerate(
            block.convolutions, 0 if block.block.first else 1
        ):
            stem = f"conv{group + 1}_block{number}_{part}"
            yield f"{stem}_conv", f"{stem}_bn", convolution, norm


def _values_by_variable(
    model: ResNet, arrays: dict, include_head: bool
) -> dict[str, tuple[tf.Variable, Optional[np.ndarray]]]:
    """Keras's name → (our main variable, its value; None where the file lacks
    something).
    """
    values = {}
    for convolution_name, norm_name, convolution, norm in _pairs(model):
        kernel, bias = (
            arrays.get(f"{convolution_name}/kernel"),
            arrays.get(f"{convolution_name}/bias"),
        )
        if convolution is model.stem.convolution and kernel is not None:
            kernel = kernel[:, :, ::-1]
        values[f"{convolution_name}/kernel"] = convolution.kernel, kernel
        for leaf in _NORM_LEAVES:
            value = arrays.get(f"{norm_name}/{leaf}")
            if (
                leaf == "moving_mean"
                and value is not None
                and bias is not None
                and bias.shape == value.shape
            ):
                value = value - bias
            values[f"{norm_name}/{leaf}"] = getattr(norm.variables_of(MAIN), leaf), value
    if include_head:
        name = "probs" if "probs/kernel" in arrays else "predictions"  # Keras once called it so
        values[f"{name}/kernel"] = model.head.classifier.kernel, arrays.get(f"{name}/kernel")
        values[f"{name}/bias"] = model.head.classifier.bias, arrays.get(f"{name}/bias")
    return values


def _copy_to_auxiliary(norm: DualBatchNormalization) -> None:
    for branch in branch_names(norm.aux_branches)[1:]:
        for leaf in _NORM_LEAVES:
            getattr(norm.variables_of(branch), leaf).assign(getattr(norm.variables_of(MAIN), leaf))
