"""A restored network's weights in the formats that other programs read, and a page on them."""

import os
from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.class_names import LABELS_MAP, require_same_names, write_class_names
from efficientnet_advprop.models import CheckpointError, save_released_checkpoint
from efficientnet_advprop.models.checkpoints import hub, keras_weights, model_card, timm_weights
from efficientnet_advprop.runtime.files import list_folder, write_atomically
from efficientnet_advprop.serving.trained_network import RestoredNetwork
from efficientnet_advprop.training.checkpoints import accuracy_of_best

CARD = "README.md"
_NAMES = {"timm": "model.safetensors", "keras-applications": "model.weights.h5"}


def write_weights(network: RestoredNetwork, file_format: str, output: str) -> tuple[str, str]:
    """Writes a network's weights, and its classes' names beside them.

    Args:
        file_format: "released", "timm" or "keras-applications".
        output: a prefix (released), or a file, or a folder for it.

    Returns:
        The file or prefix, and a line on it for people.

    Raises:
        CheckpointError: files are in the way, or the library has no such network.
    """
    model, note = network.model, "these weights, under the averages' names too"
    prepared = {"image_size": network.image_size, "crop": network.crop}
    if file_format == "released":
        if getattr(model, "stem", None) is None:
            raise CheckpointError(f"{network.name} is a Keras model; write it by `export`.")
        return save_released_checkpoint(model, output, preprocessing=prepared), note
    name = _NAMES[file_format]
    suffix = name.partition(".")[2]
    file = output if output.endswith(f".{suffix}") else os.path.join(output, name)
    folder = os.path.dirname(file)
    in_the_way = (
        [file] if file_format != "timm" else [file, os.path.join(folder, timm_weights.CONFIG)]
    )
    existing = [path for path in in_the_way if tf.io.gfile.exists(path)]
    if existing:
        raise CheckpointError(f"`--output` is {output!r}, but {existing[0]!r} is there already.")
    if network.class_names:
        require_same_names(folder or ".", list(network.class_names), "a checkpoint")
    if file_format == "timm":
        resize = "bilinear" if network.crop.startswith("v2") else "bicubic"
        fraction = preprocessing.crop_fraction(network.image_size, network.crop)
        timm_weights.write_timm_files(
            model, file, **prepared, crop_fraction=fraction, resize=resize
        )
        note = f"timm's {_library_name(model, file_format)}, with its config.json"
    else:
        keras_weights.write_keras_file(model, file, **prepared)
        note = f"keras.applications' {_library_name(model, file_format)}{_pixels_note(network)}"
    if network.class_names:
        write_class_names(folder or ".", list(network.class_names))
    return file, note


def _library_name(model, file_format: str) -> str:
    """Returns what the format's library calls a network."""
    config = model.get_config()
    if config.get("width_coefficient") or config.get("depth_coefficient"):
        return "network, of a width and depth that have no name"
    if file_format == "timm":
        return str(hub.timm_architecture(model.variant))
    return str(keras_weights.keras_function(model.variant))


def _pixels_note(network: RestoredNetwork) -> str:
    """Returns how a user of Keras has to normalise pixels, where no layer of the file does."""
    model = network.model
    default = keras_weights.default_normalization(model.variant)
    if default in (None, model.normalization):
        return ""
    return (
        f"; build it with include_preprocessing=False and give it pixels normalised as"
        f" {model.normalization!r}: Keras's own layers would do {default!r}"
    )


def files_of(file: str) -> list[str]:
    """Returns the names of what `write_weights` and `write_model_card` wrote for a file."""
    folder, name = os.path.dirname(file) or ".", os.path.basename(file)
    beside = {timm_weights.CONFIG, LABELS_MAP, CARD, "checkpoint"}
    return [entry for entry in list_folder(folder) if entry in beside or entry.startswith(name)]


def write_model_card(
    network: RestoredNetwork,
    file_format: str,
    file: str,
    place: str,
    note: str,
    model_dir: Optional[str] = None,
) -> str:
    """Writes README.md beside weights that `write_weights` or `write_released_checkpoint` wrote.

    Args:
        file, note: as `write_weights` returns them.
        place: from where readers will load them.
        model_dir: of the run that trained the network, if it was one of ours.

    Returns:
        The page's path.

    Raises:
        CheckpointError: another page is in the way.
    """
    path = os.path.join(os.path.dirname(file), CARD)
    if tf.io.gfile.exists(path):
        raise CheckpointError(f"`--model_card`: {path!r} is there already; remove it first.")
    model, published = network.model, network.published
    metrics = {}
    data = f"A network of {model.num_classes} classes."
    if published is not None:
        data = f"Google's checkpoint {published.name}, trained on ImageNet ({published.kind})."
        if published.top1 is not None:
            metrics["ImageNet validation, top-1, as published"] = f"{published.top1} %"
    if model_dir:
        data = f"Trained by efficientnet-advprop: {network.description.splitlines()[1].strip()}."
        accuracy = accuracy_of_best(model_dir)
        if accuracy is not None and "best checkpoint" in network.description:
            metrics["validation set of the run, by which these weights were chosen, top-1"] = (
                f"{100 * accuracy:.2f} %"
            )
    facts = {
        "variant": model.variant,
        "num_classes": model.num_classes,
        "image_size": network.image_size,
        "crop": network.crop,
        "normalization": model.normalization,
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
    }
    text = model_card.describe(
        os.path.basename(place.rstrip("/")) or network.name,
        file_format,
        os.path.basename(file),
        architecture=_library_name(model, file_format),
        place=place,
        facts=facts,
        metrics=metrics,
        data=data,
        is_published=published is not None and not model_dir,
        keras_note=note.partition("; ")[2] if file_format == "keras-applications" else "",
    )
    write_atomically(path, text.encode())
    return path
