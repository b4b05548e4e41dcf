"""The report says what the results hold, needs no other file, and claims no difference
that the tests do not allow.
"""

import csv
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.evaluation.results import ImagePredictions, predictions_path
from efficientnet_advprop.images.labeled_images import FileImages
from efficientnet_advprop.reports import charts, evaluation_report, pages
from efficientnet_advprop.reports.comparison import compare, read_measured
from efficientnet_advprop.reports.evaluation_report import find_disagreements, thumbnails
from efficientnet_advprop.reports.report_rows import list_measures
from efficientnet_advprop.reports.table import (
    Cell,
    Table,
    format_latex,
    format_text,
    points,
    probability,
)
from efficientnet_advprop.runtime.errors import RunError
from tests.efficientnet_advprop.evaluation.constructed_results import image_ids, write_results

NAMES = ("b0-autoaugment", "b0-advprop")
ATTACK = dict(
    epsilon=4.0, step_size=1.0, num_steps=10, targeted=False, random_start=1.0, num_restarts=2
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folders = [str(tmp_path_factory.mktemp(name)) for name in NAMES]
    conditions = {"pgd/4": {"attack": ATTACK}, "imagenet": {"num_sampled": 120}}
    for seed, (folder, name, gain) in enumerate(zip(folders, NAMES, (0.0, 0.2))):
        accuracies = {"imagenet": 0.7, "imagenet_c": 0.6 + gain, "pgd/4": 0.1}
        write_results(
            folder, name, accuracies, seed=seed, config={"published": name}, conditions=conditions
        )
    return compare(read_measured(folders))


@pytest.fixture(scope="module")
def made(comparison):
    return evaluation_report.make_page("A title <&>", comparison)


@pytest.fixture(scope="module")
def page(made):
    return pages.render_html(made)


def measure(comparison, model, suite, quantity):
    (measured,) = (one for one in comparison.measured if one.name == model)
    rows = list_measures(comparison, measured)
    return next(row for row in rows if (row.suite, row.quantity) == (suite, quantity))


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


def test_page_says_what_was_measured(comparison, page):
    text = _Page(page).text
    score = comparison.first.results.test_sets["imagenet"].score
    low, high = score.interval()
    assert "A title <&>" in text and "only 120 images, evenly spaced" in text
    assert f"{100 * score.top1:.1f} ({100 * low:.1f} … {100 * high:.1f})" in text
    assert "77.1 the official table of March 2020 (read)" in text and "not measured alike" in text
    mce = measure(comparison, "b0-advprop", "imagenet_c", "mCE").value
    assert "66.2 Xie et al., CVPR 2020 (recalled)" in text
    assert f"{100 * mce - 66.2:+.1f}".replace("-", "−") in text
    assert "224 px, whole images" in text
    assert "untargeted PGD of 10 steps of 1, ε 4, 2 restarts; main batch norms" in text
    assert "The yardstick of ImageNet-C’s mCE (= 100) is AlexNet." in text
    # bars, severities, 15 corruptions; attack; calibration of imagenet and imagenet_c
    assert page.count("<svg") == 2 + 15 + 1 + 2


def test_page_claims_what_the_tests_allow(comparison, page):
    verdicts = {test.suite: test.verdict for test in comparison.tests}
    assert verdicts == {"imagenet": "level", "imagenet_c": "better", "pgd/4": "level"}
    assert page.count('class="verdict better"') == 1 and page.count('class="verdict level"') == 2
    sentences = {test.suite: evaluation_report.describe_test(test) for test in comparison.tests}
    assert sentences["imagenet_c"].startswith(
        "ImageNet-C, mCE: b0-advprop is better than b0-autoaugment (−"
    )
    assert "b0-advprop is level with b0-autoaugment" in sentences["imagenet"]


def test_the_same_table_is_on_the_page_the_console_and_in_files(comparison, made, page, tmp_path):
    table = evaluation_report.results_table(comparison)
    assert len(table.rows) == 2 * 5  # ImageNet; mCE, relative mCE and mean error; PGD
    text = _Page(page).text
    console = format_text(table)
    pages.write(made, str(tmp_path))
    markdown = (tmp_path / "report.md").read_text()
    latex = (tmp_path / "report.tex").read_text()
    held = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    for row, of_file in zip(table.rows, held, strict=True):
        suite, quantity, model, measured = (cell.text for cell in row[:4])
        assert f"{model} {measured}" in text and measured in console
        assert f"| {suite} | {quantity} | {model} | {measured}" in markdown
        bold = f"\\textbf{{{measured}}}" if row[3].best else measured
        in_latex = " & ".join([suite, quantity, model, bold])
        for character, command in {"ε": r"$\varepsilon$", "…": r"\ldots{}"}.items():
            in_latex = in_latex.replace(character, command)
        assert in_latex in latex
        value, low = float(of_file["measured"]), of_file["measured, low"]
        assert f"{value:.1f}" == measured.split()[0]
        assert (f"({float(low):.1f}" if low else "") == "".join(measured.split()[1:2])
        assert (of_file["test set"], of_file["model"]) == (suite, model)
    assert "* ImageNet, top-1, b0-autoaugment and ImageNet, top-1, b0-advprop: only 120" in console
    assert held[0]["remarks"].startswith("only 120 images, evenly spaced; the official table")
    mce = measure(comparison, "b0-advprop", "imagenet_c", "mCE")
    (of_mce,) = (row for row in held if (row["measure"], row["model"]) == ("mCE", "b0-advprop"))
    assert float(of_mce["measured"]) == 100 * mce.value  # to the last digit
    assert float(of_mce["difference"]) == mce.difference
    verdicts = [row["second is"] for row in csv.DictReader((tmp_path / "comparison.csv").open())]
    assert verdicts == [test.verdict for test in comparison.tests]


def test_what_latex_would_take_for_commands_is_escaped():
    name = r"50% & a_b#1 {x} \ ~^ $ <ε −1 …"
    latex = format_latex(Table(["µ_%"], [[Cell(name, marks=["only 5 %"])]]))
    rest = re.sub(
        r"\\[&%$#_{}]|\\text\w+\{\}|\\ldots\{\}|\$\\?(?:-|varepsilon)\$", "", latex.splitlines()[4]
    )
    assert re.fullmatch(r"50  ab1 x     1 \$\^\{1\}\$ \\\\", rest), rest
    assert latex.count(r"\\") == 3 and r"only 5 \%" in latex


def test_the_best_of_several_models_is_bold_in_latex(comparison):
    rows = evaluation_report.results_table(comparison).rows
    best = {(row[1].text, row[2].text) for row in rows if row[3].best and "C" in row[0].text}
    assert best == {(quantity, NAMES[1]) for quantity in ("mCE", "relative mCE", "mean error")}
    assert format_latex(Table(["a"], [[Cell("1 %", best=True)]])).count(r"\textbf{1 \%} \\") == 1


def test_imagenet_c_by_kind_of_corruption(comparison, made):
    """Means over the kind's corruptions at all severities."""
    (table,) = (one for one in made.tables() if one.name == "imagenet_c_by_kind")
    results = comparison.first.results.test_sets
    names = [
        f"imagenet_c/{c}/{s}" for c in ("snow", "frost", "fog", "brightness") for s in range(1, 6)
    ]
    assert [cell.text for cell in table.rows[4][:2]] == ["weather", NAMES[0]]
    expected = np.mean([results[name].score.top1 for name in names])
    assert table.rows[4][2].value == pytest.approx(100 * expected)


def test_the_first_model_may_lack_the_clean_test_set(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder, clean in zip(folders, ({}, {"digits": 0.9})):
        folder.mkdir()
        write_results(str(folder), folder.name, {**clean, "digits_c": 0.8}, suites=("digits_c",))
    comparison = compare(read_measured([str(folder) for folder in folders]))
    quantities = [cells[1].text for cells in evaluation_report.results_table(comparison).rows]
    assert quantities == ["mCE", "mCE", "mean error", "mean error", "top-1"]


def test_page_of_one_model(tmp_path):
    write_results(str(tmp_path), "alone", {"imagenet_sketch": 0.5}, problems=["lacks 889 images"])
    alone = evaluation_report.make_page("One", compare(read_measured([str(tmp_path)])))
    text = _Page(pages.render_html(alone)).text
    assert "ImageNet-Sketch" in text and "lacks 889 images" in text
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


def test_disagreements_are_the_surest_errors(comparison, tmp_path):
    first, second = comparison.measured
    found = find_disagreements(first, second, "imagenet", num_each=500)
    mine, theirs = (
        ImagePredictions.read(predictions_path(one.directory, "imagenet"))
        for one in (first, second)
    )
    shown = {image_id for images in found.values() for image_id, *_ in images}
    assert shown == set(mine.image_ids[mine.is_top1 != theirs.is_top1])
    of_second = found[second.name]
    assert all(answers[second.name][0] == label for _, label, answers in of_second)
    confidences = [answers[first.name][1] for _, _, answers in of_second]
    assert confidences == sorted(confidences, reverse=True) and len(set(confidences)) > 5
    broken = {image_ids(120)[0], image_ids(120)[-1]}
    thumbnail = thumbnails(write_images(tmp_path))
    assert all((thumbnail(one) is None) == (one in broken) for one in image_ids(120))
    assert thumbnails(None)("a") is None
    assert find_disagreements(first, second, "imagenet_a", num_each=1) == {}


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
    assert points(value) == text


@pytest.mark.parametrize("value, text", [(0.5, "0.500"), (0.0012, "0.0012"), (1e-9, "< 0.0001")])
def test_probability(value, text):
    assert probability(value) == Cell(text, value)


@pytest.mark.parametrize("name", ["report.html", "report.tex"])
def test_a_file_of_somebody_else_is_never_replaced(tmp_path, name):
    page = pages.Page("T", [])
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=name):
        pages.write(page, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    for _ in range(2):  # the second time over its own
        assert pages.write(page, str(tmp_path)) == str(tmp_path / "report.html")
