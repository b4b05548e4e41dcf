"""The names of an EfficientNet's parts in timm and in Keras (and in qubvel's package, from
which Keras has them). Both count blocks within their stage.
"""

import re
from typing import Iterable, Sequence

import numpy as np

from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.checkpoints.variable_names import main_name, variable_name
from efficientnet_advprop.runtime.errors import CheckpointError, list_names

TIMM, KERAS = "timm", "keras"
_NORM = "tpu_batch_normalization"
_GATES = {
    "se/conv2d": ("se.conv_reduce", "se_reduce"),
    "se/conv2d_1": ("se.conv_expand", "se_expand"),
}
# Kind of a block → our part → its names in timm and in Keras, in the order of Keras's layers.
_PARTS = {
    "plain": {
        "conv2d": ("conv_pw", "expand_conv"),
        _NORM: ("bn1", "expand_bn"),
        "depthwise_conv2d": ("conv_dw", "dwconv"),
        f"{_NORM}_1": ("bn2", "bn"),
        **_GATES,
        "conv2d_1": ("conv_pwl", "project_conv"),
        f"{_NORM}_2": ("bn3", "project_bn"),
    },
    "separable": {  # without an expansion
        "depthwise_conv2d": ("conv_dw", "dwconv"),
        _NORM: ("bn1", "bn"),
        **_GATES,
        "conv2d": ("conv_pw", "project_conv"),
        f"{_NORM}_1": ("bn2", "project_bn"),
    },
    "fused": {
        "conv2d": ("conv_exp", "expand_conv"),
        _NORM: ("bn1", "expand_bn"),
        "conv2d_1": ("conv_pwl", "project_conv"),
        f"{_NORM}_1": ("bn2", "project_bn"),
    },
    "single": {"conv2d": ("conv", "project_conv"), _NORM: ("bn1", "project_bn")},
    "routed": {  # Keras has none; {n} counts three for each such block, {m} one
        "dense": ("routing_fn", "routing"),
        "cond_conv2d_{n1}": ("conv_pw", "expand_conv"),
        _NORM: ("bn1", "expand_bn"),
        "depthwise_cond_conv2d{m}": ("conv_dw", "dwconv"),
        f"{_NORM}_1": ("bn2", "bn"),
        **_GATES,
        "cond_conv2d_{n2}": ("conv_pwl", "project_conv"),
        f"{_NORM}_2": ("bn3", "project_bn"),
    },
}
_ENDS = {
    "stem/conv2d": ("conv_stem", "stem_conv"),
    f"stem/{_NORM}": ("bn1", "stem_bn"),
    "head/conv2d": ("conv_head", "top_conv"),
    f"head/{_NORM}": ("bn2", "top_bn"),
    "head/dense": ("classifier", "predictions"),
}
_IN_BLOCK = {
    TIMM: re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)"),
    KERAS: re.compile(r"block(\d+)(.)_(.+)"),
}


# A block's kind (a key of `_PARTS`), its stage, and its number within the stage.
BlockPlace = tuple[str, int, int]


def places_of_table(design: scaling.Design, depth_coefficient: float) -> list[BlockPlace]:
    """Returns the blocks of a network of the table, scaled."""
    counts = scaling.scaled_repeats(design, depth_coefficient)
    return [
        (_kind_of_stage(design.stages[stage]), stage, index)
        for stage, count in enumerate(counts)
        for index in range(count)
    ]


def _kind_of_stage(stage: scaling.Stage) -> str:
    if stage.routed:
        return "routed"
    if stage.fused:
        return "single" if stage.expand_ratio == 1 else "fused"
    return "separable" if stage.expand_ratio == 1 else "plain"


def places_in_file(library: str, modules: Iterable[str]) -> list[BlockPlace]:
    """Returns the blocks of a file in which there are these modules (Keras: layers)."""
    parts: dict[tuple[int, int], set[str]] = {}
    for match in filter(None, map(_IN_BLOCK[library].fullmatch, modules)):
        # Keras's second index is a letter, and after z what follows in ASCII.
        index = int(match[2]) if library == TIMM else ord(match[2]) - ord("a")
        stage = int(match[1]) - (library == KERAS)
        parts.setdefault((stage, index), set()).add(match[3].removesuffix("2"))
    return [(_kind_in_file(library, parts[place]), *place) for place in sorted(parts)]


def _kind_in_file(library: str, parts: set[str]) -> str:
    if library == TIMM:
        markers = {"routing_fn": "routed", "conv_exp": "fused", "conv": "single"}
        found = next((kind for name, kind in markers.items() if name in parts), None)
        return found or ("plain" if "conv_pwl" in parts else "separable")
    if "dwconv" in parts:
        return "plain" if "expand_conv" in parts else "separable"
    return "fused" if "expand_conv" in parts else "single"


def module_names(library: str, places: Sequence[BlockPlace]) -> dict[str, str]:
    """Returns our module → the library's ("blocks_3/conv2d_1" → "blocks.2.0.conv_pwl"), of
    every module that such a network can have.
    """
    column = (TIMM, KERAS).index(library)
    names = {ours: theirs[column] for ours, theirs in list(_ENDS.items())[:2]}
    # Keras's EfficientNetV2 alone has fused blocks, and calls this layer otherwise.
    is_v2 = library == KERAS and any(kind in ("fused", "single") for kind, _, _ in places)
    num_routed = 0
    for number, (kind, stage, index) in enumerate(places):
        scope = f"blocks.{stage}.{index}."
        if library == KERAS:
            scope = f"block{stage + 1}{chr(ord('a') + index)}_"
        for part, theirs in _PARTS[kind].items():
            ours = f"blocks_{number}/{part}"
            if "{" in part:
                ours = "model/" + ours.format(
                    n1=3 * num_routed + 1,
                    n2=3 * num_routed + 2,
                    m=f"_{num_routed}" if num_routed else "",
                )
            names[ours] = scope + theirs[column] + ("2" if is_v2 and theirs[1] == "dwconv" else "")
        num_routed += kind == "routed"
    return {**names, **{ours: theirs[column] for ours, theirs in list(_ENDS.items())[2:]}}


def kernel_leaf(module: str) -> str:
    """Returns what the official code calls the kernel of one of our modules."""
    if "cond_conv2d" in module:
        return "depthwise_condconv_kernel" if "depthwise" in module else "condconv_kernel"
    return "depthwise_kernel" if "depthwise" in module else "kernel"


def is_norm(module: str) -> bool:
    """Whether one of our modules is a batch norm."""
    return _NORM in module


def portable_values(model, library: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns our module → the library's, and our variable → value, of an EfficientNet's main
    branch.

    Raises:
        CheckpointError: the library's networks of this name compute something else, or a
            value is not finite.
    """
    row, problem = scaling.VARIANTS.get(model.variant), ""
    if row is None:
        raise CheckpointError(f"{model.name} is not written for {library}: it is no EfficientNet.")
    config = model.get_config()
    if model.activation.name != row.design.activation:
        problem = f"its activation is {model.activation.name!r}, there {row.design.activation!r}"
    elif config["batch_norm_epsilon"] != 1e-3:
        problem = f"its `batch_norm_epsilon` is {config['batch_norm_epsilon']}, there 0.001"
    values = {
        name: variable.numpy()
        for name, variable in ((variable_name(model, v), v) for v in model.variables)
        if main_name(name) == name
    }
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        problem = f"the values of {list_names(bad)} are not finite"
    if problem:
        raise CheckpointError(f"{model.name} is not written for {library}: {problem}.")
    depth = config["depth_coefficient"] or row.depth_coefficient
    return module_names(library, places_of_table(row.design, depth)), values
