"""Killed with SIGKILL at random moments and started again each time, a run ends with
the bits of the uninterrupted one.
"""

import importlib.util
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[3]
NUM_KILLS = 5

_spec = importlib.util.spec_from_file_location(
    "tiny_run", pathlib.Path(__file__).parent / "tiny_run.py"
)
tiny_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_run)

# A checkpoint after every update, so that many kills hit one being written.
CONFIG = """
import importlib.util
spec = importlib.util.spec_from_file_location("tiny_run", {path!r})
tiny_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_run)

def get_config():
    config = tiny_run.make_config()
    config.training.num_epochs = 20.0
    config.data.num_stages, config.data.stage_base_size = 2, 16
    config.training.checkpoint_every_steps = 1
    config.training.evaluate_every_epochs = 5.0
    return config
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    data_dir = tiny_run.write_data(tmp_path / "data")
    (tmp_path / "config.py").write_text(
        CONFIG.format(path=str(pathlib.Path(__file__).parent / "tiny_run.py"))
    )

    def start(model_dir):
        command = [
            sys.executable,
            "-m",
            "efficientnet_advprop.train",
            f"--config={tmp_path / 'config.py'}",
        ]
        return subprocess.Popen(
            [*command, f"--data_dir={data_dir}", f"--model_dir={model_dir}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )

    def last_checkpoint(model_dir):
        return tf.train.latest_checkpoint(str(model_dir / "checkpoints"))

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
