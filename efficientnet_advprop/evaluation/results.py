"""What was measured of one model on several test sets: a folder, written as it comes
in, read to go on and to report.

    <directory>/results.json                     `Results`: counts, conditions, digests, versions
    <directory>/predictions/<test set>.npz       `ImagePredictions` of every image of a test set

    results = Results.read(directory)
    results.test_sets["imagenet_c/fog/3"].score.top1, results.test_sets["imagenet_c/fog/3"].problems
    results.errors("imagenet_c")                 # corruption → [error by severity]
    predictions = ImagePredictions.read(predictions_path(directory, "imagenet"))

The names of test sets are `TestSetName`s.
"""

import dataclasses
import json
import os
import statistics
from typing import Any, Mapping, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.data import corruptions
from efficientnet_advprop.evaluation import metrics
from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.test_set_name import TestSetName, by_severity
from efficientnet_advprop.images.robustness_sets import corruptions_of

RESULTS_FILE = "results.json"
_FORMAT = 1  # of results.json; another number is not read


def predictions_path(directory: str, test_set: str) -> str:
    """Where the predictions for a test set are kept in a folder of results."""
    return os.path.join(directory, "predictions", f"{test_set}.npz")


def describe_feeding(image_size: int, crop: str) -> str:
    """At which resolution images are fed, in words."""
    return f"{image_size} px, {'whole images' if crop == 'none' else f'crop {crop}'}"


def describe_attack(attack: Mapping[str, Any]) -> str:
    """The fields of `Conditions.attack` in words."""
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
    """What a score depends on beside the weights.

    The same weights under the same conditions are not measured again.

    Args:
        data_digest: SHA-256 over the names, sizes and labels of the images (of a remote
            folder, names and labels; of TFRecords, the files' names, sizes and numbers
            of records): cheap, and it notices other, missing and exchanged files.
        image_size: pixels of the sides of what the network saw.
        crop: see `preprocessing.preprocess_for_eval`; "none" feeds whole images.
        branch: whose batch norms answered (and were attacked): "main", "aux", "aux_2",
            …
        num_kept_classes: how many classes' logits were kept before softmax and argmax
            (200 of ImageNet-A and -R); None: all.
        made_from: the suite of the clean images, if these were corrupted here rather
            than read from the official files.
        num_drawn: how many images, evenly spaced over all of them, were looked at, if
            not all were asked for.
        attack: fields of the attack, with "num_restarts" and, unless it is `PGD`, its
            "name"; None: no attack.
        seed: of what is random: the attack, corruptions made here.
        num_categories: into how many categories the classes were gathered; None: they
            were not.
        answers_digest: SHA-256 of which answers count as right, where there are
            several; None: the label alone.
    """

    data_digest: str
    image_size: int
    crop: str
    branch: str = "main"
    num_kept_classes: Optional[int] = None
    made_from: Optional[str] = None
    num_drawn: Optional[int] = None
    attack: Optional[Mapping[str, Any]] = None
    seed: int = 0
    num_categories: Optional[int] = None
    answers_digest: Optional[str] = None

    def __post_init__(self):
        # As it will be read back: JSON has no tuples, and what differs is measured again.
        object.__setattr__(self, "attack", json.loads(json.dumps(self.attack)))


