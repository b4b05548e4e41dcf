"""Scores a network class by class: precision, recall, F1, and confusions.

class_section("advprop", predictions, ["cat", "dog"], "per_class_advprop")   # a `Section`
"""

from typing import Sequence

import numpy as np

from efficientnet_advprop.evaluation.results import ImagePredictions
from efficientnet_advprop.reports import charts
from efficientnet_advprop.reports.pages import Card, Section
from efficientnet_advprop.reports.table import Cell, Table, percent

_NUM_PAIRS = 20
_MAX_DRAWN = 30  # classes of a confusion matrix; of more, the most confused pairs are listed


def class_section(
    title: str, predictions: ImagePredictions, names: Sequence[str], table_name: str
) -> Section:
    """Returns the section of a page with the scores of each class and its confusions.

    Args:
        title: what was measured.
        predictions: of images that may have any label.
        names: of the classes by label.
        table_name: of the table of scores, as `Table.name`.
    """
    tables, cards = [class_scores(predictions, names, name=table_name)], []
    if len(names) <= _MAX_DRAWN:
        matrix = charts.matrix_chart(confusion_matrix(predictions, len(names)), names)
        cards.append(Card("Rows: the class; columns: what it was taken for", svg=matrix))
    else:
        tables.append(confused_pairs(predictions, names))
    return Section(f"{title}: class by class", "Per cent.", cards=cards, grid="one", tables=tables)


def confusion_matrix(predictions: ImagePredictions, num_classes: int) -> np.ndarray:
    """Returns int64 [num_classes, num_classes]: how many images of the row's class were taken
    for the column's; undefined predictions are in no column.
    """
    labels, classes = predictions.labels, predictions.classes[:, 0]
    is_defined = (classes >= 0) & (classes < num_classes)
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels[is_defined], classes[is_defined]), 1)
    return counts


def class_scores(
    predictions: ImagePredictions, names: Sequence[str], *, name: str = "per_class"
) -> Table:
    """Returns precision, recall and F1 in per cent, and support, of each class.

    Precision is empty where a class was never predicted, recall and F1 where it has no
    images.
    """
    counts = confusion_matrix(predictions, len(names))
    support = np.bincount(predictions.labels, minlength=len(names))
    hits, predicted = np.diag(counts), counts.sum(axis=0)

    def share(part: int, whole: int) -> Cell:
        return percent(part / whole) if whole else Cell()

    rows = [
        [
            class_name,
            share(hits[label], predicted[label]),
            share(hits[label], support[label]),
            # 2PR / (P + R), written so that it is 0 where nothing was hit.
            share(2 * hits[label], predicted[label] + support[label]) if support[label] else Cell(),
            int(support[label]),
        ]
        for label, class_name in enumerate(names)
    ]
    return Table(["class", "precision", "recall", "F1", "support"], rows, name)


def confused_pairs(predictions: ImagePredictions, names: Sequence[str]) -> Table:
    """Returns the pairs of classes that are most often confused, with their counts."""
    counts = confusion_matrix(predictions, len(names))
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_NUM_PAIRS]
    rows = [
        [names[label], names[taken], int(counts[label, taken])]
        for label, taken in zip(*np.unravel_index(order, counts.shape))
        if counts[label, taken]
    ]
    return Table(["class", "taken for", "images"], rows)
