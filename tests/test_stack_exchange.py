"""What one stack writes another one uses: a run is continued, and SavedModel, .keras
and released files give the same answers.

    OTHER_PYTHON=.venv-tf215/bin/python .venv-tf221/bin/python -m pytest -m slow tests/test_stack_exchange.py

`make test-stacks` does so for TensorFlow 2.15 and 2.21.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.efficientnet_advprop.training import tiny_run

ROOT = pathlib.Path(__file__).parents[1]
PYTHONS = {"here": sys.executable, "there": os.environ.get("OTHER_PYTHON", "")}

CONFIG = """
from tests.efficientnet_advprop.training import tiny_run

def get_config():
    config = tiny_run.make_config()
    config.training.keep_last = 10
    return config
"""
ANSWER = """
import sys
import numpy as np
import tensorflow as tf
import efficientnet_advprop.models
from efficientnet_advprop.serving.trained_network import restore_network
from efficientnet_advprop.keras2 import keras

folder, output = sys.argv[1:]
images = tf.constant(np.load(f"{folder}/images.npy"))
signature = tf.saved_model.load(f"{folder}/saved_model/1").signatures["predict_images"]
released = restore_network(checkpoint=f"{folder}/released/model.ckpt", kind="advprop", image_size=32)
np.savez(
    output,
    saved_model=signature(images=images)["probabilities"],
    keras=tf.nn.softmax(keras.models.load_model(f"{folder}/keras/1/model.keras")(images)),
    released=tf.nn.softmax(released.model(images)),
    run=tf.nn.softmax(restore_network(model_dir=f"{folder}/run").model(images)),
)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHONS["there"], reason="OTHER_PYTHON names no Python of another stack"
    ),
]


def start(python: str, *arguments) -> None:
    """Runs a Python of a stack."""
    run = subprocess.run(
        [python, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "TPU_SKIP_MDS_QUERY": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def train(python: str, folder: pathlib.Path, model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Trains to the end; the numbers of the last checkpoint."""
    start(
        python,
        "-m",
        "efficientnet_advprop.train",
        f"--config={folder}/config.py",
        f"--data_dir={folder}/data",
        f"--model_dir={model_dir}",
    )
    reader = tf.train.load_checkpoint(f"{model_dir}/checkpoints")
    numbers = {
        name for name, dtype in reader.get_variable_to_dtype_map().items() if dtype != tf.string
    }
    return {name: reader.get_tensor(name) for name in numbers}


@pytest.mark.parametrize("writer, reader", [("here", "there"), ("there", "here")])
def test_exchange(writer, reader, tmp_path):
    writer, reader = PYTHONS[writer], PYTHONS[reader]
    tiny_run.write_data(tmp_path / "data")
    (tmp_path / "config.py").write_text(CONFIG)
    whole = train(writer, tmp_path, tmp_path / "run")

    # Back to the second step: what came later is taken away.
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    for path in (tmp_path / "resumed/checkpoints").glob("*"):
        if path.name.split(".")[0].endswith(("-4", "-6")):
            path.unlink()
    assert [path.name for path in (tmp_path / "resumed/checkpoints").glob("*.index")] == [
        "ckpt-2.index"
    ]
    resumed = train(reader, tmp_path, tmp_path / "resumed")
    assert whole.keys() == resumed.keys() and len(whole) > 300
    for name, value in whole.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(resumed[name], value, rtol=0, atol=1e-3 * scale, err_msg=name)

    run = f"--model_dir={tmp_path}/run"
    for kind in ("saved_model", "keras"):
        export_dir = f"--export_dir={tmp_path}/{kind}"
        start(writer, "-m", "efficientnet_advprop.export", run, export_dir, f"--format={kind}")
    released = f"--output={tmp_path}/released/model.ckpt"
    start(writer, "-m", "efficientnet_advprop.release", run, released)
    images = np.random.RandomState(0).uniform(0, 255, [4, 32, 32, 3]).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    answers = []
    for python in (writer, reader):
        start(python, "-c", ANSWER, tmp_path, tmp_path / "answers.npz")
        answers.append(dict(np.load(tmp_path / "answers.npz")))
    for kind, probabilities in answers[0].items():
        np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(answers[1][kind], probabilities, rtol=0, atol=1e-5, err_msg=kind)
        np.testing.assert_allclose(
            probabilities, answers[0]["run"], rtol=0, atol=1e-5, err_msg=kind
        )
