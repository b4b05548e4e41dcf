"""The result of an evaluation: scores of one model on several test sets, in a folder.

<directory>/results.json                     `Results`: counts, conditions, digests, versions
<directory>/predictions/<test set>.npz       `ImagePredictions` of every image of a test set

results = Results.read(directory)
results.test_sets["imagenet_c/fog/3"].score.top1
results.errors("imagenet_c")                 # corruption → [error by severity]
predictions = ImagePredictions.read(predictions_path(directory, "imagenet"))
"""

import dataclasses
import hashlib
import json
import math
import os
import statistics
from typing import Any, Mapping, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.data import corruptions
from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.test_set_name import by_severity, corrupted_name, parse_name
from efficientnet_advprop.images.robustness_sets import corruptions_of
from efficientnet_advprop.runtime.files import to_json

RESULTS_FILE = "results.json"
_FORMAT = 1  # of results.json; another number is not read
_MAX_NAME_BYTES = 120  # file systems take 255


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


def describe_feeding(image_size: int, crop: str) -> str:
    """Describes at which resolution images are fed."""
    return f"{image_size} px, {'whole images' if crop == 'none' else f'crop {crop}'}"


def describe_attack(attack: Mapping[str, Any]) -> str:
    """Describes `Conditions.attack`."""
    name = attack.get("name", "PGD")
    num_restarts = attack.get("num_restarts", 1)
    restarts = f"{num_restarts} restart{'s' if num_restarts > 1 else ''}"
    if name == "PGD":
        kind = "targeted" if attack["targeted"] else "untargeted"
        steps = f"{attack['num_steps']} steps of {attack['step_size']:g}"
        return f"{kind} PGD of {steps}, ε {attack['epsilon']:g}, {restarts}"
    norm = {"linf": "L∞", "l2": "L2"}[attack["norm"]]
    if name == "Square":
        effort = f"{attack['num_queries']:,} queries"
    else:
        effort = f"{attack['num_steps']} steps"
    targets = f", {attack['num_targets']} targets" if attack.get("targeted") else ""
    loss = f" on {attack['loss'].replace('_', '-')}" if "loss" in attack else ""
    return f"{name}{loss} of {effort}{targets}, {norm} ε {attack['epsilon']:g}, {restarts}"


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

    @property
    def is_complete(self) -> bool:
        """Whether the score is that of the whole test set."""
        return not self.shortfalls

    @property
    def shortfalls(self) -> list[str]:
        """What keeps the score from being that of the whole test set, for people."""
        num_sampled = self.conditions.num_sampled
        if num_sampled is None:
            return list(self.problems)
        return [*self.problems, f"only {num_sampled:,} images, evenly spaced"]

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
        )


@dataclasses.dataclass
class Results:
    """The results of one model.

    Args:
        model: its name.
        weights_digest: see `models.network.weights_digest`; of a SavedModel, SHA-256
            over its files; "" of a function, whose weights are unknown.
        config: of the model, JSON values: its "settings" (see
            `network_settings.settings_of`), "image_size", "crop", "branch", where it
            came from, "published" (its name in `published_checkpoints`, or None), …
        versions: package → version.
        test_sets: by name, in the order they were measured.
    """

    model: str
    weights_digest: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    test_sets: dict[str, TestSetResult] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return to_json({"format": _FORMAT, **dataclasses.asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: `text` is something else.
        """
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
        """Reads a folder of results, or a results.json.

        Raises:
            ValueError: there are none.
        """
        file_path = os.path.join(path, RESULTS_FILE) if tf.io.gfile.isdir(path) else path
        try:
            with tf.io.gfile.GFile(file_path) as file:
                return cls.from_json(file.read())
        except (tf.errors.OpError, ValueError) as error:
            raise ValueError(f"{file_path!r} cannot be read as results: {error}") from error

    def corrupted_suites(self) -> list[str]:
        """Returns the suites of corrupted images that were measured: "imagenet_c", …"""
        names = map(parse_name, self.test_sets)
        return list(dict.fromkeys(name.suite for name in names if name.corruption is not None))

    def corruptions(self, suite: str) -> list[str]:
        """Returns the corruptions of a suite that were measured, in their order."""
        names = [parse_name(name) for name in self.test_sets]
        own = [name.corruption for name in names if name.suite == suite and name.corruption]
        return list(dict.fromkeys(own))

    def missing(self, suite: str) -> list[str]:
        """Returns a suite's corrupted sets that were not measured. If there are any, the
        suite has no mCE.
        """
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
