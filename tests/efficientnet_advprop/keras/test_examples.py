"""The examples for Keras models run as they stand, and find what they promise."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def run(tmp_path, *command):
    environment = dict(os.environ)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=tmp_path,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@pytest.mark.slow
def test_mobilenet(tmp_path):
    output = run(tmp_path, EXAMPLES / "keras_mobilenet.py", 3)
    accuracy = float(re.findall(r"val_accuracy: ([0-9.]+)", output)[-1])
    assert accuracy > 0.7  # 0.1 where the running statistics lag behind
    assert "adversarial_accuracy" in output and (tmp_path / "mobilenet_advprop.keras").exists()


@pytest.mark.slow
def test_fine_tuning(tmp_path):
    output = run(tmp_path, EXAMPLES / "keras_fine_tuning.py", "none", 1)
    assert "frozen" in output and "val_accuracy" in output


@pytest.mark.slow
def test_segmentation_finds_the_digits(tmp_path):
    output = run(tmp_path, EXAMPLES / "keras_segmentation.py", 2)
    accuracy = float(output.rsplit(",", 1)[1].strip(" ]\n"))
    assert accuracy > 0.9  # of the pixels; all of them "nothing" would be 0.7
