"""Keras's ResNet files (`tf.keras.applications`: ResNet50, ResNet101, ResNet152) for our
ResNet, whose logits are then Keras's own.

Its convolutions have biases: each is taken off the moving mean of the batch norm behind
it, which gives the same network, in training too. Its pixels are BGR: the first kernel
is turned around instead.
"""

import io

import h5py
import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.file_weights import FileWeights, variable_name
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.models.resnet import ResNet
from efficientnet_advprop.runtime.branches import MAIN
from efficientnet_advprop.runtime.errors import brief_message

# What Keras's ResNets are among ours.
KERAS_ARGUMENTS = dict(
    stride_in="1x1", pool_padding="symmetric", normalization="caffe", batch_norm_epsilon=1.001e-5
)
_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")


def read_keras_file(model: Network, file: str) -> FileWeights:
    """Reads HDF5 as Keras 2's `save_weights("….h5")` or `save("….h5")` writes it.

    Raises:
        CheckpointError: the file cannot be read, or the model is none of Keras's.
    """
    if not isinstance(model, ResNet):
        raise CheckpointError(
            f"{file!r} is a Keras file, which is read into a ResNet; the model is {model.name}."
        )
    config = model.get_config()
    wanted = {**KERAS_ARGUMENTS, "denoise": "none"}
    wrong = [
        f"`{name}` is {config[name]!r}, not {value!r}"
        for name, value in wanted.items()
        if config[name] != value
    ]
    if wrong:
        raise CheckpointError(
            f"{file!r}: a Keras ResNet is another network than {model.name}: {', '.join(wrong)}."
        )
    arrays = _read_arrays(file)
    names, values, used = {}, {}, set()
    for convolution_name, norm_name, convolution, norm in _pairs(model):
        kernel, bias = f"{convolution_name}/kernel", f"{convolution_name}/bias"
        if convolution is model.stem.convolution and kernel in arrays:
            arrays[kernel] = arrays[kernel][:, :, ::-1]
        mean = f"{norm_name}/moving_mean"
        if mean in arrays and arrays.get(bias, np.zeros([])).shape == arrays[mean].shape:
            arrays[mean] = arrays[mean] - arrays[bias]
        used.add(bias)
        names[variable_name(model, convolution.kernel)] = kernel
        for leaf in _NORM_LEAVES:
            variable = getattr(norm.variables_of(MAIN), leaf)
            names[variable_name(model, variable)] = f"{norm_name}/{leaf}"
    head = "probs" if "probs/kernel" in arrays else "predictions"  # Keras once called it so
    names["head/dense/kernel"], names["head/dense/bias"] = f"{head}/kernel", f"{head}/bias"
    values = {name: arrays[tensor] for name, tensor in names.items() if tensor in arrays}
    return FileWeights(
        network="a ResNet of Keras",
        names=names,
        values=values,
        left_over=sorted(arrays.keys() - set(names.values()) - used),
        ignored=[],
        settings={"activation": "relu", "normalization": "caffe"},
    )


def _read_arrays(file: str) -> dict[str, np.ndarray]:
    """Returns "<layer>/<leaf>" → values, of every variable in the file."""
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
    """Yields Keras's names of a convolution and its batch norm, and ours, from the pixels up."""
    yield "conv1_conv", "conv1_bn", model.stem.convolution, model.stem.norm
    group = number = 0
    for block in model.blocks:
        group, number = (group + 1, 1) if block.block.first else (group, number + 1)
        # Keras counts the shortcut as 0, where there is one.
        steps = [*block.shortcut_steps, *block.steps]
        for part, (convolution, norm, _) in enumerate(steps, 0 if block.block.first else 1):
            stem = f"conv{group + 1}_block{number}_{part}"
            yield f"{stem}_conv", f"{stem}_bn", convolution, norm
