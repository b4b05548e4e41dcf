"""What a file of weights offers to a model, whatever its format."""

import dataclasses
import math
import re
from typing import Any, Iterable, Optional

import numpy as np
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


@dataclasses.dataclass
class Difference:
    """How far averages are from plain weights, over all tensors of which a file has both."""

    num_tensors: int = 0
    num_different: int = 0
    max_absolute: float = 0.0
    where: str = ""  # the tensor of `max_absolute`
    squares: float = 0.0  # Σ (average − plain)²
    plain_squares: float = 0.0  # Σ plain²

    @property
    def relative(self) -> float:
        """‖average − plain‖ / ‖plain‖."""
        if not self.plain_squares:
            return math.inf if self.squares else 0.0
        return math.sqrt(self.squares / self.plain_squares)

    def __str__(self):
        share = f"by {100 * self.relative:.3g} % of the plain weights' norm"
        most = f", at most {self.max_absolute:.3g} (in {self.where})" if self.where else ""
        return f"in {self.num_different} of {self.num_tensors} tensors, {share}{most}"

    def add(self, name: str, average: np.ndarray, plain: np.ndarray) -> None:
        difference = np.abs(average - plain)
        largest = float(difference.max(initial=0.0))
        self.num_tensors += 1
        self.num_different += largest != 0
        if not largest <= self.max_absolute:  # also when it is not a number
            self.max_absolute, self.where = largest, name
        self.squares += float(np.vdot(difference, difference))
        self.plain_squares += float(np.vdot(plain, plain))


@dataclasses.dataclass
class FileWeights:
    """A file's tensors under the names of a model's variables.

    Auxiliary variables are among them only where the file has some.
    """

    network: str  # what the file looks like, such as "efficientnet-b3"
    names: dict[str, str]  # variable → what the file calls it, also if it lacks it
    values: dict[str, np.ndarray]  # variable → float32 in the model's layout
    left_over: list[str]  # tensors that must not be ignored: of another network
    ignored: list[str]  # tensors that are not needed: slots, the step, auxiliary batch norms
    settings: dict[str, Any]  # what is known of the network besides: constructor arguments
    averaged: frozenset[str] = frozenset()  # variables whose values are averages
    problems: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    difference: Optional[Difference] = None  # None: the file does not have both
    step: Optional[int] = None
    misfit: str = ""  # how file and model differ, in words, should they
