"""What the tensors of a checkpoint in the released format do not tell of their network.

A checkpoint that this project writes has `<prefix>.settings.json` beside its tensors. Of
Google's own files the published table knows. Of a copy of such a file under another name
nothing does: whoever uses it must say the kind.
"""

import json
from typing import Any, Mapping, Optional

import tensorflow as tf

from efficientnet_advprop.models.activations import ACTIVATIONS
from efficientnet_advprop.models.checkpoints.checkpoint_contents import CheckpointContents
from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.published_checkpoints import (
    KINDS,
    find_published,
    kinds_of,
)
from efficientnet_advprop.models.network import NORMALIZATIONS, Network
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.runtime.errors import brief_message
from efficientnet_advprop.runtime.files import write_atomically

SETTINGS_SUFFIX = ".settings.json"
# How images come in: no arguments of a network.
PREPROCESSING = ("crop", "image_size")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


_RULES = {
    "activation": lambda value: isinstance(value, str) and value in ACTIVATIONS,
    "normalization": lambda value: value in NORMALIZATIONS,
    "activation_alpha": lambda value: value is None or _is_number(value),
    "batch_norm_momentum": _is_number,
    "batch_norm_epsilon": _is_number,
    "crop": lambda value: type(value) is str,
    "image_size": lambda value: type(value) is int,
}


def write_settings(prefix: str, model: Network, preprocessing: Mapping[str, Any]) -> None:
    """Writes `<prefix>.settings.json`: constructor arguments of the model that the
    shapes of its variables do not give away, and how its images are prepared.
    """
    arguments = [name for name in _RULES if name not in PREPROCESSING]
    settings = {**{name: model.get_config()[name] for name in arguments}, **preprocessing}
    settings["activation"] = model.activation.name
    if ACTIVATIONS[model.activation.name].alpha is None:  # then it is a smooth gradient's
        settings["activation_alpha"] = None
    write_atomically(prefix + SETTINGS_SUFFIX, (json.dumps(settings, indent=1) + "\n").encode())


def read_settings(prefix: str) -> dict[str, Any]:
    """Returns what `write_settings` wrote, else raises; {} where there is no file."""
    path = prefix + SETTINGS_SUFFIX
    try:
        if not tf.io.gfile.exists(path):
            return {}
        with tf.io.gfile.GFile(path, "rb") as file:
            settings = json.loads(file.read())
        problem = _find_problem(settings)
    except (tf.errors.OpError, ValueError) as error:
        problem = f"cannot be read: {brief_message(error)}"
    if problem:
        raise CheckpointError(
            f"{path!r}, which says what network is in the checkpoint beside it, {problem}; it is"
            " written by `python -m efficientnet_advprop.release`. Remove it, and give what is not"
            " the default by flags."
        )
    return settings


def _find_problem(settings: Any) -> Optional[str]:
    """Returns what is wrong with the contents of a settings file, in words; None: nothing."""
    if not isinstance(settings, dict):
        return "is no JSON object"
    for name, value in settings.items():
        if name not in _RULES:
            return f"names {name}, which is no setting"
        if not _RULES[name](value):
            return f"has {value!r} as {name}, which cannot be"
    return None


def known_kind(source: str, contents: CheckpointContents) -> Optional[str]:
    """Returns the kind of a checkpoint, a key of `KINDS`, where its official name or
    place, the form of its batch norms or its network says so; else None.
    """
    published = find_published(source)
    if published is not None:
        return published.kind
    if contents.format != "released":  # they say themselves how their pixels are normalised
        return None
    if contents.has_grouped_norms:  # only the evaluation graph of SAT's code writes them so
        return "sat"
    architecture = contents.architecture
    possible = kinds_of(architecture.variant, architecture.num_classes) if architecture else ()
    return possible[0] if len(possible) == 1 else None


def known_settings(
    source: str, contents: CheckpointContents, kind: Optional[str] = None
) -> dict[str, Any]:
    """Returns what is known of a checkpoint's network besides its tensors: arguments of
    `EfficientNet`, and `PREPROCESSING`.

    Args:
        source: what the user called it.
        contents: of its files.
        kind: as the user says; None: `known_kind`.
    """
    settings: dict[str, Any] = {}
    kind = kind or known_kind(source, contents)
    if kind is not None:
        row = KINDS[kind]
        settings = dict(
            normalization=row.normalization,
            batch_norm_momentum=row.batch_norm_momentum,
            batch_norm_epsilon=row.batch_norm_epsilon,
            crop=row.crop,
        )
    published = find_published(source)
    if published is not None:
        settings["activation"] = VARIANTS[published.variant].design.activation
    if any(name.endswith("root_of_alpha") for name in [*contents.plain, *contents.averages]):
        settings["activation"] = "smooth_relu"
    if contents.format == "released":
        return {**settings, **read_settings(contents.prefix)}
    told = contents.settings.get("normalization", settings.get("normalization"))
    if told != settings.get("normalization", told):
        raise CheckpointError(
            f"`--kind` is {kind!r}, whose pixels are normalised as {settings['normalization']!r},"
            f" but {source!r} says {told!r}; leave the flag out."
        )
    return {**settings, **contents.settings}
