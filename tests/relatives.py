"""Small networks of EfficientNet-Lite, -EdgeTPU and -CondConv, whose numbers the
official code told (`tiny_more.npz`).
"""

import functools

import numpy as np

from efficientnet_advprop.models import EfficientNet
from tests.conftest import golden
from tests.released_format import trained_value

# The official network, and the width and depth by which the golden data made it small.
TINY = {
    "lite": ("lite0", 0.35, 0.5),
    "edgetpu": ("edgetpu-S", 0.35, 0.5),
    "condconv": ("condconv-b0-4e", 0.25, 0.4),
    "v2_s": ("v2-s", 0.15, 0.26),
    "v2_b0": ("v2-b0", 0.2, 0.5),
}


def official_name(variable) -> str:
    """A variable's name without ":0"; an auxiliary batch norm's is the main one's."""
    return variable.name.split(":")[0].replace("/aux/", "/")


@functools.cache
def make_tiny_relative(family: str):
    """A small network and its golden numbers; one for all tests, so whoever changes it
    puts it back.

    Args:
        family: a key of `TINY`.

    Returns:
        The network with the golden weights, moving statistics and one auxiliary branch
        like main; and name → array of what the official code said about it.
    """
    variant, width, depth = TINY[family]
    model = EfficientNet(
        variant,
        num_classes=10,
        aux_branches=1,
        width_coefficient=width,
        depth_coefficient=depth,
        survival_prob=1.0,
        dropout_rate=0.0,
    )
    file = golden("tiny_v2.npz" if family.startswith("v2_") else "tiny_more.npz")
    prefix = f"{family}__"
    numbers = {
        key.removeprefix(prefix).replace("|", "/"): file[key]
        for key in file.files
        if key.startswith(prefix)
    }
    for variable in model.variables:
        name = official_name(variable)
        statistics = numbers.get(f"statistics__{name}")
        if statistics is None:
            statistics = trained_value(name, tuple(variable.shape), "ema")
        variable.assign(statistics.astype(np.float32))
    return model, numbers
