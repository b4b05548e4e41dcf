"""Writes the report of one or several evaluations into a folder, from the results alone."""

import dataclasses
import os
import re
from typing import Optional, Sequence

from efficientnet_advprop.data import builtin_datasets
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings
from efficientnet_advprop.evaluation.test_set_name import parse_name
from efficientnet_advprop.images.class_numbers import imagenet_ids
from efficientnet_advprop.reports import class_report, evaluation_report, pages
from efficientnet_advprop.reports.comparison import Comparison, compare, read_measured
from efficientnet_advprop.reports.evaluation_report import OpenImages
from efficientnet_advprop.runtime.errors import UserError

DEFAULT_COMPARISON = os.path.join("runs", "comparison")


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
            sections.append(class_report.class_section(title, predictions, own, file))
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
