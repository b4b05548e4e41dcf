"""What a file of weights holds, whatever its format: plain weights, their averages,
optimizer slots, the step, and which network they are of, all by the official names.

A released checkpoint is TensorFlow 1's name-based V2 format. A tensor is called
`<scope>/<variable>`, such as `efficientnet-b0/stem/conv2d/kernel`, with
`/ExponentialMovingAverage` behind it if it is an average, or an optimizer's name if it
is a slot.
"""

import dataclasses
import math
import re
import types
from typing import Any, Callable, Mapping, Optional, Sequence

import numpy as np

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
class CheckpointContents:
    """The tensors of one file, sorted.

    `plain`, `averages`: variable name without scope → the tensor's name in the file.
    """

    prefix: str
    reader: Any  # has `get_tensor(name)`, such as a `tf.compat.v1.train.CheckpointReader`
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
    format: str = "released"  # | "timm" | "keras"
    # What the file, or a config beside it, says of the network: constructor arguments, and
    # `model_settings.PREPROCESSING`.
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Variable → what its library calls it, also if the file lacks it.
    expected: dict[str, str] = dataclasses.field(default_factory=dict)

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
            origin = "" if self.format == "released" else f", a file of {self.format}"
            return f"{self.architecture}{origin}"
        if "stride_in" in self.settings:
            return "a ResNet of Keras"
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


def ported_contents(
    file_format: str,
    file: str,
    shapes: dict[str, tuple[int, ...]],
    expected: dict[str, str],
    read: Callable[[str], np.ndarray],
    ignored: Sequence[str],
    settings: Mapping[str, Any],
) -> CheckpointContents:
    """Returns the contents of a file of another library.

    Args:
        shapes: of every tensor, by its name in the file, in our layout.
        expected: variable → its tensor's name in such a file, also if it lacks it.
        read: returns a tensor in our layout.
        ignored: tensors that no network needs.
        settings: see `CheckpointContents.settings`.
    """
    variables = {name: tensor for name, tensor in expected.items() if tensor in shapes}
    unknown = sorted(shapes.keys() - set(variables.values()) - set(ignored))
    contents = CheckpointContents(
        file,
        types.SimpleNamespace(get_tensor=read),
        shapes,
        scopes=(),
        plain=variables,
        averages={},
        slots=list(ignored),
        unknown=unknown,
        step=None,
        architecture=None,
        format=file_format,
        expected=expected,
    )
    contents.architecture = architecture = recognize(variables, contents.shape)
    known = {} if architecture is None else {"activation": architecture.activation}
    contents.settings = {**known, **settings}
    return contents


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
