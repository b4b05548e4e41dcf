"""Class by class, against scikit-learn's own numbers."""

import numpy as np
from sklearn import metrics

from efficientnet_advprop.evaluation.evaluator import NO_CLASS
from efficientnet_advprop.evaluation.results import ImagePredictions
from efficientnet_advprop.reports import report_files


def predictions(labels, classes):
    num = len(labels)
    return ImagePredictions(
        np.array([f"{number}.png" for number in range(num)]),
        np.array(labels, np.int32),
        np.array(classes, np.int32)[:, None],
        np.full((num, 1), 0.5, np.float32),
        np.ones(num, np.float32),
    )


def test_scores_are_scikit_learns():
    generator = np.random.default_rng(0)
    labels, classes = generator.integers(0, 5, (2, 200))
    found = predictions(labels, classes)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(labels, classes)
    rows = report_files.class_scores(found, list("abcde")).rows
    for column, expected in ((1, precision), (2, recall), (3, f1)):
        np.testing.assert_allclose([row[column].value for row in rows], 100 * expected)
    assert [int(row[4].text) for row in rows] == support.tolist()
    np.testing.assert_array_equal(
        report_files.confusion_matrix(found, 5), metrics.confusion_matrix(labels, classes)
    )


def test_classes_without_images_or_answers_are_empty_and_undefined_ones_wrong():
    found = predictions([0, 0, 1, 1], [0, NO_CLASS, 0, 0])
    rows = report_files.class_scores(found, ["a", "b", "c"]).rows
    assert [row[1].text for row in rows] == ["33.3", "", ""]
    assert [row[2].text for row in rows] == ["50.0", "0.0", ""]
    pairs = report_files.confused_pairs(found, ["a", "b", "c"]).rows
    assert [[cell.text for cell in row] for row in pairs] == [["b", "a", "2"]]
