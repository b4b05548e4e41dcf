"""The result of an evaluation: scores of one model on several test sets, in a folder.

<directory>/results.json                     `Results`: counts, conditions, digests, versions
<directory>/predictions/<test set>.npz       `ImagePredictions` of every image of a test set

results = Results.read(directory)
results.test_sets["imagenet_c/fog/3"].score.top1
results.errors("imagenet_c")                 # corruption → [error by severity]
predictions = ImagePredictions.read(predictions_path(directory, "imagenet"))
predictions.image_ids, predictions.is_top1   # str [n], bool [n]
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import statistics
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import corruptions
from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import MIN_CLASSES_FOR_TOP5, Score
from efficientnet_advprop.evaluation.test_set_name import by_severity, corrupted_name, parse_name
from efficientnet_advprop.images.robustness_sets import corruptions_of
from efficientnet_advprop.runtime.files import to_json, write_atomically

RESULTS_FILE = "results.json"
_FORMAT = 1  # of results.json; another number is not read
_MAX_NAME_BYTES = 120  # file systems take 255


@dataclasses.dataclass(frozen=True)
class ImagePredictions:
    """Predictions for n images, in the order of the test set.

    Under attack these are the predictions for the adversarial image with the lowest
    rank of the true class; for an image that is wrong without attack, its own if they
    are worse.
    """

    image_ids: np.ndarray  # str [n]: path below the set's folder, or file and number of a record
    labels: np.ndarray  # int32 [n]
    # int32 [n, 5] (fewer, if there are fewer classes), the most probable first: labels of the
    # full set, also where only a subset was kept; `NO_CLASS` where the logits were undefined.
    classes: np.ndarray
    probabilities: np.ndarray  # float32 [n, 5], of `classes`
    losses: np.ndarray  # float32 [n], cross-entropy in nats

    @property
    def is_top1(self) -> np.ndarray:
        """bool [n]: the most probable class is the label."""
        return self.classes[:, 0] == self.labels

    def score(self) -> Score:
        is_top5 = (self.classes == self.labels[:, None]).any(axis=1)
        total_loss = float(self.losses.sum(dtype=np.float64))
        return Score(len(self.labels), int(self.is_top1.sum()), int(is_top5.sum()), total_loss)

    def calibration(self) -> CalibrationBins:
        """Counts the confidences in the most probable class."""
        return CalibrationBins.count(self.probabilities[:, 0], self.is_top1)

    def updated(self, others: "ImagePredictions", rows: np.ndarray) -> "ImagePredictions":
        """Returns a copy whose rows `rows` are replaced by `others`, of the same images."""
        if (self.image_ids[rows] != others.image_ids).any():
            raise ValueError("`others` are of other images than those in `rows`.")
        values = {name: value.copy() for name, value in vars(self).items()}
        for name in ("classes", "probabilities", "losses"):
            values[name][rows] = getattr(others, name)
        return ImagePredictions(**values)

    def with_label_variants(self, variants: Sequence[Sequence[int]]) -> "ImagePredictions":
        """Returns a copy in which each image's label is that of its right classes (`variants`,
        at least one) which ranks highest here.
        """
        labels = self.labels.copy()
        for row, own in enumerate(variants):
            labels[row] = next((label for label in self.classes[row] if label in own), own[0])
        return dataclasses.replace(self, labels=labels)

    def write(self, path: str) -> None:
        """Writes a compressed .npz, atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        tf.io.gfile.makedirs(os.path.dirname(path))
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: str) -> "ImagePredictions":
        """Reads what `write` wrote; raises a ValueError for anything else."""
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                arrays = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except Exception as error:  # of the zip file, of NumPy, of the file system
            raise ValueError(f"{path!r} cannot be read as predictions: {error}") from error


