"""Keras models in the trainer: a run of their own, resumed, evaluated and exported by
branch.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from advprop_preflight import preflight_results, tpu_compiler
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.keras import use_branch
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.serving.exporting import ExportOptions, export
from efficientnet_advprop.serving.trained_network import restore_network
from efficientnet_advprop.training import checkpoints
from tests.efficientnet_advprop.models import keras_functions
from tests.efficientnet_advprop.training import tiny_run
from tests.efficientnet_advprop.training.tiny_run import last_checkpoint, train
from tpu_utils.strategy import make_strategy

ROOT = pathlib.Path(__file__).parents[3]
VARIANT = f"keras:{keras_functions.__name__}:small"


def make_config(**fields):
    changes = {"depth_coefficient": 0.3, "batch_norm_momentum": 0.9, **fields}
    return tiny_run.make_small_config(
        "advprop", {f"model.{name}": value for name, value in changes.items()}
    )


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    model_dir, lines = str(tmp_path_factory.mktemp("tiny") / "run"), []
    assert train(make_config(), data_dir, model_dir, log=lines.append).step == 6
    return model_dir, lines


def test_it_says_what_it_trains_and_what_means_nothing_to_it(finished):
    _, lines = finished
    assert lines[0].startswith("advprop training of sequential")
    assert "`config.model.depth_coefficient`" in lines[1] and "width" not in lines[1]


def test_the_restored_network_has_the_averages_by_branch(finished):
    model_dir, _ = finished
    network = restore_network(model_dir=model_dir, branch="aux")
    assert "last checkpoint, the best one being chosen on the validation" in network.description
    reader = tf.train.load_checkpoint(last_checkpoint(model_dir))
    names = {name.replace(".S", "/"): name for name in reader.get_variable_to_shape_map()}
    wanted = next(names[name] for name in names if "first/aux/gamma/ExponentialM" in name)
    norm = network.model.keras_model.get_layer("first")
    np.testing.assert_array_equal(norm.aux[0].gamma, reader.get_tensor(wanted))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    with use_branch("aux"):
        expected = network.model.keras_model(images).numpy()
    np.testing.assert_array_equal(network.classifier("aux").function(images), expected)
    assert np.abs(expected - network.classifier("main").function(images)).max() > 1e-4


def test_other_image_sizes_and_the_released_format_are_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="`--image_size` is 64, but .* takes 32 pixels only"):
        restore_network(model_dir=finished[0], image_size=64)
    with pytest.raises(CheckpointError, match="a Keras model; the released format"):
        checkpoints.write_released_checkpoint(finished[0], str(tmp_path / "model"))


@pytest.mark.slow
def test_two_replicas_with_synchronised_norms_are_one(data_dir, tmp_path, two_replicas):
    values = []
    for strategy, folder in ((make_strategy(), "one"), (two_replicas, "two")):
        config = make_config(variant=VARIANT.replace("small", "synchronized"))
        config.use_method("vanilla")
        train(config, data_dir, tmp_path / folder, strategy)
        reader = tf.train.load_checkpoint(last_checkpoint(tmp_path / folder))
        names = reader.get_variable_to_shape_map()
        values.append({name: reader.get_tensor(name) for name in names if "VALUE" in name})
    one, two = values
    assert one.keys() == two.keys() and len(one) > 40
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["saved_model", "tflite", "keras"])
def test_export(finished, tmp_path, format):
    """Compared with the network in a process of its own; a Keras file needs no code of
    ours.
    """
    network = restore_network(model_dir=finished[0])
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = network.model(images).numpy()
    path, _, agreement = export(network, str(tmp_path / "served"), ExportOptions(format=format))
    assert agreement.num_same_top1 == agreement.num_images == 10
    if format == "saved_model":
        loaded = tf.saved_model.load(path)
        found = loaded.signatures["predict_images"](images=tf.constant(images))["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        saved = [name for name, _ in tf.train.list_variables(f"{path}/variables/variables")]
        # One kernel, three of the separable convolution, two of the classifier, and
        # four of each batch norm: main alone.
        assert len([name for name in saved if "VARIABLE_VALUE" in name]) == 1 + 3 + 2 + 2 * 4
    if format == "keras":
        model = keras.models.load_model(f"{path}/model.keras")
        assert type(model) is keras.Sequential
        np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_step_is_one_xla_program():
    """As the preflight gives it to the TPU's compiler, for two replicas."""
    config = make_config(compute_dtype="bfloat16")
    config.attack.num_steps = 2
    function, specs = preflight_results.training_step(config, 4, 2)
    text = tpu_compiler.lower(function, specs, num_replicas=2, stage="hlo")
    assert "bf16[" in text and "while(" in text


@pytest.mark.slow
def test_the_programs(tmp_path, monkeypatch):
    """A module in the user's own folder: trained on digits, evaluated by branch,
    exported, gone on with.
    """
    (tmp_path / "my_models.py").write_text(
        "import tensorflow as tf\n"
        "from efficientnet_advprop.keras2 import keras\n"
        "def mobilenet(num_classes, image_size):\n"
        "    return keras.applications.MobileNetV3Small(\n"
        "        input_shape=(image_size, image_size, 3), weights=None, classes=num_classes,\n"
        "        classifier_activation=None, minimalistic=True, dropout_rate=0.0)\n"
    )

    def run(program, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", f"efficientnet_advprop.{program}", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr[-2000:]
        return done.stdout + done.stderr

    train_flags = (
        f"--config={ROOT}/configs/digits.py:advprop",
        "--config.model.variant=keras:my_models:mobilenet",
        "--config.model.normalization=none",
        "--config.data.num_train_examples=100",
        "--config.training.evaluate_every_epochs=2",
        "--data_dir=data/digits",
        "--model_dir=runs/digits",
    )
    more = [flag.replace("mobilenet", "mobil") for flag in train_flags]
    told = run("train", *more, code=1)
    assert "has no function 'mobil'; its functions are mobilenet" in told
    told = run("train", *train_flags, "--config.training.num_epochs=4")
    assert "advprop training of MobilenetV3small" in told and "all 8 steps are done" in told
    again = run("train", *train_flags, "--config.training.num_epochs=4")
    assert "going on from" in again
    digits = load_digits()
    images = np.kron(digits.images[-60:] * (255 / 16), np.ones((1, 4, 4))).astype(np.uint8)
    for index, (image, label) in enumerate(zip(images, digits.target[-60:])):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.repeat(image[..., None], 3, -1)
        (folder / f"{index:02d}.png").write_bytes(tf.io.encode_png(picture).numpy())
    monkeypatch.syspath_prepend(tmp_path)
    network = restore_network(model_dir=str(tmp_path / "runs/digits"), branch="aux")
    pixels = np.repeat(images[..., None], 3, -1)
    for branch in ("main", "aux"):
        told = run(
            "evaluate",
            "--model_dir=runs/digits",
            f"--branch={branch}",
            "--suite=folder:pictures",
            f"--out_dir=results/{branch}",
        )
        assert f"branch {branch}" in told
        results = json.loads((tmp_path / f"results/{branch}/results.json").read_text())
        (found,) = results["test_sets"].values()
        answers = np.argmax(network.classifier(branch).function(pixels), -1)
        # The folders in order are the classes: all ten digits are among the last sixty.
        assert found["score"]["num_top1"] == np.sum(answers == digits.target[-60:])
    told = run("export", "--model_dir=runs/digits", "--export_dir=served")
    assert "same top-1 on 10 of 10 images" in told
    assert json.loads((tmp_path / "served/1/assets/metadata.json").read_text())["model"]["variant"]
