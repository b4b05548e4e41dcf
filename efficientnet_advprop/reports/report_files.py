"""The report of one evaluation, or of several side by side, as files: report.html and report.md.

    print(write_report(["runs/evaluation/b3-advprop"]))           # beside its results.json
    print(write_report(["runs/evaluation/a", "runs/evaluation/b"], "runs/comparison", data_dir="/data"))

It needs the results alone, neither the models nor, but for thumbnails, the data.
"""

import os
from typing import Optional, Sequence

from efficientnet_advprop.data import digits
from efficientnet_advprop.data.class_numbers import imagenet_ids
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteError, SuiteSettings
from efficientnet_advprop.files import write_atomically
from efficientnet_advprop.reports import evaluation_report
from efficientnet_advprop.reports.comparison import Comparison, compare, read_measured
from efficientnet_advprop.reports.disagreements import OpenImages
from efficientnet_advprop.reports.evaluation_report import Report

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
DEFAULT_COMPARISON = os.path.join("runs", "comparison")


def write_report(
    paths: Sequence[str], out_dir: Optional[str] = None, *, data_dir: Optional[str] = None
) -> str:
    """Reads results and writes their report in both forms.

    Args:
        paths: folders of results, or results.json; two or more models are compared.
        out_dir: where to; None: beside the results of one model, or runs/comparison.
        data_dir: of the data sets, for thumbnails of images on which two models disagree; None: without thumbnails.

    Returns:
        The main table, what the comparison says and where the report lies, for a console.

    Raises:
        ComparisonError: results that cannot be read, given twice, or none.
    """
    comparison = compare(read_measured(paths))
    if out_dir is None:
        out_dir = comparison.first.directory if len(paths) == 1 else DEFAULT_COMPARISON
    report = Report(
        title=" and ".join(measured.name for measured in comparison.measured),
        comparison=comparison,
        class_names=_class_names(comparison),
        open_images=images_below(data_dir),
    )
    os.makedirs(out_dir, exist_ok=True)
    write_atomically(
        os.path.join(out_dir, HTML_FILE), evaluation_report.render_html(report).encode()
    )
    write_atomically(
        os.path.join(out_dir, MARKDOWN_FILE), evaluation_report.render_markdown(report).encode()
    )
    suites = dict.fromkeys(test.suite for test in comparison.tests)
    told = [evaluation_report.describe_tests(comparison, suite) for suite in suites]
    told += [
        f"Not compared, {evaluation_report.describe_refusal(refusal)}."
        for refusal in comparison.refusals
    ]
    where = f"The report: {os.path.abspath(os.path.join(out_dir, HTML_FILE))}, and the same as {MARKDOWN_FILE}."
    return "\n".join(["", evaluation_report.format_table(report), "", *told, where])


def _class_names(comparison: Comparison) -> Sequence[str]:
    """By label: ImageNet's ids, else the names that the first model knows; empty if there are none."""
    if _is_of_imagenet(comparison):
        return imagenet_ids()
    return comparison.first.results.config.get("class_names") or ()


def _is_of_imagenet(comparison: Comparison) -> bool:
    return any(
        name.startswith("imagenet")
        for measured in comparison.measured
        for name in measured.results.test_sets
    )


def images_below(data_dir: Optional[str]) -> OpenImages:
    """Finds the images of a suite's test set below `data_dir`; None for a folder of one's own, and for what is not there."""

    def open_images(test_set):
        num_classes = (
            digits.NUM_CLASSES if test_set.startswith("digits") else imagenet_suites.NUM_CLASSES
        )
        settings = SuiteSettings(data_dir, num_classes, image_size=1, allow_incomplete=True)
        try:
            found = open_suites(["imagenet" if test_set.startswith("pgd/") else test_set], settings)
            return found[0].find_images()
        except (SuiteError, DataError, ValueError):
            return None

    return open_images if data_dir else lambda test_set: None
