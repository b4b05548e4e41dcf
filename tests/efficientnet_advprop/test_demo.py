"""The demo as a newcomer runs it, cut to one epoch; and again, when nothing is left to
do but the report.
"""

import os
import re

import numpy as np
import pytest

from efficientnet_advprop.evaluation.results import Results
from tests.conftest import run_program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run_demo(output_dir, *overrides):
    places = ["--config=configs/demo.py", f"--output_dir={output_dir}"]
    return run_program("demo", *places, *overrides, cwd=ROOT)


def test_other_data_are_refused(tmp_path):
    result = run_demo(tmp_path, "--config.data.source=tfrecord")
    assert result.returncode == 2
    assert "`config.data.source` is 'tfrecord'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_process_takes_several_runs(tmp_path):
    """As `execute_all` starts it; of two names the wrong one is told."""
    result = run_demo(tmp_path, "--run=advprop/seed_91,best/seed_1")
    assert result.returncode == 2
    assert "`--run` is 'best/seed_1'" in result.stderr


@pytest.mark.slow
def test_demo_from_nothing_and_again(tmp_path):
    short = [
        *(f"--config.{field}" for field in ("training.num_epochs=1", "optimizer.warmup_epochs=0")),
        "--autoattack_images=2",
    ]
    first = run_demo(tmp_path, *short)
    assert first.returncode == 0, first.stderr
    assert "9/9" in first.stdout
    assert first.stdout.strip().endswith(str(tmp_path / "report.html"))
    accuracies = {}
    for folder in sorted((tmp_path / "runs").glob("*/*")):
        results = Results.read(str(folder / "evaluation"))
        # The first seed's with AutoAttack's four attacks.
        assert len(results.test_sets) == 1 + 15 + 4 * (folder.name == "seed_91")
        assert results.test_sets["digits"].score.num_images == 1000
        accuracies.setdefault(folder.parent.name, []).append(
            (results.test_sets["digits"].score.top1, results.mean_corrupted_accuracy("digits_c"))
        )
    assert {method: len(of_seeds) for method, of_seeds in accuracies.items()} == {
        "adversarial": 3,
        "advprop": 3,
        "vanilla": 3,
    }

    # The sentence, counted once more from the results.
    advprop, vanilla, same = (
        np.array(accuracies[method]) for method in ("advprop", "vanilla", "adversarial")
    )
    wanted = [*(advprop - vanilla).T, *(advprop - same).T]
    (sentence,) = (line for line in first.stdout.splitlines() if line.startswith("AdvProp is"))
    assert "under AutoAttack with" in sentence and "of 1 (" in sentence
    found = re.findall(r"with (\d) of 3 (?:seeds )?\(([+−])([\d.]+)", sentence)
    assert [int(count) for count, *_ in found] == [sum(gain > 0) for gain in wanted]
    points = [float(number) * (-1 if sign == "−" else 1) for _, sign, number in found]
    assert points == pytest.approx([100 * gain.mean() for gain in wanted], abs=0.051)

    page = (tmp_path / "report.html").read_text()
    assert sentence in page
    again = run_demo(tmp_path, *short)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "report.html").read_text() == page

    other = run_demo(tmp_path, *short, "--config.attack.epsilon=8")
    assert other.returncode == 2 and "which holds other runs" in other.stderr
