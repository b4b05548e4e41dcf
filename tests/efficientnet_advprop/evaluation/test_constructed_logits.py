"""From logits to every number of a report, against scikit-learn and SciPy on the same
logits.
"""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, top_k_accuracy_score

from efficientnet_advprop.evaluation.evaluator import score
from efficientnet_advprop.evaluation.results import ImagePredictions
from efficientnet_advprop.evaluation.suites.imagenet_suites import subset

NUM_IMAGES, NUM_CLASSES = 3000, 1000


@pytest.mark.parametrize("suite", [None, "imagenet_a", "imagenet_r"])
def test_counts_loss_and_calibration(suite):
    rng = np.random.default_rng(0)
    kept = np.arange(NUM_CLASSES) if suite is None else np.array(subset(suite))
    assert len(kept) in (200, 1000) and (np.diff(kept) > 0).all()
    labels = rng.choice(kept, NUM_IMAGES).astype(np.int32)
    logits = rng.normal(0, 1.5, [NUM_IMAGES, NUM_CLASSES]).astype(np.float32)
    logits[np.arange(NUM_IMAGES), labels] += rng.normal(5, 2, NUM_IMAGES)
    if suite is not None:  # what is not among the 200 would win, if it were looked at
        logits[:, np.setdiff1d(np.arange(NUM_CLASSES), kept)] += 50

    predictions = score(
        tf.constant(logits), tf.constant(labels), None if suite is None else tuple(map(int, kept))
    )
    of_each = (
        predictions.classes.numpy(),
        predictions.probabilities.numpy(),
        predictions.losses.numpy(),
    )
    found = ImagePredictions(np.arange(NUM_IMAGES).astype(str), labels, *of_each)

    of_kept, columns = logits[:, kept].astype(np.float64), np.searchsorted(kept, labels)
    probabilities = softmax(of_kept, axis=1)
    found_score, everything = found.score(), range(len(kept))
    assert found_score.top1 == pytest.approx(
        top_k_accuracy_score(columns, of_kept, k=1, labels=everything)
    )
    assert found_score.top5 == pytest.approx(
        top_k_accuracy_score(columns, of_kept, k=5, labels=everything)
    )
    assert found_score.loss == pytest.approx(
        log_loss(columns, probabilities, labels=everything), rel=1e-5
    )
    confidences, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == columns
    accuracies, means = calibration_curve(is_right, confidences, n_bins=15, strategy="uniform")
    counts = np.histogram(confidences, 15, (0, 1))[0]
    expected = np.sum(counts[counts > 0] * np.abs(accuracies - means)) / NUM_IMAGES
    assert found.calibration().expected_calibration_error == pytest.approx(expected, abs=1e-5)
    assert 0.3 < found_score.top1 < 0.9 and expected > 0.05