def predictions_path(directory: str, test_set: str) -> str:
    """Returns where the predictions for a test set are kept in a folder of results.

    A name too long for a file, as of a folder deep in a tree, ends in its digest.
    """
    parts = []
    for part in test_set.split("/"):
        encoded = part.encode()
        if len(encoded) > _MAX_NAME_BYTES:
            start = encoded[:_MAX_NAME_BYTES].decode(errors="ignore")
            part = f"{start}-{hashlib.sha256(encoded).hexdigest()[:12]}"
        parts.append(part)
    return os.path.join(directory, "predictions", *parts[:-1], f"{parts[-1]}.npz")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a score depends on beside the network: under equal ones it is not measured again."""

    data_digest: str  # see `LabeledImages.digest`
    image_size: int  # pixels of the sides of what the network sees
    crop: str  # see `preprocessing.preprocess_for_eval`; "none" feeds whole images
    branch: str = "main"  # whose batch norms classify and are attacked
    # Classes whose logits are kept before softmax and argmax (200 of ImageNet-A); None: all.
    class_subset_size: Optional[int] = None
    clean_suite: Optional[str] = None  # of the images that are corrupted here
    num_sampled: Optional[int] = None  # evenly spaced images that are evaluated; None: all
    attack: Optional[Mapping[str, Any]] = None  # `Attack.settings` and "num_restarts"
    seed: int = 0  # of the attack, or of corruptions made here
    num_categories: Optional[int] = None  # into which the classes are gathered
    label_variants_digest: Optional[str] = None  # where several classes of an image are right
    # Of the conditions of the attack before this one in a chain, whose survivors this one gets.
    after_digest: Optional[str] = None

    def __post_init__(self):
        # As JSON reads it back, which has no tuples: conditions are compared with read ones.
        object.__setattr__(self, "attack", json.loads(to_json(self.attack)))

    def digest(self) -> str:
        """Returns SHA-256 over all conditions."""
        return hashlib.sha256(to_json(dataclasses.asdict(self)).encode()).hexdigest()

    @property
    def feeding(self) -> str:
        """At which resolution images are fed, for people."""
        crop = "whole images" if self.crop == "none" else f"crop {self.crop}"
        return f"{self.image_size} px, {crop}"

    def describe(self) -> str:
        """Describes resolution, crop, and all conditions that differ from the usual ones."""
        parts = [self.feeding]
        if self.class_subset_size is not None:
            parts.append(f"{self.class_subset_size} classes kept")
        if self.num_categories is not None:
            parts.append(f"classes gathered into {self.num_categories} categories")
        if self.attack is not None:
            parts.append(_describe_attack(self.attack))
        if self.branch != "main" or self.attack is not None:
            parts.append(f"{self.branch} batch norms")
        return "; ".join(parts)


def _describe_attack(attack: Mapping[str, Any]) -> str:
    name = attack.get("name", "PGD")
    num_restarts = attack.get("num_restarts", 1)
    restarts = f"{num_restarts} restart{'s' if num_restarts > 1 else ''}"
    if name == "PGD":
        kind = "targeted" if attack["targeted"] else "untargeted"
        steps = f"{attack['num_steps']} steps of {attack['step_size']:g}"
        return f"{kind} PGD of {steps}, ε {attack['epsilon']:g}, {restarts}"
    norm = {"linf": "L∞", "l2": "L2"}[attack["norm"]]
    is_square = name == "Square"
    effort = f"{attack['num_queries']:,} queries" if is_square else f"{attack['num_steps']} steps"
    targets = f", {attack['num_targets']} targets" if attack.get("targeted") else ""
    loss = f" on {attack['loss'].replace('_', '-')}" if "loss" in attack else ""
    return f"{name}{loss} of {effort}{targets}, {norm} ε {attack['epsilon']:g}, {restarts}"


@dataclasses.dataclass(frozen=True)
class TestSetResult:
    """The result on one test set."""

    __test__ = False  # not a test of pytest's

    score: Score  # over all evaluated images
    calibration: CalibrationBins  # of the confidence in the top-1 class
    conditions: Conditions
    expected_num_images: Optional[int] = None  # the size of the test set; None: any
    problems: Sequence[str] = ()  # what is wrong with the data, for people
    warnings: Sequence[str] = ()  # why an accuracy under attack may be too high
    asked_for: Optional[str] = None  # of a folder, whose name is shorter: "folder:PATH"

    @property
    def is_complete(self) -> bool:
        """Whether the score is that of the whole test set."""
        return not self.shortfalls

    @property
    def shortfalls(self) -> list[str]:
        """What keeps the score from being that of the whole test set, for people."""
        num_sampled = self.conditions.num_sampled
        sample = [] if num_sampled is None else [f"only {num_sampled:,} images, evenly spaced"]
        return [*self.problems, *sample]

    @property
    def remarks(self) -> list[str]:
        """What a reader must know before trusting the score."""
        remarks = [*self.shortfalls, *self.warnings]
        if self.conditions.clean_suite is not None:
            clean = self.conditions.clean_suite
            remarks.append(f"corrupted here from {clean}, not the official files")
        return remarks

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TestSetResult":
        score = dict(data["score"])
        if score["total_loss"] is None:  # JSON has no NaN and no infinity
            score["total_loss"] = math.nan
        return cls(
            Score(**score),
            CalibrationBins(**data["calibration"]),
            Conditions(**data["conditions"]),
            data["expected_num_images"],
            tuple(data["problems"]),
            tuple(data["warnings"]),
            data.get("asked_for"),
        )


class _ByName(dict[str, TestSetResult]):
    """By name, and a folder's also as it was asked for: "folder:/home/ada/Photos/test"."""

    def __missing__(self, name: str) -> TestSetResult:
        found = [result for result in self.values() if result.asked_for == name]
        if len(found) != 1:
            raise KeyError(name)
        return found[0]


