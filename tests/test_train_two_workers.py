"""The demonstration of `make train-two-workers` tells the truth: it compares the
checkpoints itself, and exits with 0.
"""

import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_a_worker_is_killed_and_the_result_is_that_of_the_undisturbed_run(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "examples/train_two_workers.py"),
        f"--output_dir={tmp_path / 'runs'}",
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "worker 1 was killed" in told.stdout and "to the last bit" in told.stdout


def test_a_folder_with_other_things_is_not_emptied(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    make_empty = importlib.import_module("train_two_workers").make_empty
    assert make_empty(tmp_path / "new")[0] == tmp_path / "new/data"
    (tmp_path / "new/whole.0.log").touch()
    make_empty(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new/data.txt").write_text("mine")
    with pytest.raises(SystemExit, match="data.txt"):
        make_empty(tmp_path / "new")
    assert (tmp_path / "new/data.txt").read_text() == "mine"
