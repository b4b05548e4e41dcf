"""Killed with SIGKILL at random moments and started again each time, a run ends with
the bits of the uninterrupted one; stopped by Ctrl-C it saves.
"""

import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from tests.efficientnet_advprop.training import tiny_run
from tests.efficientnet_advprop.training.tiny_run import last_checkpoint

ROOT = pathlib.Path(__file__).parents[3]
NUM_KILLS = 5

# A checkpoint after every update, so that many kills hit one being written.
CONFIG = """
from tests.efficientnet_advprop.training import tiny_run

def get_config():
    config = tiny_run.make_config()
    config.training.num_epochs = 20.0
    config.data.num_stages, config.data.stage_base_size = 2, 16
    config.training.checkpoint_every_steps = 1
    config.training.evaluate_every_epochs = 5.0
    return config
"""
LONG = """
from tests.efficientnet_advprop.training import tiny_run

def get_config():
    config = tiny_run.make_small_config()
    config.training.num_epochs = 1e3
    return config
"""


def write_inputs(folder, config):
    """Returns a function that starts `train` with a model_dir, given data and a config."""
    data_dir = tiny_run.write_data(folder / "data")
    (folder / "config.py").write_text(config)

    def start(model_dir, **options):
        command = [sys.executable, "-m", "efficientnet_advprop.train"]
        command += [f"--config={folder / 'config.py'}", f"--data_dir={data_dir}"]
        return subprocess.Popen([*command, f"--model_dir={model_dir}"], cwd=ROOT, **options)

    return start


def test_ctrl_c_saves_and_ends_with_130(tmp_path):
    start = write_inputs(tmp_path, LONG)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = start(tmp_path / "run", **pipes)
    while not process.stdout.readline().startswith("step 3/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate()
    assert process.returncode == 130
    assert errors.endswith("Ctrl-C: the state is saved first; once more ends at once\n")
    last = told.splitlines()[-1]
    assert last.startswith("stopped by Ctrl-C; step ") and "is saved" in last
    step = last.split()[4]
    assert (tmp_path / "run" / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    start_quietly = write_inputs(tmp_path, CONFIG)

    def start(model_dir):
        return start_quietly(model_dir, stdout=subprocess.DEVNULL)

    def num_steps(model_dir):
        return int((last_checkpoint(model_dir) or "-0").split("-")[-1])

    assert start(tmp_path / "whole").wait() == 0
    rng = random.Random(0)
    killed_at = []
    for _ in range(NUM_KILLS):
        process = start(tmp_path / "killed")
        before = num_steps(tmp_path / "killed")
        # Most of a process's life is its start; wait for the first update, then for a
        # little more.
        while num_steps(tmp_path / "killed") == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        killed_at.append(num_steps(tmp_path / "killed"))
    assert killed_at == sorted(set(killed_at)) and killed_at[0] < 80, (
        "each start must have come further than the one before"
    )
    assert start(tmp_path / "killed").wait() == 0
    assert last_checkpoint(tmp_path / "killed").endswith("ckpt-80")
    assert tiny_run.saved_values(last_checkpoint(tmp_path / "killed")) == tiny_run.saved_values(
        last_checkpoint(tmp_path / "whole")
    )
    best = [tf.train.latest_checkpoint(str(tmp_path / run / "best")) for run in ("killed", "whole")]
    assert tiny_run.saved_values(best[0]) == tiny_run.saved_values(best[1])
