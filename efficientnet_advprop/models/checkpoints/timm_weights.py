"""The PyTorch ports of the released weights (timm's `tf_efficientnet_b*_ap` and its
siblings) into the same model, without PyTorch.

    # or a state dict saved with `numpy.savez`
    report = load_timm_weights(model, "tf_efficientnet_b3_ap/model.safetensors")

Also EfficientNet-Lite's, -EdgeTPU's (`tf_efficientnet_es`, whose files have no
background class: build `EfficientNet("edgetpu-S", num_classes=1000)`) and -CondConv's
(`tf_efficientnet_cc_`).

timm's `tf_` networks only: its `efficientnet_b*` have the same names and shapes but
another ε and padding, and would come out wrong. A `.pth` file becomes one of these with
PyTorch, once: `numpy.savez("b3.npz", **{name: tensor.numpy() for name, tensor in
torch.load("b3.pth").items()})`.
"""

import io
import re
import zipfile
from typing import Optional

import numpy as np
import safetensors.numpy
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints.checkpoint_contents import main_name
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    CheckpointError,
    require_no_problems,
)
from efficientnet_advprop.models.checkpoints.released_checkpoints import (
    CLASSIFIER,
    LoadReport,
    variable_name,
)
from efficientnet_advprop.models.scaling import VARIANTS
from tpu_utils.errors import brief_message

