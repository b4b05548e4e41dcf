"""The names of a network's variables within their file."""

import re
from typing import Iterable

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.network import official_name

CLASSIFIER = ("head/dense/kernel", "head/dense/bias")
_AUX = re.compile(r"/aux(_\d+)?(?=/[^/]+$)")


def variable_name(model: keras.Model, variable: tf.Variable) -> str:
    """Returns a variable's name within its network, such as "stem/conv2d/kernel"."""
    return official_name(variable.name).split(f"{model.name}/", 1)[-1]


def main_name(variable: str) -> str:
    """Returns the main batch norm's name for an auxiliary one's; any other unchanged."""
    return _AUX.sub("", variable)


def main_names(variables: Iterable[str]) -> list[str]:
    """Returns the names that are of no auxiliary batch norm."""
    return [name for name in variables if main_name(name) == name]
