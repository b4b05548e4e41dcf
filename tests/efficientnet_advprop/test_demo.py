"""The demo as a newcomer runs it, cut to one epoch; and again, when nothing is left to
do but the report.
"""

import os
import subprocess
import sys

import pytest

from efficientnet_advprop.evaluation.results import Results

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run_demo(output_dir, *overrides):
    command = [
        sys.executable,
        "-m",
        "efficientnet_advprop.demo",
        "--config=configs/digits.py",
        f"--output_dir={output_dir}",
    ]
    return subprocess.run(
        [*command, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )


def test_other_data_are_refused(tmp_path):
    result = run_demo(tmp_path, "--config.data.source=tfrecord")
    assert result.returncode == 2
    assert (
        "`config.data.source` is 'tfrecord'" in result.stderr and "Traceback" not in result.stderr
    )


@pytest.mark.slow
def test_demo_from_nothing_and_again(tmp_path):
    short = [
        f"--config.{field}" for field in ("training.num_epochs=1", "optimizer.warmup_epochs=0")
    ]
    first = run_demo(tmp_path, *short)
    assert first.returncode == 0, first.stderr
    assert "Digits, corrupted, mCE" in first.stdout
    assert first.stdout.strip().endswith(str(tmp_path / "report.html"))
    folders = sorted((tmp_path / "evaluation").iterdir())
    assert [folder.name.split("-")[0] for folder in folders] == [
        "adversarial",
        "advprop",
        "vanilla",
    ]
    for folder in folders:
        test_sets = Results.read(str(folder)).test_sets
        assert len(test_sets) == 1 + 3 + 15 * 5
        assert all(result.score.num_images == 1000 for result in test_sets.values())
    page = (tmp_path / "report.html").read_text()

    again = run_demo(tmp_path, *short)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("79 of 79 test sets were measured before") == 3
    assert (tmp_path / "report.html").read_text() == page
