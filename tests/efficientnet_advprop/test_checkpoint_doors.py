"""The programs about checkpoints, started as a user starts them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.runtime.files import without_pattern
from tests.conftest import DATA, load_tiny, make_tiny

ROOT = pathlib.Path(__file__).parents[2]
TINY = str(DATA / "tiny_ckpt")


def start(module, *arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", f"efficientnet_advprop.{module}", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """name → (exit code, stdout, stderr) of programs that ran side by side; and the
    folder with their images.
    """
    root = tmp_path_factory.mktemp("doors")
    random = np.random.default_rng(0)
    for label in range(10):
        (root / "val" / f"class{label}").mkdir(parents=True)
        pixels = random.integers(0, 256, [40, 50, 3], np.uint8)
        (root / "val" / f"class{label}" / "image.png").write_bytes(tf.io.encode_png(pixels).numpy())
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "labels_map.txt").write_text(
        json.dumps({str(index): f"thing {index}" for index in range(10)})
    )
    image = str(root / "val" / "class3" / "image.png")
    network = [f"--checkpoint={TINY}", "--kind=advprop", "--image_size=32"]
    processes = {
        "inspect": start("inspect_checkpoint", "--tensors", TINY),
        "classify": start(
            "classify",
            *network,
            f"--labels_map_file={root / 'labels_map.txt'}",
            image,
            str(root / "broken.jpg"),
        ),
        "evaluate": start(
            "evaluate",
            *network,
            f"--suite=folder:{root / 'val'}",
            "--batch_size=4",
            f"--out_dir={root / 'out'}",
        ),
        "no checkpoint": start("evaluate", "--checkpoint=/no/such/file", "--suite=folder:/x"),
        "release": start("release", f"--model_dir={root}", f"--output={root / 'out'}"),
    }
    results = {}
    for name, process in processes.items():
        stdout, stderr = process.communicate(timeout=300)
        results[name] = process.returncode, stdout, stderr
    return results, root


@pytest.fixture(scope="module")
def logits(outputs):
    """Of the ten images, from the golden network."""
    model = make_tiny(aux_branches=0)
    load_tiny(model.variables, "/ExponentialMovingAverage")
    paths = [str(outputs[1] / "val" / f"class{label}" / "image.png") for label in range(10)]
    return model(
        tf.stack([preprocessing.preprocess_for_eval(tf.io.read_file(path), 32) for path in paths])
    ).numpy()


def test_inspect(outputs):
    code, stdout, _ = outputs[0]["inspect"]
    assert code == 0
    summary, _, listed = stdout.partition(f"{TINY}: its tensors\n")
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == sorted(
        tf.train.load_checkpoint(without_pattern(TINY)).get_variable_to_shape_map()
    )
    kernel = next(line for line in listed.splitlines() if "/stem/conv2d/kernel " in line)
    assert kernel.split() == [
        "efficientnet-b0/stem/conv2d/kernel",
        *"[3, 3, 3, 8] plain weight".split(),
    ]
    rows = dict(line.strip().split("  ", 1) for line in summary.splitlines()[1:])
    rows = {label: text.strip() for label, text in rows.items()}
    assert rows["network"] == "an EfficientNet of width 0.25 and depth 0.3"
    assert rows["classes"] == "10"
    assert rows["averages (EMA)"] == rows["plain weights"] == "159 variables"
    assert rows["step"] == "1,234"
    assert rows["optimizer slots"] == rows["other tensors"] == rows["not finite"] == "none"
    trained = [variable for variable in make_tiny(aux_branches=0).trainable_variables]
    assert rows["parameters"].startswith(
        f"{sum(np.prod(variable.shape) for variable in trained):,} trainable"
    )


def test_classify(outputs, logits):
    code, stdout, stderr = outputs[0]["classify"]
    assert code == 1
    assert "broken.jpg cannot be read as an image" in stderr
    assert "Traceback" not in stderr
    assert "normalization advprop" in stdout and "crop released" in stdout
    rows = [line.split() for line in stdout.splitlines() if "thing" in line]
    order = np.argsort(-logits[3])[:5]
    probabilities = np.exp(logits[3]) / np.exp(logits[3]).sum()
    assert [int(row[2]) for row in rows] == list(order)
    assert [" ".join(row[3:]) for row in rows] == [f"thing {index}" for index in order]
    np.testing.assert_allclose(
        [float(row[0]) for row in rows], 100 * probabilities[order], atol=0.01
    )


def test_evaluate(outputs, logits):
    code, stdout, _ = outputs[0]["evaluate"]
    assert code == 0
    (result,) = Results.read(str(outputs[1] / "out")).test_sets.values()
    num_top1 = np.sum(logits.argmax(1) == np.arange(10))
    num_top5 = sum(label in np.argsort(-row)[:5] for label, row in enumerate(logits))
    loss = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(10), np.arange(10)])
    assert result.score == Score(10, num_top1, num_top5) and result.is_complete
    assert result.score.loss == pytest.approx(loss, abs=1e-3)
    assert f"top-1 {10 * num_top1:6.2f} %" in stdout and "10 images  32 px, crop released" in stdout


@pytest.mark.parametrize(
    "name, code, words",
    [
        ("no checkpoint", 1, "there is no such directory and no file /no/such/file.index"),
        ("release", 1, "holds no config.json"),
    ],
)
def test_mistakes_are_one_message(outputs, name, code, words):
    found, _, stderr = outputs[0][name]
    assert found == code and words in stderr and "Traceback" not in stderr
