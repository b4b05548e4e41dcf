"""What a checkpoint in the released format holds, as the rows of a table."""

import collections
import math

import numpy as np

from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    CheckpointContents,
    Difference,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import READ_ERRORS, CheckpointError
from efficientnet_advprop.models.checkpoints.model_settings import known_kind, known_settings
from efficientnet_advprop.models.checkpoints.published_checkpoints import KINDS, kinds_of
from efficientnet_advprop.models.checkpoints.variable_names import main_names
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.runtime.errors import brief_message, list_names


def summarize(source: str, contents: CheckpointContents) -> list[tuple[str, str]]:
    """Returns title and text of every row of the table. Every weight is read once."""
    held = contents.plain.keys() | contents.averages.keys()
    main = main_names(held)
    num_aux = len(held) - len(main)
    trained = [name for name in main if "/moving_" not in name]
    num_parameters = sum(math.prod(contents.shape(name)) for name in trained)
    difference, not_finite = _compare(contents)
    return [
        ("files", contents.prefix),
        ("network", contents.description()),
        *_rows_of_architecture(contents),
        ("scope", ", ".join(contents.scopes) or "none"),
        ("parameters", f"{num_parameters:,} trainable, in {len(trained)} variables"),
        ("averages (EMA)", f"{len(contents.averages)} variables"),
        ("plain weights", f"{len(contents.plain)} variables"),
        (
            "they differ",
            str(difference) if difference.num_tensors else "the file does not have both",
        ),
        ("auxiliary batch norms", f"{num_aux} variables" if num_aux else "none"),
        ("optimizer slots", _count_slots(contents.slots)),
        ("step", "not in the file" if contents.step is None else f"{contents.step:,}"),
        ("not finite", list_names(not_finite, 10) or "none"),
        ("other tensors", list_names(contents.unknown, 10) or "none"),
        ("kind", _describe_kind(source, contents)),
    ]


def _rows_of_architecture(contents: CheckpointContents) -> list[tuple[str, str]]:
    architecture = contents.architecture
    if architecture is None:
        return []
    rows = [("classes", str(architecture.num_classes or "none: no classifier"))]
    row = VARIANTS[architecture.variant]
    if architecture.width_coefficient is None:
        rows.append(("image size", f"{row.image_size} pixels"))
    if architecture.variant.startswith("v2-"):  # the crop says it
        return rows
    return [*rows, ("resizing", f"bicubic; in exports {row.design.serving_resize}")]


def _describe_kind(source: str, contents: CheckpointContents) -> str:
    architecture, settings = contents.architecture, known_settings(source, contents)
    if not settings:
        possible = (
            kinds_of(architecture.variant, architecture.num_classes) if architecture else KINDS
        )
        return f"the file does not tell: one of {', '.join(possible)}"
    known = [f"{name} {value}" for name, value in settings.items() if value is not None]
    return f"{known_kind(source, contents) or 'its settings file'}: {', '.join(known)}"


def _compare(contents: CheckpointContents) -> tuple[Difference, list[str]]:
    difference, not_finite = Difference(), []
    for name in sorted(contents.plain.keys() | contents.averages.keys()):
        tensors = [part[name] for part in (contents.averages, contents.plain) if name in part]
        try:
            values = [contents.value(tensor).astype(np.float32, copy=False) for tensor in tensors]
        except READ_ERRORS as error:
            raise CheckpointError(
                f"{' or '.join(tensors)} cannot be read: {brief_message(error)}"
            ) from error
        not_finite += [
            tensor for tensor, value in zip(tensors, values) if not np.isfinite(value).all()
        ]
        if len(values) == 2 and values[0].shape == values[1].shape:
            difference.add(tensors[1], *values)
    return difference, not_finite


def _count_slots(slots: list[str]) -> str:
    counts = collections.Counter(name.rsplit("/", 1)[-1] for name in slots)
    told = [f"{slot} of {count} variables" for slot, count in sorted(counts.items())]
    return ", ".join(told) or "none"


def list_tensors(contents: CheckpointContents) -> list[tuple[str, str, str]]:
    """Returns name, shape and kind of every tensor; the kind says which are not finite."""
    _, not_finite = _compare(contents)
    parts = {name: "average" for name in contents.averages.values()}
    parts.update({name: "plain weight" for name in contents.plain.values()})
    parts.update({name: "optimizer slot" for name in contents.slots})
    parts.update({name: f"{parts[name]}, not finite" for name in not_finite})
    return [
        (
            name,
            str([1] * 4 * (name in contents.grouped_norms) + list(shape)),
            parts.get(name, "other"),
        )
        for name, shape in contents.shapes.items()
    ]
