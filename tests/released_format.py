"""Checkpoints in the released format for tests, with official names and synthetic
weights, written without our own code.

`tests/data` holds what the official TensorFlow 1 code said: `variables.json.gz` (names
and shapes), `full_logits.npz` (logits with these very weights), both with `_more` for
Lite, EdgeTPU and CondConv and `_v2` for EfficientNetV2, and `moving_statistics_<variant>.npz` (float16; what keeps
the signal of the synthetic networks alive).
"""

import functools
import gzip
import json
import pathlib
import zlib

import numpy as np
import tensorflow as tf

from efficientnet_advprop.runtime.files import without_pattern

DATA = pathlib.Path(__file__).parent / "data"
AVERAGE = "/ExponentialMovingAverage"


@functools.cache
def official_models() -> dict[str, dict]:
    """What the official code said about each network's variables, by the network's official name."""
    models = {}
    for name in ("variables.json.gz", "variables_more.json.gz", "variables_v2.json.gz"):
        with gzip.open(DATA / name) as file:
            models.update(json.load(file)["models"])
    return models


def network_of(variant: str) -> str:
    """The official name of a network; that of EfficientNetV2's has no hyphen."""
    return f"efficientnet-{variant}".replace("-v2-", "v2-")


def variant_of(network: str) -> str:
    return network.removeprefix("efficientnet").removeprefix("-")


@functools.cache
def official_variables(variant: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a network's variables, in the official order."""
    variables = official_models()[network_of(variant)]["variables"]
    return [
        (name.split(":")[0], tuple(shape))
        for name, shape, *_ in variables
        if name.startswith("eff")
    ]


def synthetic_values(variant: str, salt: str) -> dict[str, np.ndarray]:
    """The weights behind `full_logits.npz`. `salt`: "ema" or (B0 alone) "raw"."""
    variables = official_variables(variant)
    statistics = np.load(DATA / f"moving_statistics_{variant}.npz")[salt].astype(np.float32)
    sizes = [shape[0] if "moving_" in name else 0 for name, shape in variables]
    statistics = np.split(statistics, np.cumsum(sizes)[:-1])
    return {
        name: part if part.size else trained_value(name, shape, salt)
        for (name, shape), part in zip(variables, statistics)
    }


def official_logits() -> dict[str, np.ndarray]:
    """Official logits of the full-size networks: "network/pixels/salt/seed" → [2, classes]."""
    names = ("full_logits.npz", "full_logits_more.npz", "full_logits_v2.npz")
    files = [np.load(DATA / name) for name in names]
    return {key: file[key] for file in files for key in file.files}


def trained_value(name: str, shape, salt: str) -> np.ndarray:
    """The stand-in for a trained weight, which follows from its name alone."""
    noise = np.random.RandomState(zlib.crc32(f"{salt}:{name}".encode())).standard_normal(shape)
    leaf = name.rsplit("/", 1)[-1]
    projection = "tpu_batch_normalization_2" in name
    if leaf == "gamma":
        value = (0.2 if projection else 1.0) * (1.0 + 0.1 * noise)
    elif leaf in ("beta", "bias"):
        value = (0.02 if projection else 0.1) * noise
    elif leaf == "depthwise_kernel":
        value = noise * np.sqrt(2.0 / (shape[0] * shape[1]))
    else:
        value = noise * np.sqrt(2.0 / np.prod(shape[:-1]))
    return value.astype(np.float32)


def write_checkpoint(prefix, tensors) -> str:
    """A V2 checkpoint of `tensors` (name → array) and its state file."""
    prefix = str(prefix)
    tf.io.gfile.makedirs(prefix.rsplit("/", 1)[0])
    values = [tf.constant(value) for value in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(values),
        tensors=values,
    )
    with tf.io.gfile.GFile(prefix.rsplit("/", 1)[0] + "/checkpoint", "w") as file:
        file.write(f'model_checkpoint_path: "/elsewhere/{prefix.rsplit("/", 1)[1]}"\n')
    return prefix


def read_checkpoint(prefix) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint."""
    reader = tf.train.load_checkpoint(without_pattern(str(prefix)))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def write_full_checkpoint(prefix, variant: str, salts=("ema",)) -> str:
    """A full-size checkpoint, as released: averages (and, of B0, plain weights), no
    slots, and a step.
    """
    tensors = {}
    for salt in salts:
        suffix = AVERAGE if salt == "ema" else ""
        tensors.update(
            {name + suffix: value for name, value in synthetic_values(variant, salt).items()}
        )
    return write_checkpoint(prefix, {**tensors, "global_step": np.int64(218949)})


def full_images(pixels: int, seed: int) -> np.ndarray:
    """The two images of a key of `full_logits.npz`."""
    small = np.random.RandomState(seed).randint(0, 256, [16, pixels // 8 + 1, pixels // 8 + 1, 3])
    return np.repeat(np.repeat(small, 8, 1), 8, 2)[:2, :pixels, :pixels].astype(np.uint8)
