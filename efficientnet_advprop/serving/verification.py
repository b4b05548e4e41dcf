"""Does an export say what the model says? Asked of the export in a fresh process."""

import dataclasses
import importlib.resources
import os
import subprocess
import sys
import tempfile
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.network import Network
from efficientnet_advprop.runtime.errors import RunError
from efficientnet_advprop.runtime.files import without_pattern
from efficientnet_advprop.serving import self_check
from efficientnet_advprop.serving.calibration_images import Examples

FLOAT32_TOLERANCE = 1e-5  # of a probability
FEATURE_TOLERANCE = 1e-3  # of a feature map, relative to its largest value
# Rounding weights to 11 bits moves both by more than float32's noise; beyond this,
# something is wrong.
FLOAT16_TOLERANCE = 2e-2
_NOISE = 1e-7  # of a pixel's value: about the last bit of a float32
_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How close an export's answers are to the model's."""

    num_images: int
    max_difference: float  # of a probability; of features relative to the largest value
    model_noise: Optional[float] = None  # see `verify`; None: not needed
    end_point: Optional[str] = None  # whose features were compared; None: probabilities
    num_same_top1: Optional[int] = None
    model_accuracy: Optional[float] = None  # in [0, 1]; None: the images have no labels
    export_accuracy: Optional[float] = None

    def as_json(self) -> dict[str, Any]:
        """Returns what an export's metadata say of it."""
        facts = dict(num_images=self.num_images, model_noise=self.model_noise)
        if self.end_point is not None:
            return {**facts, "end_point": self.end_point, "max_difference": self.max_difference}
        return {
            **facts,
            "num_same_top1": self.num_same_top1,
            "max_probability_difference": self.max_difference,
            "model_accuracy": self.model_accuracy,
            "export_accuracy": self.export_accuracy,
        }

    def __str__(self):
        if self.end_point is None:
            text = f"same top-1 on {self.num_same_top1} of {self.num_images} images, |Δp| ≤"
            text += f" {self.max_difference:.2g}"
        else:
            text = f"{self.end_point} of {self.num_images} images, largest difference"
            text += f" {self.max_difference:.2g} of the largest value"
        if self.model_noise is not None:
            text += f" (float32 rounding alone makes up to {self.model_noise:.2g})"
        if self.model_accuracy is None:
            return text
        of_export, of_model = 100 * self.export_accuracy, 100 * self.model_accuracy
        accuracies = f"{of_export:.2f} % against the model's {of_model:.2f} %"
        return f"{text}; accuracy {accuracies} ({of_model - of_export:.2f} points lost)"


def verify(
    model: Network,
    kind: str,
    path: str,
    examples: Examples,
    tolerance: Optional[float],
    python: str = sys.executable,
    end_point: Optional[str] = None,
) -> Agreement:
    """Compares an export with its model, which has float32 activations.

    `kind` and `end_point` are those of `self_check`; `python` has the format's runtime. With
    `tolerance` None the difference is only measured. Otherwise it is the largest that is
    allowed, and the top-1 class of probabilities must be the same but for ties within it.
    Raises a `RunError` if the export cannot be loaded, or differs by more.
    """
    if end_point is None:
        ask = _in_batches(
            lambda batch: model.probabilities(model(batch, training=False)), _BATCH_SIZE
        )
    else:
        ask = _in_batches(lambda batch: model.features(batch)[end_point], 1)
    expected, answers = ask(examples.images), _run(kind, path, examples, python, end_point)
    found = answers["probabilities" if end_point is None else "features"]
    largest = 1.0 if end_point is None else float(np.max(np.abs(expected)))
    difference = float(np.max(np.abs(found - expected))) / largest
    if "classes" in answers:
        difference = max(difference, _difference_of_files(answers, expected))
    noise = None
    if tolerance is not None and difference > tolerance:
        # A network can be so steep that float32's rounding, which differs between the
        # two, moves its answers by more than the tolerance: deep ones with random
        # weights are. So the model is asked again, of pixels that are changed by their
        # last bit; the export may differ four times as much as the model then does from
        # itself, since every layer rounds.
        moved = [
            ask(examples.images * np.float32(1 + change)) - expected for change in (_NOISE, -_NOISE)
        ]
        noise = 4 * float(np.max(np.abs(moved))) / largest
        tolerance = max(tolerance, noise)
    agreement = Agreement(len(expected), difference, noise, end_point)
    all_same = True
    if end_point is None:
        same = _same_top1(answers, expected, slack=2 * (tolerance or 0.0))
        agreement = dataclasses.replace(agreement, num_same_top1=int(np.sum(same)))
        all_same = bool(np.all(same))
    if examples.labels is not None and end_point is None:
        agreement = dataclasses.replace(
            agreement,
            model_accuracy=float(np.mean(expected.argmax(-1) == examples.labels)),
            export_accuracy=float(np.mean(found.argmax(-1) == examples.labels)),
        )
    if tolerance is not None and not (all_same and difference <= tolerance):
        raise RunError(
            f"the export did not pass its check, which allows a difference of {tolerance:g}:"
            f" {agreement}. Nothing was left behind."
        )
    return agreement


def _in_batches(function: Callable, size: int) -> Callable[[np.ndarray], np.ndarray]:
    traced = tf.function(function, autograph=False)

    def ask(images):
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([traced(tf.constant(part)).numpy() for part in parts])

    return ask


def _difference_of_files(answers: dict[str, np.ndarray], expected: np.ndarray) -> float:
    """Returns how far the probabilities of `serving_default` and of whole pixels are off."""
    problems = [error for error in answers["error"] if error]
    if problems:
        raise RunError(
            f"the export did not pass its check: it refused a good image as {problems[0]!r}."
        )
    of_classes = np.take_along_axis(expected, answers["classes"], axis=-1)
    of_files = np.max(np.abs(answers["top_probabilities"] - of_classes))
    return max(float(of_files), float(answers["uint8_difference"]))


def _same_top1(answers: dict[str, np.ndarray], expected: np.ndarray, slack: float) -> np.ndarray:
    """Returns, bool [n], whether all of the export's answers name the model's class, or
    one that is as likely but for `slack`.
    """
    named = [answers["probabilities"].argmax(-1)]
    if "classes" in answers:
        named += [answers["classes"][:, 0], answers["batch_classes"][:, 0]]
    rows, best = np.arange(len(expected)), expected.max(-1)
    return np.all([expected[rows, classes] >= best - slack for classes in named], axis=0)


def _run(
    kind: str, path: str, examples: Examples, python: str, end_point: Optional[str]
) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        files = {
            f"file_{index}": np.frombuffer(file, np.uint8)
            for index, file in enumerate(examples.files)
        }
        np.savez(os.path.join(folder, "examples.npz"), images=examples.images, **files)
        # Neither this folder nor PYTHONPATH is importable, but for the one that needs
        # this package.
        isolated = [] if kind == "keras" else ["-I"]
        absolute_path = os.path.abspath(path)
        if kind == "saved_model":
            absolute_path = without_pattern(absolute_path)
        command = [python, *isolated, self_check.__file__, kind, absolute_path]
        command += [os.path.join(folder, name) for name in ("examples.npz", "answers.npz")]
        command += [] if end_point is None else [end_point]
        package = os.path.dirname(importlib.resources.files("efficientnet_advprop"))
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": package},
        )
        if finished.returncode != 0:
            last_lines = " | ".join(finished.stderr.strip().splitlines()[-3:])
            raise RunError(
                f"the export did not pass its check: a fresh process cannot use it ({last_lines})."
            )
        with np.load(os.path.join(folder, "answers.npz")) as answers:
            return dict(answers)
