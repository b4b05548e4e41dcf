"""Writes the report of one or several evaluations into a folder, from the results alone."""

import dataclasses
import os
import re
from typing import Optional, Sequence

import numpy as np

from efficientnet_advprop.data import builtin_datasets
from efficientnet_advprop.evaluation.results import ImagePredictions
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings
from efficientnet_advprop.evaluation.test_set_name import parse_name
from efficientnet_advprop.images.class_numbers import imagenet_ids
from efficientnet_advprop.reports import charts, evaluation_report, pages
from efficientnet_advprop.reports.comparison import Comparison, compare, read_measured
from efficientnet_advprop.reports.evaluation_report import OpenImages
from efficientnet_advprop.reports.table import Cell, Table, percent
from efficientnet_advprop.runtime.errors import UserError

DEFAULT_COMPARISON = os.path.join("runs", "comparison")
_NUM_PAIRS = 20  # of confused classes, listed
_MAX_DRAWN = 30  # classes of a confusion matrix; of more, the most confused pairs are listed


def write_report(
    paths: Sequence[str],
    out_dir: Optional[str] = None,
    *,
    data_dir: Optional[str] = None,
    per_class: bool = False,
) -> str:
    """Reads results and writes their page and its tables.

    Args:
        paths: folders of results, or results.json files; several models are compared.
        out_dir: None: the folder of the results of one model, or runs/comparison.
        data_dir: of the data sets, for thumbnails of images on which two models disagree.

    Returns:
        The main table, the tests and the path of the report, for a console.

    Raises:
        UsageError: results cannot be read, are given twice, or are missing.
    """
    comparison = compare(read_measured(paths))
    if out_dir is None:
        out_dir = comparison.first.directory if len(paths) == 1 else DEFAULT_COMPARISON
    page = evaluation_report.make_page(
        " and ".join(measured.name for measured in comparison.measured),
        comparison,
        class_names=_class_names(comparison),
        open_images=images_below(data_dir),
    )
    if per_class:
        sections = _class_sections(comparison, _class_names(comparison))
        page = dataclasses.replace(page, sections=[*page.sections, *sections])
    path = pages.write(page, out_dir)
    files = f"{pages.MARKDOWN_FILE}, {pages.LATEX_FILE} and CSV"
    return (
        f"\n{evaluation_report.format_console(comparison)}\n"
        f"The report: {path}, and the same as {files}."
    )


def _class_sections(comparison: Comparison, names: Sequence[str]) -> list[pages.Section]:
    """Returns precision, recall and F1 of each class, for the test sets whose images are whole:
    neither corrupted nor attacked, nor of a few classes or categories.
    """
    sections = []
    for measured in comparison.measured:
        for test_set, result in measured.results.test_sets.items():
            conditions = result.conditions
            predictions = measured.predictions(test_set)
            is_plain = (
                parse_name(test_set).corruption is None
                and conditions.attack is None
                and conditions.num_categories is None
                and conditions.class_subset_size is None
            )
            if predictions is None or not is_plain:
                continue
            num_classes = max(len(names), int(predictions.labels.max()) + 1)
            own = names if len(names) == num_classes else list(map(str, range(num_classes)))
            title = f"{measured.name}, {test_set}"
            file = re.sub(r"[^\w.-]+", "-", f"per_class_{measured.name}_{test_set}")
            sections.append(class_section(title, predictions, own, file))
    return sections


def _class_names(comparison: Comparison) -> Sequence[str]:
    # ImageNet's ids, otherwise the names in the first model's config.
    names = [name for measured in comparison.measured for name in measured.results.test_sets]
    if any(name.startswith("imagenet") for name in names):
        return imagenet_ids()
    return comparison.first.results.config.get("class_names") or ()


def images_below(data_dir: Optional[str]) -> OpenImages:
    """Returns what opens the images of a test set below `data_dir`; None for others."""

    def open_images(test_set):
        builtin = builtin_datasets.of_suite(parse_name(test_set).suite)
        num_classes = builtin.num_classes if builtin else imagenet_suites.NUM_CLASSES
        settings = SuiteSettings(data_dir, num_classes, image_size=1, allow_incomplete=True)
        try:
            found = open_suites(["imagenet" if test_set.startswith("pgd/") else test_set], settings)
            return found[0].find_images()
        except (UserError, ValueError):
            return None

    return open_images if data_dir else lambda test_set: None


def class_section(
    title: str, predictions: ImagePredictions, names: Sequence[str], table_name: str
) -> pages.Section:
    """Returns the section of a page with the scores of each class and its confusions, for
    images that may have any label.
    """
    tables, cards = [class_scores(predictions, names, name=table_name)], []
    if len(names) <= _MAX_DRAWN:
        matrix = charts.matrix_chart(confusion_matrix(predictions, len(names)), names)
        cards.append(pages.Card("Rows: the class; columns: what it was taken for", svg=matrix))
    else:
        tables.append(confused_pairs(predictions, names))
    return pages.Section(
        f"{title}: class by class", "Per cent.", cards=cards, grid="one", tables=tables
    )


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
