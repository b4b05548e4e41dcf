"""SavedModels under test: our exports, and any other that turns images into logits.

    classifier = load("served/efficientnet/1")

The signature must have one input [n, h, w, 3], float or uint8, fed with RGB pixels in
[0, 255], and one output [n, classes] (or one called "logits"): `predict_images` of our
exports, else `serving_default`, else the first of that form.
"""

import hashlib
import json
import os
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.config.tables import background_offset
from efficientnet_advprop.evaluation.classifiers import (
    DEFAULT_CROP,
    DEFAULT_IMAGE_SIZE,
    Classifier,
    background_last,
    probe,
)
from efficientnet_advprop.runtime.errors import ModelError, UsageError, brief_message
from efficientnet_advprop.runtime.files import list_folder, without_pattern

_FIRST_CHOICES = ("predict_images", "serving_default")


def load(path: str, *, image_size: Optional[int] = None, crop: Optional[str] = None) -> Classifier:
    """Makes a SavedModel ready for evaluation.

    Without `image_size` and `crop` they are what the model demands or tells, else 224 and "0.875".

    Raises:
        ModelError: it is none, or has no signature from images to logits.
        UsageError: it takes another size.
    """
    try:
        loaded = tf.saved_model.load(without_pattern(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = brief_message(error)
        raise ModelError(
            f"`--saved_model` is {path!r}, which cannot be loaded: {reason}"
        ) from error
    name, signature, images, output = _choose_signature(path, loaded.signatures)
    metadata = _read_metadata(path)
    if images.shape[1] != images.shape[2]:
        raise ModelError(
            f"{path!r} takes images of {images.shape[1]} x {images.shape[2]} pixels, but must take"
            " square ones."
        )
    size = image_size or images.shape[1] or metadata.get("image_size") or DEFAULT_IMAGE_SIZE
    if images.shape[1] not in (None, size):
        raise UsageError(
            f"`--image_size` is {image_size}, but {path!r} takes {images.shape[1]} pixels only;"
            " leave it out."
        )

    def function(pixels):
        if images.dtype.is_integer:
            pixels = tf.clip_by_value(tf.round(tf.cast(pixels, tf.float32)), 0.0, 255.0)
        # `loaded` must live as long as its signature.
        return loaded.signatures[name](**{images.name: tf.cast(pixels, images.dtype)})[output]

    num_classes, function, kind = probe(function, path, size, tf.float32, images.shape[0] or 4)
    # Of a file that is not ours nobody says which of 1001 classes the background is.
    has_background = bool(metadata) and background_offset(num_classes) == 1
    return Classifier(
        name=path,
        function=background_last(function) if has_background else function,
        has_background=has_background,
        num_classes=num_classes,
        image_size=size,
        crop=crop or metadata.get("crop") or DEFAULT_CROP,
        weights_digest=_digest(path),
        config={
            "saved_model": path,
            "output": kind,
            "settings": {"signature": name, "logits": output, "output": kind},
        },
        fixed_image_size=images.shape[1],
        fixed_batch_size=images.shape[0],
        class_names=metadata.get("class_names"),
    )


def _choose_signature(path, signatures):
    """Returns (name, signature, spec of its images, key of its logits)."""

    def specs_of(signature):
        return signature.structured_input_signature[1].values()

    fitting = {}
    for name, signature in signatures.items():
        inputs = list(specs_of(signature))
        outputs = signature.structured_outputs
        matrices = [key for key, spec in outputs.items() if spec.shape.rank == 2]
        output = "logits" if "logits" in matrices else matrices[0] if len(matrices) == 1 else None
        is_images = (
            len(inputs) == 1
            and inputs[0].shape.rank == 4
            and inputs[0].shape[-1] == 3
            and inputs[0].dtype != tf.string
        )
        if is_images and output is not None:
            fitting[name] = (name, signature, inputs[0], output)
    for name in (*_FIRST_CHOICES, *fitting):
        if name in fitting:
            return fitting[name]
    described = "; ".join(
        f"{name}:"
        f" {', '.join(f'{spec.name} {spec.dtype.name} {spec.shape}' for spec in specs_of(s))} →"
        f" {', '.join(f'{key} {spec.shape}' for key, spec in s.structured_outputs.items())}"
        for name, s in signatures.items()
    )
    raise ModelError(
        f"{path!r} has no signature from images [n, h, w, 3] to logits [n, classes]. "
        f"It has: {described or 'none at all'}. Such a model is evaluated by "
        "`evaluation.run`, with a function that calls it."
    )


def _read_metadata(path: str) -> dict:
    """Returns an export's input and classes; {} for another SavedModel."""
    file_path = os.path.join(path, "assets", "metadata.json")
    if not tf.io.gfile.exists(file_path):
        return {}
    try:
        with tf.io.gfile.GFile(file_path) as file:
            metadata = json.load(file)
        described, names = metadata["input"], metadata.get("class_names")
        return {name: described[name] for name in ("image_size", "crop")} | {"class_names": names}
    except (tf.errors.OpError, ValueError, KeyError, TypeError):
        return {}  # another program's file of that name


def _digest(path: str) -> str:
    """Returns SHA-256 over the files that hold graph and weights."""
    digest = hashlib.sha256()
    variables = os.path.join(path, "variables")
    file_paths = [os.path.join(path, "saved_model.pb")]
    if tf.io.gfile.isdir(variables):
        file_paths += [os.path.join(variables, name) for name in list_folder(variables)]
    for file_path in file_paths:
        with tf.io.gfile.GFile(file_path, "rb") as file:
            digest.update(f"{os.path.basename(file_path)} {file.size()};".encode())
            while part := file.read(1 << 24):
                digest.update(part)
    return digest.hexdigest()
