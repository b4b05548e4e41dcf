"""Folders of results as an evaluation leaves them, of models that never were: answers
drawn at random with a given skill.
"""

import os

import numpy as np

from efficientnet_advprop.data.corruptions import CORRUPTIONS, SEVERITIES
from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import (
    RESULTS_FILE,
    Conditions,
    ImagePredictions,
    Results,
    TestSetResult,
    predictions_path,
)
from efficientnet_advprop.evaluation.test_set_name import corrupted_name

NUM_CLASSES = 20


def scored(num_top1, num_images=1000, warnings=(), **conditions):
    """The result on a test set, of which only the score matters."""
    return TestSetResult(
        Score(num_images, num_top1, num_images),
        CalibrationBins.count(np.array([0.5]), np.array([True])),
        Conditions(**{"data_digest": "d", "image_size": 224, "crop": "released", **conditions}),
        warnings=warnings,
    )


def image_ids(num_images):
    """As of files in class folders; the labels are the folders' numbers."""
    return np.array(
        [f"n{number % NUM_CLASSES:08d}/{number:05d}.JPEG" for number in range(num_images)]
    )


def constructed_predictions(num_images, accuracy, rng):
    """Answers of which so many are right in the mean, with confidences that know
    nothing of it.
    """
    labels = np.arange(num_images, dtype=np.int32) % NUM_CLASSES
    classes = (labels[:, None] + np.array([1, 2, 3, 4, 5], np.int32)) % NUM_CLASSES
    is_right = rng.random(num_images) < accuracy
    classes[is_right] = (classes[is_right] - 1) % NUM_CLASSES
    first = rng.uniform(0.3, 1.0, num_images)
    probabilities = np.concatenate(
        [first[:, None], np.repeat((1 - first)[:, None] / 8, 4, axis=1)], axis=1
    )
    losses = np.full(num_images, 1.0, np.float32)
    return ImagePredictions(
        image_ids(num_images), labels, classes, probabilities.astype(np.float32), losses
    )


def write_results(
    directory,
    model,
    accuracies,
    *,
    num_images=120,
    seed=0,
    corruption_cost=0.1,
    config=None,
    conditions=None,
    problems=(),
    suites=("imagenet_c",),
):
    """Writes results.json and the predictions.

    Args:
        accuracies: test set → what fraction is right in the mean; of a corrupted suite
            in `suites`, before the corruption.
        corruption_cost: accuracy that each severity costs.
        conditions: test set or suite → fields of `Conditions` that are not as usual.
        problems: of every set.
    """
    rng, test_sets = np.random.default_rng(seed), {}
    for name, accuracy in accuracies.items():
        names = {name: accuracy}
        if name in suites:
            names = {
                corrupted_name(name, c, s): accuracy - corruption_cost * s
                for c in CORRUPTIONS
                for s in SEVERITIES
            }
        crop = "none" if name in suites else "released"
        fields = {"data_digest": "d" * 64, "image_size": 224, "crop": crop}
        own = Conditions(**{**fields, **(conditions or {}).get(name, {})})
        for test_set, fraction in names.items():
            predictions = constructed_predictions(num_images, fraction, rng)
            predictions.write(predictions_path(directory, test_set))
            test_sets[test_set] = TestSetResult(
                predictions.score(),
                predictions.calibration(),
                own,
                num_images,
                tuple(problems),
            )
    results = Results(
        model,
        f"{seed:064d}",
        {"published": None, **(config or {})},
        {"tensorflow": "2.15.1"},
        test_sets,
    )
    with open(os.path.join(directory, RESULTS_FILE), "w") as file:
        file.write(results.to_json())
    return results