@dataclasses.dataclass(frozen=True)
class TestSetResult:
    """What was found on one test set.

    Args:
        score: counts over all images that were looked at.
        calibration: of the confidence in the top-1 class.
        conditions: see there.
        expected_num_images: how many the test set has; None: there is no fixed number.
        problems: what is wrong with the data, in words; empty: nothing is. A report
            shows them with the score.
        doubts: why an accuracy under attack may be too high, in words; see
            `attacks.network_checks`.
    """

    __test__ = False  # not a test of pytest's

    score: Score
    calibration: CalibrationBins
    conditions: Conditions
    expected_num_images: Optional[int] = None
    problems: Sequence[str] = ()
    doubts: Sequence[str] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the score is that of the whole test set."""
        return not self.shortfalls

    @property
    def shortfalls(self) -> list[str]:
        """What keeps the score from being that of the whole test set, in words."""
        num_drawn = self.conditions.num_drawn
        if num_drawn is None:
            return list(self.problems)
        return [*self.problems, f"only {num_drawn:,} images, evenly spaced"]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TestSetResult":
        return cls(
            Score(**data["score"]),
            CalibrationBins(**data["calibration"]),
            Conditions(**data["conditions"]),
            data["expected_num_images"],
            tuple(data["problems"]),
            tuple(data.get("doubts", ())),  # results of earlier versions have none
        )


@dataclasses.dataclass
class Results:
    """The scores of one model and what they depend on.

    Args:
        model: its name, for people.
        weights_digest: see `weights_digest`; of a SavedModel, SHA-256 over its files;
            "" for a function, whose weights are unknown.
        config: of the model, JSON values: where it came from, "kind", "normalization",
            "image_size", "crop", "published" (its name in
            `models.published_checkpoints`, or None), …
        versions: package → version.
        test_sets: in the order they were measured.
    """

    model: str
    weights_digest: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    test_sets: dict[TestSetName, TestSetResult] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return (
            json.dumps(
                {"format": _FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False
            )
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != _FORMAT:
                raise ValueError("of another format")
            test_sets = {
                TestSetName(name): TestSetResult.from_json(result)
                for name, result in data.pop("test_sets").items()
            }
            return cls(**data, test_sets=test_sets)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`text` holds no results ({error!r}); they are written by `Results.to_json`."
            ) from error

    @classmethod
    def read(cls, path: str) -> "Results":
        """The results in a folder, or in a results.json.

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
        """The suites of corrupted images that were measured: "imagenet_c",
        "imagenet_c_made", …
        """
        return list(dict.fromkeys(name.suite for name in self.test_sets if name.is_corrupted))

    def corruptions(self, suite: str) -> list[str]:
        """The corruptions of a suite that were measured, in their order."""
        names = [name for name in self.test_sets if name.is_corrupted and name.suite == suite]
        return list(dict.fromkeys(name.corruption for name in names))

    def epsilons(self) -> list[float]:
        """The radii of the attacks that were measured, in their order; pixels of 255."""
        return [name.epsilon for name in self.test_sets if name.epsilon is not None]

    def severities(self, suite: str, corruption: str) -> list[Score]:
        """The scores under a corruption, the mildest first."""
        return [
            self.test_sets[name].score for name in by_severity(self.test_sets, suite, corruption)
        ]

    def missing(self, suite: str) -> list[TestSetName]:
        """Which of a suite's corrupted sets were not measured: none, or there is no
        mean of the whole, nor an mCE.
        """
        names = [
            TestSetName.corrupted(suite, name, severity)
            for name in corruptions_of(suite)
            for severity in corruptions.SEVERITIES
        ]
        return [name for name in names if name not in self.test_sets]

    def incomplete(self, suite: str) -> list[TestSetName]:
        """Which of a suite's test sets were measured in part only: none, or whatever is
        said of the suite must say so.
        """
        return [
            name
            for name, result in self.test_sets.items()
            if name.suite == suite and not result.is_complete
        ]

    def __post_init__(self):
        self.test_sets = {TestSetName(name): result for name, result in self.test_sets.items()}

    def errors(self, suite: str) -> dict[str, list[float]]:
        """Corruption → top-1 error by severity, as `metrics` wants them."""
        return {
            name: [score.error for score in self.severities(suite, name)]
            for name in self.corruptions(suite)
        }

    def mean_corrupted_accuracy(self, suite: str, corruption: Optional[str] = None) -> float:
        """The plain mean top-1 accuracy over all corrupted sets of a suite, or over
        those of one corruption.
        """
        errors = self.errors(suite)
        chosen = errors.values() if corruption is None else [errors[corruption]]
        return 1.0 - statistics.fmean(error for by_severity in chosen for error in by_severity)

    def mean_corruption_error(self, suite: str, baseline: metrics.CorruptionErrors) -> float:
        """mCE with `baseline` as the yardstick: 1 is as bad.

        Not that of the whole sets where some are `incomplete`.

        Raises:
            ValueError: sets of the suite are missing.
        """
        missing = self.missing(suite)
        if missing:
            raise ValueError(
                f"{suite} has no mCE: {len(missing)} of its sets were not measured"
                f" ({missing[0]}, …)."
            )
        return metrics.mean_corruption_error(self.errors(suite), baseline)

    def corruption_errors(self, suite: str, baseline: metrics.CorruptionErrors) -> dict[str, float]:
        """CE of each corruption, likewise."""
        return metrics.corruption_errors(self.errors(suite), baseline)
