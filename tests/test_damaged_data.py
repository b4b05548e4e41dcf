"""A record that cannot be read ends every program with exit code 1 and one message.

As processes, since what can go wrong comes at their end: threads of an open stream that
call into Python after it has gone abort the process, or hang it, in most of the tries
but not in all. Hence each is tried more than once; `DAMAGED_DATA_TRIES=20` tries
harder.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
import tensorflow as tf

from efficientnet_advprop.data import builtin_datasets, records

ROOT = pathlib.Path(__file__).parents[1]
TRIES = int(os.environ.get("DAMAGED_DATA_TRIES", "2"))
SMALL = [
    "--config.model.width_coefficient=0.25",
    "--config.training.num_epochs=1",
    "--config.training.evaluate_every_epochs=1",
    "--config.optimizer.warmup_epochs=0",
    "--config.training.steps_per_loop=1",
]
STUDY = """
from advprop_experiments.plan import Arm, Study
from efficientnet_advprop.configs import digits

def get_study():
    config = digits.get_config("vanilla")
    config.model.width_coefficient = 0.25
    config.training.num_epochs = 1.0
    config.training.evaluate_every_epochs = 1.0
    config.optimizer.warmup_epochs = 0.0
    config.data.num_train_examples = 100
    return Study(
        title="Damaged data", introduction="One run.", arms={"only": Arm(config, 9.0)}, seeds=(0, 1),
        claims=[], severities=(1,), attack_epsilons=(16.0,),
    )
"""

pytestmark = pytest.mark.slow


def damage(folder: pathlib.Path, split: str) -> None:
    """Puts bytes that are no image into the place of one record's."""
    path = sorted(folder.glob(f"{split}-*-of-*"))[0]
    rows = [row.numpy() for row in tf.data.TFRecordDataset(str(path))]
    rows[0] = records.make_example(b"no image", 0)  # also where only the first images are taken
    with records.ShardWriter(str(path)) as shard:
        for row in rows:
            shard.write(row)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Whole digits, digits damaged in each split, and a trained run."""
    root = tmp_path_factory.mktemp("damaged data")
    builtin_datasets.DIGITS.ensure(str(root / "whole"))
    for split in ("train", "validation"):
        shutil.copytree(root / "whole", root / split)
        damage(root / split, split)
    ended = run(root, "train", [*training(root / "whole", root / "run"), *SMALL])
    assert ended.returncode == 0, ended.stderr
    return root


def training(data_dir, model_dir) -> list[str]:
    config = ROOT / "configs" / "digits.py"
    return [f"--config={config}:vanilla", f"--data_dir={data_dir}", f"--model_dir={model_dir}"]


def start(root, program, arguments, **variables) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"efficientnet_advprop.{program}", *arguments],
        cwd=root,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        said, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, said, said)


def run(root, program, arguments) -> subprocess.CompletedProcess:
    return wait(start(root, program, arguments))


def is_told(ended: subprocess.CompletedProcess) -> bool:
    assert "Traceback" not in ended.stdout, ended.stdout
    return "its image cannot be decoded" in ended.stdout


def train_alone(root, out):
    return [run(root, "train", [*training("train", out), *SMALL])]


def train_with_two_workers(root, out):
    addresses = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{probe.getsockname()[1]}")
    arguments = [*training("train", out), *SMALL, "--strategy=multi_worker"]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(start(root, "train", arguments, TF_CONFIG=json.dumps(task)))
    return [wait(worker) for worker in workers]


def evaluate(root, out):
    arguments = ["--model_dir=run", "--data_dir=validation", "--suite=digits", f"--out_dir={out}"]
    return [run(root, "evaluate", arguments)]


def demo(root, out):
    shutil.copytree(root / "train", root / out / "data")
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    return [run(root, "demo", [config, f"--output_dir={out}", *SMALL])]


def study(root, out):
    shutil.copytree(root / "train", root / out / "data")
    (root / "small_study.py").write_text(STUDY)
    return [run(root, "study", ["--study=small_study.py", f"--output_dir={out}"])]


@pytest.mark.parametrize(
    "program",
    [train_alone, train_with_two_workers, evaluate, demo, study],
    ids=lambda p: p.__name__,
)
def test_the_exit_code_is_1_and_the_message_names_the_record(folders, program):
    for index in range(TRIES):
        ended = program(folders, f"{program.__name__}_{index}")
        assert [process.returncode for process in ended] == [1] * len(ended), ended
        assert any(is_told(process) for process in ended), ended