# timm's modules for ours: outside of the blocks, in a block without expansion, in one
# with it, in a fused one, and the batch norm behind each convolution of a routed one.
_OUTSIDE = {
    "stem/conv2d": "conv_stem",
    "stem/tpu_batch_normalization": "bn1",
    "head/conv2d": "conv_head",
    "head/tpu_batch_normalization": "bn2",
    "head/dense": "classifier",
}
_GATE = {
    "se/conv2d": "se.conv_reduce",
    "se/conv2d_1": "se.conv_expand",
    "depthwise_conv2d": "conv_dw",
}
_UNEXPANDED = {
    **_GATE,
    "tpu_batch_normalization": "bn1",
    "conv2d": "conv_pw",
    "tpu_batch_normalization_1": "bn2",
}
_EXPANDED = {
    **_GATE,
    "conv2d": "conv_pw",
    "tpu_batch_normalization": "bn1",
    "tpu_batch_normalization_1": "bn2",
    "conv2d_1": "conv_pwl",
    "tpu_batch_normalization_2": "bn3",
}
_FUSED = {
    "conv2d": "conv_exp",
    "tpu_batch_normalization": "bn1",
    "conv2d_1": "conv_pwl",
    "tpu_batch_normalization_1": "bn2",
}
_NORMS_BEHIND = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}
_LEAVES = {
    "condconv_kernel": "weight",
    "depthwise_condconv_kernel": "weight",
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_timm_weights(model: keras.Model, file: str, include_head: bool = True) -> LoadReport:
    """Gives a model the weights of a timm file; auxiliary batch norms get copies of the
    main ones.

    Args:
        model: an `EfficientNet` whose `normalization` is the file's ("advprop" for
            `_ap`).
        file: `.safetensors`, or `.npz` of a state dict; local or gs://.
        include_head: False leaves the model's classifier as it is; a file of another
            number of classes does too, and the report says so.

    Raises:
        CheckpointError: the file cannot be read, lacks variables, has others, or holds
            wrong shapes or values that are not finite; the message counts them and
            names the first, the error's `problems` name all, and the model is as it
            was. Or the model's activation is not its variant's own.
    """
    own = VARIANTS[model.variant].design.activation
    if model.activation.name != own:
        raise CheckpointError(
            f"{file!r} holds a network whose activation is {own!r}, but the model's `activation` is"
            f" {model.activation.name!r}, with which the weights mean nothing; leave it out."
        )
    state = _read_state(file)
    variables = {variable_name(model, variable): variable for variable in model.variables}
    names = _timm_names(variables, state)
    classifier = state.get("classifier.weight")
    classes = None if classifier is None or classifier.ndim != 2 else classifier.shape[0]
    skipped = (
        list(CLASSIFIER) if not include_head or classes not in (None, model.num_classes) else []
    )
    needed = {variable: name for variable, name in names.items() if variable not in skipped}
    values = {
        name: _to_tensorflow(variable, name, state)
        for variable, name in needed.items()
        if name in state
    }
    missing = sorted({name for name in needed.values() if name not in state})
    misshapen = [
        f"{name} {list(state[name].shape)}, for {variable} {variables[variable].shape.as_list()}"
        for variable, name in needed.items()
        if name in state and values[name].shape != tuple(variables[variable].shape)
    ]
    left_over = sorted(
        set(state)
        - set(names.values())
        - {name for name in state if name.endswith(".num_batches_tracked")}
    )
    not_finite = [name for name, value in values.items() if not np.isfinite(value).all()]
    require_no_problems(
        f"{file!r} does not fit the model ({model.name}), which is unchanged.",
        {
            "missing in the file": missing,
            "of another shape in the file": misshapen,
            "in the file but not in the model": left_over,
            "hold values that are not finite": not_finite,
        },
    )
    for variable, name in needed.items():
        variables[variable].assign(values[name])
    num_aux = sum(main_name(variable) != variable for variable in needed)
    return LoadReport(
        source=file,
        prefix=file,
        network="a timm network",
        num_averages=0,
        num_plain=len(needed) - num_aux,
        num_aux=num_aux,
        difference=None,
        skipped=skipped,
        ignored=[name for name in state if name not in values],
        step=None,
        mixed=[],
    )


def _read_state(file: str) -> dict[str, np.ndarray]:
    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            data = stream.read()
        if file.endswith(".npz"):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return dict(arrays)
        if file.endswith(".safetensors"):
            return safetensors.numpy.load(data)
    except (
        tf.errors.OpError,
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(f"{file!r} cannot be read: {brief_message(error)}") from error
    raise CheckpointError(
        f"{file!r} is neither .safetensors nor .npz; convert it (the module's docstring says how)."
    )


def _timm_names(variables, state) -> dict[str, Optional[str]]:
    """For each of our variables its name in timm, which counts blocks within their
    stage: "blocks.2.0.conv_pw.weight".
    """
    found = {
        tuple(map(int, match.groups()))
        for match in map(re.compile(r"blocks\.(\d+)\.(\d+)\.").match, state)
        if match
    }
    positions = sorted(found)
    result = {}
    for variable in variables:
        module, leaf = main_name(variable).removeprefix("model/").rsplit("/", 1)
        if not module.startswith("blocks_"):
            result[variable] = f"{_OUTSIDE[module]}.{_LEAVES[leaf]}"
            continue
        block, part = module.split("/", 1)
        index = int(block.removeprefix("blocks_"))
        position = (
            "blocks.{}.{}".format(*positions[index])
            if index < len(positions)
            else f"blocks.(block {index} of all)"
        )
        result[variable] = f"{position}.{_module_in_block(block, part, variables)}.{_LEAVES[leaf]}"
    return result


def _module_in_block(block: str, part: str, variables) -> str:
    """timm's name of a block's module, such as "conv_pw"."""
    if f"{block}/dense/kernel" in variables:  # a routed block
        number = re.fullmatch(r"cond_conv2d_(\d+)", part)
        if number:  # of three numbers in each block the second is the expansion's
            return "conv_pw" if int(number[1]) % 3 == 1 else "conv_pwl"
        if part.startswith("depthwise_cond_conv2d"):
            return "conv_dw"
        return "routing_fn" if part == "dense" else _EXPANDED[part]
    if f"{block}/depthwise_conv2d/depthwise_kernel" not in variables:
        return _FUSED[part]
    return (_EXPANDED if f"{block}/conv2d_1/kernel" in variables else _UNEXPANDED)[part]


def _to_tensorflow(variable: str, name: str, state) -> np.ndarray:
    """PyTorch's axes into TensorFlow's: [out, in, h, w] → [h, w, in, out], depthwise
    [c, 1, h, w] → [h, w, c, 1].

    The experts of a routed convolution lie flat, [experts, out · in] and [experts, c ·
    h · w]; there are as many output channels as the batch norm behind has.
    """
    value = state[name].astype(np.float32)
    if variable.endswith("condconv_kernel") and value.ndim == 2:
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
