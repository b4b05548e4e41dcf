"""The PyTorch ports of the released weights (timm's `tf_efficientnet_b*_ap` and its
siblings), without PyTorch.

timm's `tf_` networks only: its `efficientnet_b*` have the same names and shapes but
another ε and padding, and would come out wrong. EdgeTPU's files (`tf_efficientnet_es`)
have no background class: build `EfficientNet("edgetpu-S", num_classes=1000)`.
"""

import io
import re
import zipfile
from typing import Collection

import numpy as np
import safetensors.numpy
import tensorflow as tf

from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.file_weights import FileWeights, main_names
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.runtime.errors import brief_message

# timm's modules for ours, outside of the blocks and in a block, of which the first
# convolution is "conv_exp" where it is fused; and the batch norm behind each convolution.
_OUTSIDE = {
    "stem/conv2d": "conv_stem",
    "stem/tpu_batch_normalization": "bn1",
    "head/conv2d": "conv_head",
    "head/tpu_batch_normalization": "bn2",
    "head/dense": "classifier",
}
_IN_BLOCK = {
    "conv2d": "conv_pw",
    "tpu_batch_normalization": "bn1",
    "depthwise_conv2d": "conv_dw",
    "tpu_batch_normalization_1": "bn2",
    "se/conv2d": "se.conv_reduce",
    "se/conv2d_1": "se.conv_expand",
    "conv2d_1": "conv_pwl",
    "tpu_batch_normalization_2": "bn3",
}
_NORMS_BEHIND = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}
_LEAVES = {
    **{"bias": "bias", "gamma": "weight", "beta": "bias"},
    **{"moving_mean": "running_mean", "moving_variance": "running_var"},
}


def read_timm_file(model: Network, file: str, variables: Collection[str]) -> FileWeights:
    """Reads `.safetensors`, or `.npz` of a state dict, for the model's `variables`.

    Raises:
        CheckpointError: the file cannot be read, or the model is no `EfficientNet`.
    """
    row = VARIANTS.get(model.variant)
    if row is None:
        raise CheckpointError(
            f"{file!r} is a PyTorch file, which is read into an EfficientNet; the model is"
            f" {model.name}."
        )
    state = _read_state(file)
    names = _timm_names(main_names(variables), state)
    return FileWeights(
        network="a timm network",
        names=names,
        values={
            variable: _to_tensorflow(variable, name, state)
            for variable, name in names.items()
            if name in state
        },
        left_over=sorted(
            name
            for name in state.keys() - set(names.values())
            if not name.endswith(".num_batches_tracked")
        ),
        ignored=[name for name in state if name.endswith(".num_batches_tracked")],
        settings={"activation": row.design.activation},
    )


def _read_state(file: str) -> dict[str, np.ndarray]:
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            data = stream.read()
        if not data.startswith(b"PK"):
            return safetensors.numpy.load(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            state = dict(arrays)
    except (
        tf.errors.OpError,
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(f"{file!r} cannot be read: {brief_message(error)}") from error
    if not all(isinstance(value, np.ndarray) for value in state.values()):
        raise CheckpointError(
            f"{file!r} is no .npz; write a pickle of PyTorch's (.pth) again, with PyTorch, by"
            " `safetensors.torch.save_file(torch.load(PATH), 'model.safetensors')`."
        )
    return state


def _timm_names(variables, state) -> dict[str, str]:
    """Returns our variables' names in timm, which counts blocks within their stage."""
    matches = map(re.compile(r"blocks\.(\d+)\.(\d+)\.").match, state)
    positions = sorted({tuple(map(int, match.groups())) for match in matches if match})
    result = {}
    for variable in variables:
        module, leaf = variable.removeprefix("model/").rsplit("/", 1)
        if not module.startswith("blocks_"):
            timm_module = _OUTSIDE[module]
        else:
            block, part = module.split("/", 1)
            index = int(block.removeprefix("blocks_"))
            known = index < len(positions)
            position = "{}.{}".format(*positions[index]) if known else f"(block {index} of all)"
            timm_module = f"blocks.{position}.{_module_in_block(block, part, variables)}"
        result[variable] = f"{timm_module}.{_LEAVES.get(leaf, 'weight')}"  # of any kernel
    return result


def _module_in_block(block: str, part: str, variables) -> str:
    if f"{block}/dense/kernel" in variables:  # a routed block
        number = re.fullmatch(r"cond_conv2d_(\d+)", part)
        if number:  # of three numbers in each block the second is the expansion's
            return "conv_pw" if int(number[1]) % 3 == 1 else "conv_pwl"
        if part.startswith("depthwise_cond_conv2d"):
            return "conv_dw"
        return "routing_fn" if part == "dense" else _IN_BLOCK[part]
    is_fused = f"{block}/depthwise_conv2d/depthwise_kernel" not in variables
    return "conv_exp" if is_fused and part == "conv2d" else _IN_BLOCK[part]


def _to_tensorflow(variable: str, name: str, state) -> np.ndarray:
    """Returns a tensor with TensorFlow's axes: [out, in, h, w] → [h, w, in, out], depthwise
    [c, 1, h, w] → [h, w, c, 1].
    """
    value = state[name].astype(np.float32)
    if variable.endswith("condconv_kernel") and value.ndim == 2:
        # The experts lie flat, [experts, out · in] or [experts, c · h · w]; there are as many
        # output channels as the batch norm behind has.
        position, module, _ = name.rsplit(".", 2)
        norm = state.get(f"{position}.{_NORMS_BEHIND[module]}.weight")
        if norm is None or value.shape[1] % len(norm):
            return value
        value = value.reshape(len(value), len(norm), -1)  # [experts, out, in or h · w]
        return value.transpose(0, 2, 1).reshape(len(value), -1)
    if variable.endswith("/depthwise_kernel"):
        return np.transpose(value, (2, 3, 0, 1)) if value.ndim == 4 else value
    if variable.endswith("/kernel"):
        return np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value.T
    return value
