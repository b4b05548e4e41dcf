"""Does an export say what the model says?

Asked on photographs, of the export in a fresh process.

Usage:

    examples = default_examples(image_size=224, crop="released")
    agreement = verify(model, "saved_model", path, examples, tolerance=1e-5)
"""

import dataclasses
import importlib.resources
import os
import re
import subprocess
import sys
import tempfile
from typing import Optional, Sequence, Union

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.config.class_labels import background_offset
from efficientnet_advprop.data import image_formats, preprocessing, records
from efficientnet_advprop.images.image_folders import ImageFolder, list_folders
from efficientnet_advprop.images.labeled_images import RecordImages, drawn_positions
from efficientnet_advprop.inference.image_classification import find_images
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.runtime.errors import DataError
from efficientnet_advprop.runtime.files import without_pattern
from efficientnet_advprop.serving import self_check
from efficientnet_advprop.serving.export_directory import ExportError
from tpu_utils.errors import brief_message

FLOAT32_TOLERANCE = 1e-5  # of a probability
_NOISE = 1e-7  # of a pixel's value: about the last bit of a float32
_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images to compare on or to calibrate with."""

    files: Sequence[bytes]  # as encoded
    images: np.ndarray  # float32 [n, size, size, 3], pre-processed
    labels: Optional[Sequence[int]] = None  # None: not known


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How close an export's answers are to the model's."""

    num_images: int
    num_same_top1: int
    max_probability_difference: float
    model_noise: Optional[float] = None  # see `verify`; None: not needed
    model_accuracy: Optional[float] = None  # in [0, 1]; None: the images have no labels
    export_accuracy: Optional[float] = None

    def __str__(self):
        text = (
            f"same top-1 on {self.num_same_top1} of {self.num_images} images, |Δp| ≤"
            f" {self.max_probability_difference:.2g}"
        )
        if self.model_noise is not None:
            text += (
                " (float32 rounding alone moves this network's probabilities by up to"
                f" {self.model_noise:.2g})"
            )
        if self.model_accuracy is None:
            return text
        lost = 100 * (self.model_accuracy - self.export_accuracy)
        accuracies = (
            f"{100 * self.export_accuracy:.2f} % against the model's"
            f" {100 * self.model_accuracy:.2f} %"
        )
        return f"{text}; accuracy {accuracies} ({lost:.2f} points lost)"


@dataclasses.dataclass(frozen=True)
class FeatureAgreement:
    """How close an exported feature extractor's answers are to the model's."""

    end_point: str
    num_images: int
    max_difference: float  # relative to the largest value
    model_noise: Optional[float] = None  # see `verify`; None: not needed

    def __str__(self):
        text = (
            f"{self.end_point} of {self.num_images} images, largest difference "
            f"{self.max_difference:.2g} of the largest value"
        )
        if self.model_noise is not None:
            text += f" (float32 rounding alone makes up to {self.model_noise:.2g})"
        return text


def default_examples(
    image_size: int, crop: Union[str, float], resize_method: str = "bicubic"
) -> Examples:
    """Two photographs that scikit-learn ships, and the quarters of each."""
    files = []
    for name in ("china.jpg", "flower.jpg"):
        file = importlib.resources.files("sklearn.datasets.images").joinpath(name).read_bytes()
        photograph = tf.io.decode_jpeg(file)
        height, width = photograph.shape[0] // 2, photograph.shape[1] // 2
        quarters = [
            photograph[y : y + height, x : x + width] for y in (0, height) for x in (0, width)
        ]
        files += [file] + [tf.io.encode_jpeg(quarter, quality=95).numpy() for quarter in quarters]
    return _examples(files, image_size, crop, resize_method)


