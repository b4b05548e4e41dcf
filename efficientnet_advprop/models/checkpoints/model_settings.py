"""What the tensors of a checkpoint in the released format do not tell of their network.

    # `<prefix>.settings.json`, beside the tensors
    write_settings(prefix, model)
    settings = read_settings(prefix)                     # {} where there is no such file
    check_activation("out/b0-silu", model, contents)     # raises if that is not the model's

Google's own files have no such file beside them. Of those the activation is known by
the published table, or by the checkpoint's own name ("resnet50-silu").
"""

import json
import re
from typing import Any, Optional

import tensorflow as tf

from efficientnet_advprop.models.activations import ACTIVATIONS, OTHER_NAMES
from efficientnet_advprop.models.checkpoints.checkpoint_contents import CheckpointContents
from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.published_checkpoints import (
    find_published,
    own_names,
)
from efficientnet_advprop.models.network import NORMALIZATIONS, Network
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.runtime.errors import list_names
from efficientnet_advprop.runtime.files import write_atomically
from tpu_utils.errors import brief_message

SUFFIX = ".settings.json"
_SETTINGS = (
    "activation",
    "activation_alpha",
    "normalization",
    "batch_norm_momentum",
    "batch_norm_epsilon",
)


def write_settings(prefix: str, model: Network) -> None:
    """Writes `<prefix>.settings.json`: constructor arguments of the model that the
    shapes of its variables do not give away.
    """
    settings = {name: model.get_config()[name] for name in _SETTINGS}
    settings["activation"] = model.activation.name
    if ACTIVATIONS[model.activation.name].alpha is None:  # then it is a smooth gradient's
        settings["activation_alpha"] = None
    write_atomically(prefix + SUFFIX, (json.dumps(settings, indent=1) + "\n").encode())


def read_settings(prefix: str) -> dict[str, Any]:
    """The constructor arguments that `write_settings` wrote; {} where there is no file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    path = prefix + SUFFIX
    try:
        if not tf.io.gfile.exists(path):
            return {}
        with tf.io.gfile.GFile(path, "rb") as file:
            settings = json.loads(file.read())
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(
            f"{path!r}, which says what network is in the checkpoint beside it, cannot be read: "
            f"{brief_message(error)}. Remove it, and give what is not the default by flags."
        ) from error
    problem = _find_problem(settings)
    if problem:
        raise CheckpointError(
            f"{path!r}, which says what network is in the checkpoint beside it, {problem}; it is"
            " written by `python -m efficientnet_advprop.release`. Remove it, and give what is not"
            " the default by flags."
        )
    return settings


def _find_problem(settings: Any) -> Optional[str]:
    """What is wrong with the contents of a settings file, in words; None: nothing."""
    if not isinstance(settings, dict):
        return "is no JSON object"
    unknown = sorted(settings.keys() - set(_SETTINGS))
    if unknown:
        return f"names {list_names(unknown)}, which are no settings"
    if settings.get("activation", "relu") not in ACTIVATIONS:
        return f"names the activation {settings['activation']!r}, which there is not"
    if settings.get("normalization", "none") not in NORMALIZATIONS:
        return f"names the normalization {settings['normalization']!r}, which there is not"
    for name in ("activation_alpha", "batch_norm_momentum", "batch_norm_epsilon"):
        value = settings.get(name)
        if value is None and name == "activation_alpha":
            continue
        if name in settings and (type(value) not in (int, float) or value < 0):
            return f"has {value!r} as {name}, which is no number ≥ 0"
    return None


def activation_in_name(source: str) -> Optional[str]:
    """The one activation, a key of `ACTIVATIONS`, that a checkpoint's own name has as a
    word: "relu" of "runs/resnet50-relu"; None: none or several.
    """
    words = "|".join(
        sorted([*ACTIVATIONS, *OTHER_NAMES, "smoothrelu"], key=len, reverse=True)
    ).replace("_", "[-_]")
    for name in own_names(source):
        found = set(re.findall(rf"(?<![a-z0-9])({words})(?![a-z0-9])", name))
        if len(found) == 1:
            word = found.pop().replace("-", "_").replace("smoothrelu", "smooth_relu")
            return OTHER_NAMES.get(word, word)
    return None


def known_activations(source: str, contents: CheckpointContents) -> dict[str, str]:
    """Which activation a checkpoint's network has: what says so → a key of
    `ACTIVATIONS`.

    Empty where nothing does; what is surest comes first.
    """
    known = {}
    settings = read_settings(contents.prefix)
    if "activation" in settings:
        known[f"the file beside it that ends in {SUFFIX}"] = settings["activation"]
    if contents.has_trained_alpha:
        known["its tensors"] = "smooth_relu"
    published = find_published(source)
    if published is not None:
        known["the published table"] = VARIANTS[published.variant].design.activation
    named = activation_in_name(source)
    if named is not None:
        known["its name"] = named
    return known


def check_activation(source: str, model: Network, contents: CheckpointContents) -> None:
    """Checks that a model has the activation that its checkpoint's network has, as far
    as that is known.

    A network of another family has more that differs, and is not looked at.

    Raises:
        CheckpointError: it has another one; with what says so.
    """
    architecture, row = contents.architecture, VARIANTS.get(model.variant)
    is_of_one_family = architecture is None or (
        row is not None and VARIANTS[architecture.variant].design == row.design
    )
    if not is_of_one_family:
        return
    own = model.activation.name
    for origin, activation in known_activations(source, contents).items():
        if activation != own:
            raise CheckpointError(
                f"{source!r} holds a network whose activation is {activation!r} by {origin}, but"
                f" the model's `activation` is {own!r}, with which the weights mean nothing; build"
                f" it with {activation!r} (in a config: --config.model.activation). If the name is"
                " wrong, rename the checkpoint."
            )
