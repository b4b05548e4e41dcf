"""What a checkpoint in the released format holds, as the rows of a table.

contents = read_contents(find_checkpoint("b3-advprop")) for title, text in
summarize("b3-advprop", contents): ... for name, shape, kind in list_tensors(contents):
...
"""

import collections
import math

import numpy as np

from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    CheckpointContents,
    main_name,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    READ_ERRORS,
    CheckpointError,
)
from efficientnet_advprop.models.checkpoints.published_checkpoints import (
    KINDS,
    guess_kind,
    kinds_of,
)
from efficientnet_advprop.models.checkpoints.released_checkpoints import Difference
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.runtime.errors import list_names
from tpu_utils.errors import brief_message


def summarize(source: str, contents: CheckpointContents) -> list[tuple[str, str]]:
    """Title and text of every row of the table. Every weight is read once.

    Args:
        source: what the user gave, by whose name the kind of the checkpoint is guessed.
        contents: of the file.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    architecture = contents.architecture
    variant = architecture.variant if architecture else None
    kind = guess_kind(source, variant, contents.has_grouped_norms)
    kinds = kinds_of(architecture.variant) if architecture else tuple(KINDS)
    main = {
        name for name in contents.plain.keys() | contents.averages.keys() if main_name(name) == name
    }
    num_aux = len((contents.plain.keys() | contents.averages.keys()) - main)
    trained = sum(math.prod(contents.shape(name)) for name in main if "/moving_" not in name)
    difference, not_finite = _compare(contents)
    rows = [
        ("files", contents.prefix),
        ("network", contents.description()),
        ("scope", ", ".join(contents.scopes) or "none"),
        (
            "parameters",
            f"{trained:,} trainable, in {sum('/moving_' not in name for name in main)} variables",
        ),
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
        (
            "kind",
            f"{kind}: normalization {KINDS[kind].normalization}, crop {KINDS[kind].crop}, "
            f"ε of batch norms {KINDS[kind].batch_norm_epsilon:g}"
            if kind
            else f"the file does not tell: one of {', '.join(kinds)}",
        ),
    ]
    if architecture is not None:
        classes = (
            "none: no classifier"
            if architecture.num_classes is None
            else str(architecture.num_classes)
        )
        rows.insert(2, ("classes", classes))
        if architecture.width_coefficient is None:
            rows.insert(3, ("image size", f"{VARIANTS[architecture.variant].image_size} pixels"))
        design = VARIANTS[architecture.variant].design
        rows.append(("resizing", f"bicubic; in exports {design.serving_resize}"))
    return rows


def _compare(contents: CheckpointContents) -> tuple[Difference, list[str]]:
    difference = Difference()
    not_finite = []
    for name in sorted(contents.plain.keys() | contents.averages.keys()):
        tensors = [
            tensor_names[name]
            for tensor_names in (contents.averages, contents.plain)
            if name in tensor_names
        ]
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
    return (
        ", ".join(f"{slot} of {count} variables" for slot, count in sorted(counts.items()))
        or "none"
    )


def list_tensors(contents: CheckpointContents) -> list[tuple[str, str, str]]:
    """Name, shape and kind of every tensor, ordered by name; the kind says which are
    not finite.
    """
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