def read_examples(
    directory: str,
    image_size: int,
    crop: Union[str, float],
    num_classes: int,
    max_images: int,
    class_names: Optional[Sequence[str]] = None,
    resize_method: str = "bicubic",
) -> Examples:
    """Images of a folder, evenly drawn.

    Args:
        directory: with TFRecords, `validation-…-of-…` or else `train-…-of-…`, or with
            one sub-folder per class (see `ImageFolder`), which label the images; or
            with images alone. Hidden files and folders do not count.
        image_size, crop, resize_method: see `preprocessing.preprocess_for_eval`.
        num_classes, class_names: of the network, its background class included; names
            are None where they are not known.
        max_images: at most so many.

    Raises:
        DataError, PredictionError: there are no images.
        ExportError: one of them cannot be decoded.
    """
    if not tf.io.gfile.isdir(directory):
        raise ExportError(f"`--calibration_dir` is {directory!r}, but there is no such folder.")
    prefix = _find_records(directory)
    offset = background_offset(num_classes)
    if prefix is not None:
        images = RecordImages(records.open_split(directory, prefix), num_classes - offset)
        drawn = drawn_positions(min(max_images, images.num_images), images.num_images)
        rows = list(images.rows(drawn, count=1, index=0).as_numpy_iterator())
        labels = [int(label) + offset for _, label, _ in rows]
        return _examples([file for file, _, _ in rows], image_size, crop, resize_method, labels)
    if list_folders(directory):
        names = class_names[offset:] if class_names else None
        folder = ImageFolder(directory, num_classes - offset, class_names=names)
        paths, labels = folder.paths, [label + offset for label in folder.labels]
        for line in folder.skipped.describe():
            logging.warning("%s: %s", directory, line)
    else:
        paths, labels = find_images([directory]), None
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(max_images, len(paths))).astype(int))
    files = []
    for index in chosen:
        try:
            files.append(image_formats.read_file(paths[index]))
            image_formats.decode(files[-1])
        except (DataError, tf.errors.OpError) as error:
            raise ExportError(
                f"{paths[index]!r} in `--calibration_dir` cannot be read: {brief_message(error)}"
            ) from error
    chosen_labels = None if labels is None else [labels[index] for index in chosen]
    return _examples(files, image_size, crop, resize_method, chosen_labels)


def _find_records(directory: str) -> Optional[str]:
    """The prefix of the TFRecords in a folder: "validation" rather than "train"; None
    if there are none.
    """
    names = tf.io.gfile.listdir(directory)
    for prefix in ("validation", "train"):
        if any(re.fullmatch(rf"{prefix}-\d+-of-\d+", name) for name in names):
            return prefix
    return None


def _examples(files, image_size, crop, resize_method, labels=None) -> Examples:
    prepare = tf.function(
        lambda file: preprocessing.preprocess_for_eval(
            file, image_size, crop, resize_method, exact_jpeg=True
        ),
        autograph=False,
    )
    return Examples(files, np.stack([prepare(tf.constant(file)).numpy() for file in files]), labels)


def verify_features(
    model: Network,
    end_point: str,
    kind: str,
    path: str,
    examples: Examples,
    tolerance: Optional[float],
    python: str = sys.executable,
) -> FeatureAgreement:
    """Compares an exported feature extractor with its model.

    Args:
        model: with float32 activations.
        end_point: a name of `Network.features`.
        kind, path, examples, python: as in `verify`.
        tolerance: largest difference, relative to the largest value, or four times the
            model's own noise where that is more; None: nothing is too much.

    Raises:
        ExportError: the export cannot be loaded, or it differs by more than
            `tolerance`.
    """
    expected = _features(model, end_point, examples.images)
    largest = float(np.max(np.abs(expected)))
    answers = _run(kind, path, examples, python, end_point)["features"]
    difference = float(np.max(np.abs(answers - expected))) / largest
    noise = None
    if tolerance is not None and difference > tolerance:
        moved = [
            np.abs(_features(model, end_point, examples.images * np.float32(1 + change)) - expected)
            for change in (_NOISE, -_NOISE)
        ]
        noise = 4 * float(np.max(moved)) / largest
        tolerance = max(tolerance, noise)
    agreement = FeatureAgreement(end_point, len(expected), difference, noise)
    if tolerance is not None and not difference <= tolerance:
        raise ExportError(
            f"the export did not pass its check, which allows {tolerance:g}: {agreement}. Nothing"
            " was left behind."
        )
    return agreement


def _features(model, end_point, images) -> np.ndarray:
    run = tf.function(lambda batch: model.features(batch)[end_point], autograph=False)
    return np.concatenate([run(tf.constant(image[None])).numpy() for image in images])


