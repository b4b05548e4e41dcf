"""Reports as files, and `evaluate --compare` as a user calls it."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.images.class_numbers import imagenet_ids
from efficientnet_advprop.reports import report_files
from efficientnet_advprop.runtime.errors import UsageError
from tests.efficientnet_advprop.evaluation.constructed_results import image_ids, write_results

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    names = [str(tmp_path_factory.mktemp(name)) for name in ("a", "b")]
    for seed, name in enumerate(names):
        write_results(name, f"model {seed}", {"imagenet": 0.6 + 0.1 * seed}, seed=seed)
    return names


def test_report_of_one_model_lies_beside_its_results(folders):
    text = report_files.write_report(folders[:1])
    assert "ImageNet  top-1" in text and text.endswith(
        "and the same as report.md, report.tex and CSV."
    )
    assert sorted(os.listdir(folders[0])) == [
        "predictions",
        "report.html",
        "report.md",
        "report.tex",
        "results.csv",
        "results.json",
    ]


def test_each_class_is_shown_where_it_is_asked_for(folders, tmp_path):
    """The mean of the recalls, weighted by the classes' images, is the accuracy."""
    report_files.write_report(folders, str(tmp_path), per_class=True)
    for number, folder in enumerate(folders):
        with open(tmp_path / f"per_class_model-{number}_imagenet.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["recall"]]
        weights = [int(row["support"]) for row in rows]
        recalls = [float(row["recall"]) for row in rows]
        score = Results.read(folder).test_sets["imagenet"].score
        assert sum(weights) == score.num_images
        np.testing.assert_allclose(np.average(recalls, weights=weights), 100 * score.top1)


def test_compare_from_the_command_line(folders, tmp_path):
    command = [
        sys.executable,
        "-m",
        "efficientnet_advprop.evaluate",
        f"--out_dir={tmp_path}/new/folder",
        "--compare",
    ]
    done = subprocess.run(
        [*command, *folders], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        "model 1 is" in done.stdout
        and "<h2>Side by side</h2>" in (tmp_path / "new/folder/report.html").read_text()
    )
    assert (tmp_path / "new/folder/report.md").read_text().startswith("# model 0 and model 1\n")


def test_thumbnails_come_from_the_data(folders, tmp_path):
    # The constructed ids with ImageNet's class folders in place of numbers.
    classes = imagenet_ids()
    for image_id in image_ids(120):
        folder = tmp_path / "imagenet" / "val" / classes[int(image_id[1:9])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (9, 99, 9)).save(folder / image_id.split("/")[1], "JPEG")
    images = report_files.images_below(str(tmp_path))("imagenet")
    assert images.num_images == 120 and images.image_id(0).startswith(classes[0])
    assert report_files.images_below(str(tmp_path))("imagenet_a") is None
    assert report_files.images_below(str(tmp_path))("folder:pets") is None
    assert report_files.images_below(None)("imagenet") is None


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        report_files.write_report([str(tmp_path)])
    assert not os.listdir(tmp_path)