@dataclasses.dataclass
class Results:
    """The results of one model."""

    model: str  # its name
    # See `models.network.weights_digest`; of a SavedModel, SHA-256 over its files; "" of
    # a function, whose weights are unknown.
    weights_digest: str
    # Of the model, JSON values: its "settings" (see `classifiers.settings_of`), "image_size",
    # "crop", "branch", where it came from, "published" (its name in `published_checkpoints`) …
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # package → version
    # By name, in the order they were measured.
    test_sets: dict[str, TestSetResult] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.test_sets = _ByName(self.test_sets)

    def to_json(self) -> str:
        return to_json({"format": _FORMAT, **dataclasses.asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Reads what `to_json` wrote; raises a ValueError for anything else."""
        try:
            data = json.loads(text)
            if data.pop("format") != _FORMAT:
                raise ValueError("of another format")
            results = {
                name: TestSetResult.from_json(result)
                for name, result in data.pop("test_sets").items()
            }
            return cls(**data, test_sets=results)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`text` holds no results ({error!r}); they are written by `Results.to_json`."
            ) from error

    @classmethod
    def read(cls, path: str) -> "Results":
        """Reads a folder of results, or a results.json; raises a ValueError if there are none."""
        file_path = os.path.join(path, RESULTS_FILE) if tf.io.gfile.isdir(path) else path
        try:
            with tf.io.gfile.GFile(file_path) as file:
                return cls.from_json(file.read())
        except (tf.errors.OpError, ValueError) as error:
            raise ValueError(f"{file_path!r} cannot be read as results: {error}") from error

    @property
    def has_top5(self) -> bool:
        """Whether there are so many classes that top-5 says something."""
        return self.config.get("num_classes", MIN_CLASSES_FOR_TOP5) >= MIN_CLASSES_FOR_TOP5

    def corrupted_suites(self) -> list[str]:
        """Returns the suites of corrupted images that were measured: "imagenet_c", …"""
        names = map(parse_name, self.test_sets)
        return list(dict.fromkeys(name.suite for name in names if name.corruption is not None))

    def corruptions(self, suite: str) -> list[str]:
        """Returns the corruptions of a suite that were measured, in their order."""
        names = map(parse_name, self.test_sets)
        own = [name.corruption for name in names if name.suite == suite and name.corruption]
        return list(dict.fromkeys(own))

    def missing(self, suite: str) -> list[str]:
        """Returns a suite's corrupted sets that were not measured; with any, it has no mCE."""
        names = [
            corrupted_name(suite, name, severity)
            for name in corruptions_of(suite)
            for severity in corruptions.SEVERITIES
        ]
        return [name for name in names if name not in self.test_sets]

    def errors(self, suite: str) -> dict[str, list[float]]:
        """Returns corruption → top-1 error by severity, as `metrics` takes them."""
        return {
            corruption: [
                self.test_sets[name].score.error
                for name in by_severity(self.test_sets, suite, corruption)
            ]
            for corruption in self.corruptions(suite)
        }

    def mean_corrupted_accuracy(self, suite: str, corruption: Optional[str] = None) -> float:
        """Returns the mean top-1 accuracy over a suite's corrupted sets, or one corruption's."""
        errors = self.errors(suite)
        chosen = errors.values() if corruption is None else [errors[corruption]]
        return 1.0 - statistics.fmean(error for own in chosen for error in own)
