"""What a released-format checkpoint holds: plain weights, their averages, optimizer
slots, the step, and which network they are of.

A released checkpoint is TensorFlow 1's name-based V2 format. A tensor is called
`<scope>/<variable>`, such as `efficientnet-b0/stem/conv2d/kernel`, with
`/ExponentialMovingAverage` behind it if it is an average, or an optimizer's name if it
is a slot.
"""

import dataclasses
import re
from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.checkpoints.architecture import Architecture, recognize
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    READ_ERRORS,
    CheckpointError,
    open_checkpoint,
)
from efficientnet_advprop.runtime.errors import list_names

AVERAGE_SUFFIX = "/ExponentialMovingAverage"
STEP = "global_step"
_LEAF = (
    "(?:depthwise_kernel|kernel|bias|gamma|beta|moving_mean|moving_variance"
    "|condconv_kernel|depthwise_condconv_kernel|root_of_alpha)"
)
# "model/" stands before routed blocks' kernels; see `condconv`.
_VARIABLE = re.compile(
    rf"(?:([^/]+)/)?((?:model/)?(?:stem|blocks_\d+|head|head_1(?=/dense/))/(?:.*?/)?{_LEAF})(/[^/]+)?"
)
_SLOT = re.compile(r"/(RMSProp|Momentum|Adam|Adagrad|Adadelta|Ftrl|LARS\w*|LAMB\w*?)(_\d+)?")
_OPTIMIZER_SCALAR = re.compile(r"(.*/)?beta[12]_power(_\d+)?")


@dataclasses.dataclass
class CheckpointContents:
    """The tensors of one file, sorted.

    `plain`, `averages`: variable name without scope → the tensor's name in the file.
    """

    prefix: str
    reader: "tf.compat.v1.train.CheckpointReader"
    shapes: dict[str, tuple[int, ...]]  # of every tensor, by its name in the file
    scopes: tuple[str, ...]  # "efficientnet-b0"; several if there are several networks in the file
    plain: dict[str, str]
    averages: dict[str, str]
    slots: list[str]
    unknown: list[str]
    step: Optional[int]
    architecture: Optional[Architecture]  # None: not an EfficientNet of any width and depth
    # Tensors of batch norms whose shape in the file is [1, 1, 1, 1, C]; in `shapes`
    # [C].
    grouped_norms: frozenset[str] = frozenset()

    def shape(self, variable: str) -> Optional[tuple[int, ...]]:
        """Returns the shape of a variable (plain or average); None: not in the file."""
        name = self.plain.get(variable, self.averages.get(variable))
        return None if name is None else self.shapes[name]

    def value(self, name: str) -> np.ndarray:
        """Reads a tensor by its name in the file, or raises one of `READ_ERRORS`."""
        return np.reshape(self.reader.get_tensor(name), self.shapes[name])

    @property
    def has_grouped_norms(self) -> bool:
        """Whether SAT's evaluation graph has written the file."""
        return bool(self.grouped_norms)

    def description(self) -> str:
        """Returns what the file looks like, in a few words."""
        if self.architecture is not None:
            return str(self.architecture)
        if "_CHECKPOINTABLE_OBJECT_GRAPH" in self.shapes:
            return (
                "a TensorFlow 2 object-based checkpoint, such as training runs write, and not the "
                "released format"
            )
        if self.plain or self.averages:
            return (
                "a relative of EfficientNet that is none of those known here (its scope is"
                f" {', '.join(self.scopes) or 'missing'})"
            )
        scopes = sorted({name.split("/")[0] for name in self.shapes})
        return f"another network altogether: its tensors are named {list_names(scopes, 5)}"


def read_contents(prefix: str) -> CheckpointContents:
    """Sorts the tensors of a checkpoint; reads none of them but the step."""
    reader = open_checkpoint(prefix)
    shapes = {
        name: tuple(shape) for name, shape in sorted(reader.get_variable_to_shape_map().items())
    }
    plain, averages, slots, unknown, scopes = {}, {}, [], [], set()
    # SAT's evaluation graph has gamma, beta and the statistics as [1, 1, 1, 1, C].
    grouped = {
        name
        for name, shape in shapes.items()
        if "batch_normalization" in name and len(shape) == 5 and shape[:-1] == (1, 1, 1, 1)
    }
    shapes.update({name: shapes[name][-1:] for name in grouped})
    for name in shapes:
        match = _VARIABLE.fullmatch(name)
        suffix = match[3] if match else None
        if match and suffix in (None, AVERAGE_SUFFIX):
            kind = plain if suffix is None else averages
            # A graph that the code of EfficientNetV2 has written counts its classifier's
            # scope. Of two networks in a file the scope must stay in the name.
            variable = match[2].replace("head_1/dense/", "head/dense/")
            variable = variable if variable not in kind else f"{match[1]}/{match[2]}"
            kind[variable] = name
            scopes.add(match[1] or "")
        elif (match and _SLOT.fullmatch(suffix)) or _OPTIMIZER_SCALAR.fullmatch(name):
            slots.append(name)
        elif name != STEP:
            unknown.append(name)
    step = None
    if STEP in shapes:
        try:
            step = int(reader.get_tensor(STEP))
        except READ_ERRORS as error:
            raise CheckpointError(
                f"The checkpoint {prefix!r} is damaged: its {STEP} cannot be read."
            ) from error
    contents = CheckpointContents(
        prefix, reader, shapes, tuple(sorted(scopes)), plain, averages, slots, unknown, step, None
    )
    contents.grouped_norms = frozenset(grouped)
    contents.architecture = recognize(plain.keys() | averages.keys(), contents.shape)
    return contents
