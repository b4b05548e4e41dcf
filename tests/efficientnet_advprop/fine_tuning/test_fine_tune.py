"""The program on a dozen drawn photographs, as its users start it."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.command_line import recipes
from efficientnet_advprop.data import records
from tests.conftest import run_program

SHORT = (
    "--checkpoint=none",
    "--config.data.image_size=32",
    "--config.training.num_epochs=24",
    "--config.training.checkpoint_every_steps=5",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("Meine Fotos")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("Äpfel rot", "blaue Kreise", "grün")):
        (root / name).mkdir()
        for number in range(8):
            pixels = generator.integers(0, 128, (6, 8, 3), np.uint8)
            pixels[..., label] += 120
            image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
            image.save(root / name / f"bild {number}.jpg")
    (root / "grün" / "kaputt.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    return root


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(folder, tmp_path):
    # Replicas, which must be made before the guess of the time computes anything.
    places = ["--model_dir=läufe", "--strategy=mirrored", "--num_logical_devices=2"]
    done = run_program("fine_tune", folder.name, *places, "--dry_run", *SHORT, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) <= 13 and not os.path.exists(folder.parent / "läufe")
    for words in ("3 classes", "from scratch", "32 px", "min of training", "kaputt.jpg"):
        assert words in done.stdout


@pytest.mark.parametrize(
    "arguments, word",
    [
        ((), "Photos"),
        (("a", "b"), "Photos"),
        (("nowhere", "--model_dir=x"), "nowhere"),
        (("nowhere",), "--model_dir"),
        (("nowhere", "--model_dir=x", "--methods=vanilla,best"), "best"),
        (("nowhere", "--model_dir=./nowhere/x"), "--model_dir"),
        (("nowhere", "--model_dir=x", "--config=digits"), "--config"),
        (("nowhere", "--model_dir=x", "--checkpoint=none", "--no_scratch"), "--no_scratch"),
    ],
)
def test_wrong_arguments_are_named(arguments, word, tmp_path):
    done = run_program("fine_tune", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr


def test_a_folder_becomes_a_network_and_a_page(folder, tmp_path):
    done = run_program(
        "fine_tune",
        folder.name,
        f"--model_dir={tmp_path / 'mein Netz'}",
        "--methods=advprop",
        "--corrupted_images=0",
        *SHORT,
        "--config.training.num_epochs=2",
        "--config.model.depth_coefficient=0.1",  # the fewest blocks to trace
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "kaputt.jpg" in done.stdout and f"'{tmp_path}/mein Netz'/advprop" in done.stdout
    report = json.loads((tmp_path / "mein Netz/report.json").read_text())
    assert report["classes"] == ["blaue Kreise", "grün", "Äpfel rot"]
    results = report["results"]["advprop"]["test_sets"]
    assert set(results) == {"photos-test", "photos-test_pgd/4"}
    num_test = results["photos-test"]["score"]["num_images"]
    scores = report["tables"]["per_class_advprop"]
    assert sum(row["support"] for row in scores) == num_test > 0
    num_right = sum(row["support"] * row["recall"] / 100 for row in scores)
    assert num_right == pytest.approx(results["photos-test"]["score"]["num_top1"])
    assert f"fine_tune '{folder.name}'" in report["facts"]["command"]
    assert "parameters" in report["facts"]["network"]
    page = (tmp_path / "mein Netz/report.html").read_text()
    for words in ("Äpfel rot", "class by class", "least certain", "gradient", "How the training"):
        assert words in page
    assert len(records.find_prefixes(str(tmp_path / "mein Netz/records"))) == 3


def start(folder, model_dir):
    command = [sys.executable, "-m", "efficientnet_advprop.fine_tune", str(folder)]
    return subprocess.Popen(
        [*command, f"--model_dir={model_dir}", *SHORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def digests(model_dir):
    found = {}
    for method in ("vanilla", "advprop"):
        results = json.loads((model_dir / f"evaluation/{method}/results.json").read_text())
        found[method] = results["weights_digest"]
    return found


@pytest.mark.slow
def test_stopped_at_any_moment_it_ends_with_the_same_bits_and_a_page(folder, tmp_path):
    whole = start(folder, tmp_path / "whole")
    told = whole.communicate()[0]
    assert whole.returncode == 0, told
    draw = random.Random(0)
    stopped = 0
    while True:
        process = start(folder, tmp_path / "stopped")
        if stopped < 10:
            time.sleep(draw.uniform(1.0, 25.0))
            process.send_signal(draw.choice([signal.SIGINT, signal.SIGTERM]))
            stopped += 1
        told = process.communicate()[0]
        assert "Traceback" not in told, told
        if "The report:" in told:
            break
        assert process.returncode in (0, 130), told
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    report = json.loads((tmp_path / "whole/report.json").read_text())
    assert len(report["tables"]["per_class_advprop"]) == 3
    assert {"photos-test", "photos-test_pgd/4"} < set(report["results"]["vanilla"]["test_sets"])
    page = (tmp_path / "whole/report.html").read_text()
    assert "Äpfel rot" in page and "What was done" in page
    for method in ("vanilla", "advprop"):  # each trains alone by the config that is written
        config = recipes.load(str(tmp_path / f"whole/configs/{method}.py"))
        saved = json.loads((tmp_path / f"whole/{method}/config.json").read_text())
        assert config.training.method == method
        assert config.data.image_size == saved["data"]["image_size"] == 32