def verify(
    model: Network,
    kind: str,
    path: str,
    examples: Examples,
    tolerance: Optional[float],
    python: str = sys.executable,
) -> Agreement:
    """Compares an export with its model.

    A network can be so steep that float32's rounding, which differs between the two,
    moves its answers by more than `tolerance`: deep ones with random weights are. So
    where an export differs by more, the model is asked again, of pixels that are
    changed by their last bit, and the export may differ four times as much as the model
    then differs from itself.

    Args:
        model: with float32 activations.
        kind: see `self_check`.
        path: of the export.
        examples: to compare on.
        tolerance: largest difference of a probability, with the same top-1 class
            everywhere (a tie within the tolerance counts as the same); None: nothing is
            too much, it is only measured.
        python: interpreter with the format's runtime.

    Raises:
        ExportError: the export cannot be loaded, or it differs by more than
            `tolerance`.
    """
    expected = _probabilities(model, examples.images)
    answers = _run(kind, path, examples, python)
    probabilities = answers["probabilities"]
    top1, expected_top1 = probabilities.argmax(-1), expected.argmax(-1)
    accuracies = {}
    if examples.labels is not None:
        accuracies["model_accuracy"] = float(np.mean(expected_top1 == examples.labels))
        accuracies["export_accuracy"] = float(np.mean(top1 == examples.labels))
    rows = np.arange(len(expected))
    top1_answers, difference = [top1], float(np.max(np.abs(probabilities - expected)))
    if "classes" in answers:
        problems = [error for error in answers["error"] if error]
        if problems:
            raise ExportError(
                f"the export did not pass its check: it refused a good image as {problems[0]!r}."
            )
        of_classes = np.take_along_axis(expected, answers["classes"], axis=-1)
        difference = max(
            difference, float(np.max(np.abs(answers["top_probabilities"] - of_classes)))
        )
        difference = max(difference, float(answers["uint8_difference"]))
        top1_answers += [answers["classes"][:, 0], answers["batch_classes"][:, 0]]
    noise = None
    if tolerance is not None and difference > tolerance:
        noise = _measure_noise(model, examples.images, expected)
        tolerance = max(tolerance, noise)
    slack = 2 * (tolerance or 0.0)
    same = np.all(
        [
            (top1 == expected_top1) | (expected[rows, top1] >= expected.max(-1) - slack)
            for top1 in top1_answers
        ],
        axis=0,
    )
    agreement = Agreement(len(expected), int(np.sum(same)), difference, noise, **accuracies)
    if tolerance is not None and (not same.all() or not difference <= tolerance):
        raise ExportError(
            f"the export did not pass its check, which allows |Δp| ≤ {tolerance:g}: {agreement}."
            " Nothing was left behind."
        )
    return agreement


def _measure_noise(model, images, expected) -> float:
    """How far rounding may move a probability: four times what the pixels' last bit
    does, since every layer rounds.
    """
    moved = [
        np.abs(_probabilities(model, images * np.float32(1 + change)) - expected)
        for change in (_NOISE, -_NOISE)
    ]
    return 4 * float(np.max(moved))


def _probabilities(model, images) -> np.ndarray:
    classify = tf.function(
        lambda batch: model.probabilities(model(batch, training=False)), autograph=False
    )
    batches = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
    return np.concatenate([classify(tf.constant(batch)).numpy() for batch in batches])


def _run(
    kind: str, path: str, examples: Examples, python: str, end_point: Optional[str] = None
) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        files = {
            f"file_{index}": np.frombuffer(file, np.uint8)
            for index, file in enumerate(examples.files)
        }
        np.savez(os.path.join(folder, "examples.npz"), images=examples.images, **files)
        isolated = (
            [] if kind == "keras" else ["-I"]
        )  # neither this folder nor PYTHONPATH is importable
        absolute_path = os.path.abspath(path)  # the process runs in another folder
        if kind == "saved_model":
            absolute_path = without_pattern(absolute_path)
        command = [python, *isolated, self_check.__file__, kind, absolute_path]
        command += [os.path.join(folder, name) for name in ("examples.npz", "answers.npz")]
        command += [] if end_point is None else [end_point]
        environment = {
            **os.environ,
            "PYTHONPATH": os.path.dirname(importlib.resources.files("efficientnet_advprop")),
        }
        # In the same folder as this process: `path` and `python` may be relative to it.
        finished = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        if finished.returncode != 0:
            last_lines = " | ".join(finished.stderr.strip().splitlines()[-3:])
            raise ExportError(
                f"the export did not pass its check: a fresh process cannot use it ({last_lines})."
            )
        with np.load(os.path.join(folder, "answers.npz")) as answers:
            return dict(answers)
