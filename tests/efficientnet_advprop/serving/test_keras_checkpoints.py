"""Keras files as networks: what `fit` has trained is evaluated and exported by branch."""

import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import UniformNoise
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.keras import AdvPropModel, add_auxiliary_batch_norms, use_branch
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.runtime.errors import UsageError
from efficientnet_advprop.serving.exporting import ExportOptions, export
from efficientnet_advprop.serving.trained_network import restore_network
from tests.efficientnet_advprop.keras.converted_models import Subclassed, separate

layers = keras.layers
ROOT = pathlib.Path(__file__).parents[3]
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")


def make_dual(activation=None):
    dual = add_auxiliary_batch_norms(
        keras.Sequential(
            [
                layers.Input([32, 32, 3]),
                layers.Conv2D(4, 3, 2),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, activation),
            ],
            name="small",
        )
    )
    separate(dual)
    return dual


def outputs(dual, pixels, branch):
    with use_branch(branch):
        return dual(pixels).numpy()


@pytest.mark.parametrize(
    "pixel_range, change",
    [
        ((0.0, 255.0), lambda x: x),
        ((0.0, 1.0), lambda x: x / 255),
        ((-1.0, 1.0), lambda x: x / 127.5 - 1),
    ],
)
def test_a_trainer_knows_its_pixels(tmp_path, pixel_range, change):
    dual = make_dual()
    trainer = AdvPropModel(dual, UniformNoise(), pixel_range=pixel_range)
    trainer(IMAGES)
    trainer.save(tmp_path / "trainer.keras")
    network = restore_network(checkpoint=str(tmp_path / "trainer.keras"), branch="aux")
    assert (network.image_size, network.crop, network.name) == (32, "0.875", "trainer")
    for branch in ("main", "aux"):
        found = network.classifier(branch).function(IMAGES)
        expected = outputs(dual, change(IMAGES).astype("float32"), branch)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert f"its pixel_range is {pixel_range}" in network.description


def test_a_converted_model_whose_outputs_are_probabilities(tmp_path):
    dual = make_dual("softmax")
    dual.save(tmp_path / "dual.keras")
    network = restore_network(
        checkpoint=str(tmp_path / "dual.keras"), normalization="unit", crop="none"
    )
    assert "probabilities" in network.description and network.crop == "none"
    classifier = network.classifier("aux")
    assert classifier.num_classes == 3 and classifier.branch == "aux"
    expected = outputs(dual, IMAGES / np.float32(255), "aux")
    np.testing.assert_allclose(tf.nn.softmax(classifier.function(IMAGES)), expected, rtol=1e-4)


def test_a_subclassed_model_of_any_size(tmp_path):
    dual = add_auxiliary_batch_norms(Subclassed(3))
    dual(IMAGES[:, :8, :8])
    separate(dual)
    path = str(tmp_path / "dual.keras")
    dual.save(path)
    with pytest.raises(ConfigError, match="`--image_size` is missing"):
        restore_network(checkpoint=path)
    network = restore_network(checkpoint=path, image_size=8, branch="aux")
    expected = outputs(dual, IMAGES[:, :8, :8], "aux")
    np.testing.assert_allclose(
        network.classifier("aux").function(IMAGES[:, :8, :8]), expected, rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_taken(tmp_path):
    path = str(tmp_path / "dual.keras")
    with pytest.raises(CheckpointError, match="there is no such file"):
        restore_network(checkpoint=path)
    pathlib.Path(path).write_text("no archive")
    with pytest.raises(CheckpointError, match="which Keras cannot load"):
        restore_network(checkpoint=path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
    with pytest.raises(CheckpointError, match="Keras 3.15.1.*`fit`"):
        restore_network(checkpoint=path)
    make_dual().save(path)
    with pytest.raises(ConfigError, match="takes 32 pixels only"):
        restore_network(checkpoint=path, image_size=16)
    with pytest.raises(ConfigError, match="`--kind` is 'advprop'"):
        restore_network(checkpoint=path, kind="advprop")
    with pytest.raises(UsageError, match="`branch` is 'aux_2'"):
        restore_network(checkpoint=path).classifier("aux_2")
    with pytest.raises(UsageError, match="a Keras model has branches one at a time"):
        restore_network(checkpoint=path).classifier("main:0.5,aux:0.5")
    trainer = AdvPropModel(make_dual(), UniformNoise(), pixel_range=(0.0, 2.0))
    trainer(IMAGES)
    trainer.save(path)
    with pytest.raises(ConfigError, match="`--normalization` is missing.*pixel_range"):
        restore_network(checkpoint=path)


@pytest.mark.slow
def test_the_programs(tmp_path):
    """Evaluated by branch on a folder of pictures, and exported, with relative paths."""
    dual = make_dual()
    dual.save(tmp_path / "dual.keras")
    random = np.random.default_rng(1)
    pictures = random.integers(0, 256, (12, 32, 32, 3), np.uint8)
    for index, picture in enumerate(pictures):
        folder = tmp_path / "pictures" / f"class_{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}.png").write_bytes(tf.io.encode_png(picture).numpy())

    def run(program, *flags, code=0):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                f"efficientnet_advprop.{program}",
                "--checkpoint=dual.keras",
                *flags,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr

    for branch in ("main", "aux"):
        told = run(
            "evaluate",
            f"--branch={branch}",
            "--suite=folder:pictures",
            "--crop=none",
            f"--out_dir=out/{branch}",
        )
        assert f"branch {branch}" in told and "1 auxiliary branches" in told
        results = json.loads((tmp_path / f"out/{branch}/results.json").read_text())
        predicted = outputs(dual, pictures.astype("float32"), branch).argmax(-1)
        (found,) = [held["score"] for held in results["test_sets"].values()]
        assert found["num_top1"] == np.sum(predicted == np.arange(12) % 3)
    assert "`branch` is 'aux_2'" in run(
        "evaluate", "--branch=aux_2", "--suite=folder:pictures", code=2
    )
    assert "same top-1 on 10 of 10 images" in run("export", "--export_dir=served")
    loaded = tf.saved_model.load(str(tmp_path / "served" / "1"))
    found = loaded.signatures["predict_images"](images=tf.constant(IMAGES))["logits"]
    np.testing.assert_allclose(found, outputs(dual, IMAGES, "main"), rtol=1e-4, atol=1e-4)


def test_exported_as_a_plain_keras_model(tmp_path):
    trainer = AdvPropModel(make_dual(), UniformNoise(), pixel_range=(-1.0, 1.0))
    trainer(IMAGES)
    trainer.save(tmp_path / "trainer.keras")
    network = restore_network(checkpoint=str(tmp_path / "trainer.keras"))
    expected = network.model(IMAGES).numpy()
    plain = network.model.plain_model()
    np.testing.assert_allclose(plain(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert not any("aux" in variable.name for variable in plain.variables)
    with pytest.raises(UsageError, match="has no end points by name"):
        export(
            restore_network(checkpoint=str(tmp_path / "trainer.keras")),
            str(tmp_path / "served"),
            ExportOptions(end_point="block_1"),
        )
