"""The report says what the results hold, needs no other file, and claims no difference
that the tests do not allow.
"""

import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.evaluation.image_predictions import ImagePredictions
from efficientnet_advprop.evaluation.results import predictions_path
from efficientnet_advprop.images.labeled_images import FileImages
from efficientnet_advprop.reports import charts, evaluation_report
from efficientnet_advprop.reports.comparison import compare, read_measured
from efficientnet_advprop.reports.disagreements import find_disagreements
from tests.efficientnet_advprop.evaluation.constructed_results import image_ids, write_results

NAMES = ("b0-autoaugment", "b0-advprop")
ATTACK = dict(
    epsilon=4.0, step_size=1.0, num_steps=10, targeted=False, random_start=1.0, num_restarts=2
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folders = [str(tmp_path_factory.mktemp(name)) for name in NAMES]
    conditions = {"pgd/4": {"attack": ATTACK}, "imagenet": {"num_sampled": 120}}
    for seed, (folder, name, gain) in enumerate(zip(folders, NAMES, (0.0, 0.2))):
        accuracies = {"imagenet": 0.7, "imagenet_c": 0.6 + gain, "pgd/4": 0.1}
        write_results(
            folder, name, accuracies, seed=seed, config={"published": name}, conditions=conditions
        )
    return evaluation_report.Report("A title <&>", compare(read_measured(folders)))


@pytest.fixture(scope="module")
def page(report):
    return evaluation_report.render_html(report)


class _Page(html.parser.HTMLParser):
    """What a reader sees, and where a browser would look."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.tags, self.text = [], [], ""
        self.feed(page)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.targets += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "srcset") and value
        ]
        assert tag != "img" or dict(attributes).get("alt"), "an image without a description"

    def handle_data(self, data):
        self.text += data


def test_page_needs_nothing_beside_itself(page):
    parsed = _Page(page)
    assert all(target.startswith(("data:", "#")) for target in parsed.targets)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert "@import" not in page and "url(http" not in page


def test_page_says_what_was_measured(report, page):
    text = _Page(page).text
    score = report.comparison.first.results.test_sets["imagenet"].score
    assert "A title <&>" in text
    assert (
        f"{100 * score.top1:.1f} ({100 * score.interval()[0]:.1f}–{100 * score.interval()[1]:.1f})"
        in text
    )
    assert "published 77.1, not measured alike" in text and "only 120 images, evenly spaced" in text
    mce = report.rows["imagenet_c", "mCE"]["b0-advprop"]
    assert f"published 66.2, {100 * mce.value - 66.2:+.1f}".replace("-", "−") in text
    assert (
        "224 px, whole images" in text
        and "untargeted PGD of 10 steps of 1, ε 4, 2 restarts; main batch norms" in text
    )
    assert "The yardstick of ImageNet-C’s mCE (= 100) is AlexNet." in text
    # bars, severities, 15 corruptions; attack; calibration of imagenet and imagenet_c
    assert page.count("<svg") == 2 + 15 + 1 + 2


def test_page_claims_what_the_tests_allow(report, page):
    verdicts = {test.suite: test.verdict for test in report.comparison.tests}
    assert verdicts == {"imagenet": "level", "imagenet_c": "better", "pgd/4": "level"}
    assert page.count('class="verdict">better<') == 1 and page.count('class="verdict">level<') == 2
    sentence = evaluation_report.describe_tests(report.comparison, "imagenet_c")
    assert sentence.startswith("ImageNet-C, mCE: b0-advprop is better than b0-autoaugment (−")
    assert "b0-advprop is level with b0-autoaugment" in evaluation_report.describe_tests(
        report.comparison, "imagenet"
    )
    assert evaluation_report.describe_tests(report.comparison, "imagenet_a") == ""


def test_markdown_has_the_same_figures(report):
    text = evaluation_report.render_markdown(report)
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    assert len({len(row) for row in rows if row[0] == "ImageNet-C"}) == 2  # measured; side by side
    mce = report.rows["imagenet_c", "mCE"]["b0-advprop"]
    (row,) = (row for row in rows if row[:3] == ["ImageNet-C", "b0-advprop", "mCE"])
    assert (
        row[3].startswith(evaluation_report.percent(mce.value))
        and row[4].startswith("66.2")
        and row[9] == "224 px, whole images"
    )
    (row,) = (row for row in rows if row[:3] == ["ImageNet", "b0-advprop", "top-1"])
    assert row[5] == "" and row[10].rstrip(" |") == "**only 120 images, evenly spaced**"
    assert sum(row[0] == "jpeg compression" for row in rows) == 2


def test_console_table(report):
    lines = evaluation_report.format_table(report).splitlines()
    assert lines[0].split() == ["per", "cent", *NAMES, "fed"]
    assert lines[2].startswith("ImageNet, top-1") and lines[2].endswith("*  224 px, crop released")
    assert "* ImageNet: only 120 images, evenly spaced" in lines


def test_console_table_of_one_model_has_the_published_figures(report):
    alone = evaluation_report.Report("b0-advprop", compare([report.comparison.measured[1]]))
    mce = report.rows["imagenet_c", "mCE"]["b0-advprop"]
    (line,) = (
        line
        for line in evaluation_report.format_table(alone).splitlines()
        if line.startswith("ImageNet-C, mCE")
    )
    assert re.split(" {2,}", line)[2:] == [
        "66.2",
        evaluation_report.points(100 * mce.value - 66.2),
        "9,000",
        "224 px, whole images",
    ]


def test_page_of_one_model(report, tmp_path):
    write_results(str(tmp_path), "alone", {"imagenet_sketch": 0.5}, problems=["lacks 889 images"])
    text = _Page(
        evaluation_report.render_html(
            evaluation_report.Report("One", compare(read_measured([str(tmp_path)])))
        )
    ).text
    assert "ImageNet-Sketch, top-1" in text and "lacks 889 images" in text
    assert "Side by side" not in text and "disagree" not in text and "Under attack" not in text


def write_images(folder):
    paths = []
    for number, image_id in enumerate(image_ids(120)[:-1]):  # one is missing
        path = folder / image_id
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (320, 200), (number, 0, 0)).save(path)
        paths.append(str(path))
    (folder / image_ids(120)[0]).write_bytes(b"no image")
    return FileImages(paths, [0] * len(paths), str(folder))


def test_disagreements_are_the_surest_errors(report, tmp_path):
    images = write_images(tmp_path)
    first, second = report.comparison.measured
    found = find_disagreements(first, second, "imagenet", lambda test_set: images, num_each=500)
    mine, theirs = (
        ImagePredictions.read(predictions_path(one.directory, "imagenet"))
        for one in (first, second)
    )
    assert {one.image_id for one in found} == set(mine.image_ids[mine.is_top1 != theirs.is_top1])
    of_second = [one for one in found if one.right == second.name]
    assert [one.answers[second.name][0] for one in of_second] == [one.label for one in of_second]
    confidences = [one.answers[first.name][1] for one in of_second]
    assert confidences == sorted(confidences, reverse=True) and len(set(confidences)) > 5
    broken = {image_ids(120)[0], image_ids(120)[-1]}
    assert all((one.thumbnail is None) == (one.image_id in broken) for one in found)
    assert all(
        one.thumbnail is None
        for one in find_disagreements(first, second, "imagenet", lambda test_set: None)
    )
    assert find_disagreements(first, second, "imagenet_a", lambda test_set: None) == []


def test_charts_are_the_same_bytes_each_time_and_well_formed():
    curves = [charts.Curve("A & B", "#123456", [0.5, 0.75], [(0.4, 0.6), (0.7, 0.8)], x=[0.3, 0.9])]
    for draw in (
        lambda: charts.line_chart([1, 2], curves, y_label="top-1"),
        lambda: charts.bar_chart(["fog", "snow"], curves, x_label="CE", mark=1.0),
        lambda: charts.reliability_chart(curves),
    ):
        first, second = draw(), draw()
        assert first == second
        assert ElementTree.fromstring(first).tag.endswith("svg") and "A &amp; B" in first


def test_thumbnails_are_small():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, [400, 300, 3], np.uint8)).save(
        buffer, "PNG"
    )
    assert (
        charts.thumbnail_uri(buffer.getvalue()).startswith("data:image/jpeg")
        and len(charts.thumbnail_uri(buffer.getvalue())) < 40000
    )
    assert charts.thumbnail_uri(b"no image") is None


@pytest.mark.parametrize(
    "value, text", [(-1.23, "−1.2"), (0.04, "±0.0"), (-0.04, "±0.0"), (2.0, "+2.0")]
)
def test_points(value, text):
    assert evaluation_report.points(value) == text


@pytest.mark.parametrize("value, text", [(0.5, "0.500"), (0.0012, "0.0012"), (1e-9, "< 0.0001")])
def test_probability(value, text):
    assert evaluation_report.probability(value) == text
