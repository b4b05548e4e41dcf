import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.models.network import weights_digest
from efficientnet_advprop.runtime.errors import RunError, UsageError
from efficientnet_advprop.serving import converters, exporting, verification
from efficientnet_advprop.serving.calibration_images import default_examples
from efficientnet_advprop.serving.exporting import ExportOptions, export, new_version
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from tests.conftest import DATA, run_program
from tests.efficientnet_advprop.serving.conftest import softmax


def write_version(export_dir, contents="x"):
    with new_version(str(export_dir), num_bytes=1) as version:
        with open(os.path.join(version.staging, "model"), "w") as file:
            file.write(contents)
    return version.path


def test_versions_count_up_and_leave_others_alone(tmp_path):
    assert write_version(tmp_path / "new") == str(tmp_path / "new" / "1")
    os.makedirs(tmp_path / "new" / "7")
    (tmp_path / "new" / "notes.txt").write_text("mine")
    assert write_version(tmp_path / "new") == str(tmp_path / "new" / "8")
    assert sorted(os.listdir(tmp_path / "new")) == ["1", "7", "8", "notes.txt"]
    assert os.stat(tmp_path / "new" / "8").st_mode & 0o777 == 0o755


def test_two_exports_at_once_get_two_versions(tmp_path):
    with new_version(str(tmp_path), 1) as one:
        with new_version(str(tmp_path), 1) as other:
            pass
    assert (other.path, one.path) == (str(tmp_path / "1"), str(tmp_path / "2"))


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        with new_version(str(tmp_path / "new"), 1):
            raise KeyError("anything")
    assert os.listdir(tmp_path) == []
    write_version(tmp_path / "old")
    with pytest.raises(RunError, match="No space left.*Nothing was left behind"):
        with new_version(str(tmp_path / "old"), 1) as version:
            open(os.path.join(version.staging, "half"), "w").close()
            raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path / "old") == ["1"]


def test_places_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="`export_dir` is .*which is a file"):
        write_version(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(RunError, match="`export_dir` is .*cannot be written"):
        write_version(tmp_path / "file" / "below")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.raises(RunError, match="2 MB are free, but 30 MB are needed"):
        with new_version(str(tmp_path / "new"), num_bytes=30_000_000):
            pytest.fail("there is no space for this")
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_failed_check_leaves_no_directory(network, tmp_path, monkeypatch):
    """An export that is not the model: its logits are off by a hundredth in one class."""
    genuine = InferenceNetwork.end_points

    def spoiled(self, images):
        found = genuine(self, images)
        return {**found, "head": found["head"] + tf.one_hot(0, 10, 0.01, 0.0)}

    monkeypatch.setattr(exporting.InferenceNetwork, "end_points", spoiled)
    with pytest.raises(RunError, match="did not pass its check"):
        export(network, str(tmp_path / "served"), ExportOptions(format="tflite"))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_an_export_that_cannot_be_loaded_is_named(network, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"no model")
    examples = default_examples(64, "released")
    with pytest.raises(RunError, match="a fresh process cannot use it"):
        verification.verify(network.model, "tflite", str(tmp_path / "model.tflite"), examples, 1e-5)


@pytest.mark.slow
def test_paths_may_be_relative(network, exported, monkeypatch):
    """Those of the export and of the interpreter, as a command line gives them."""
    monkeypatch.chdir(os.path.dirname(exported))
    path = os.path.basename(exported)
    examples = default_examples(64, "released")
    agreement = verification.verify(
        network.model, "saved_model", path, examples, 1e-5, python=os.path.relpath(sys.executable)
    )
    assert agreement.num_same_top1 == agreement.num_images == len(examples.images)


def test_tflite_gets_the_official_logits(network, expected):
    images, logits = expected
    runner = tf.lite.Interpreter(
        model_content=converters.to_tflite(InferenceNetwork(network.model, 64))
    ).get_signature_runner()
    answers = [runner(images=image[None]) for image in images]
    np.testing.assert_allclose(
        np.concatenate([answer["logits"] for answer in answers]), logits, atol=3e-5
    )
    np.testing.assert_allclose(
        np.concatenate([answer["probabilities"] for answer in answers]), softmax(logits), atol=1e-5
    )


@pytest.mark.parametrize(
    "quantization, size_ratio", [("float16", 0.6), ("dynamic_range", 0.4), ("full_integer", 0.33)]
)
def test_quantized_tflite_is_smaller_and_close(network, expected, quantization, size_ratio):
    images, logits = expected
    folded = InferenceNetwork(network.model, 64)
    contents = converters.to_tflite(folded, quantization, images)
    interpreter = tf.lite.Interpreter(model_content=contents)
    # A float32 scale and an int64 zero point each: per kernel or per channel, as the
    # converter's version likes, and this network has few weights per channel.
    num_scales = sum(
        len(tensor["quantization_parameters"]["scales"])
        for tensor in interpreter.get_tensor_details()
    )
    assert len(contents) - 12 * num_scales < size_ratio * 4 * folded.num_weights
    runner = interpreter.get_signature_runner()
    is_integer = quantization == "full_integer"
    assert runner.get_input_details()["images"]["dtype"] == (np.uint8 if is_integer else np.float32)
    images = np.clip(np.round(images), 0, 255).astype(np.uint8) if is_integer else images
    answers = np.concatenate([runner(images=image[None])["probabilities"] for image in images])
    assert np.abs(answers - softmax(logits)).max() < (0.01 if quantization == "float16" else 0.2)


@pytest.mark.slow
def test_integer_exports_report_the_accuracy_lost(network, photographs, tmp_path):
    """A calibration folder with one sub-folder per class: labels, so an accuracy."""
    for index in range(10):
        os.makedirs(tmp_path / "images" / f"class{index}")
        path = tmp_path / "images" / f"class{index}" / "image.jpg"
        path.write_bytes(photographs[index % 2])
    options = ExportOptions(
        format="tflite", quantization="full_integer", calibration_dir=str(tmp_path / "images")
    )
    path, _, agreement = export(network, str(tmp_path / "served"), options)
    assert agreement.num_images == 10
    # Five copies of either photograph, of ten different labels: at most one of each is
    # right.
    assert 0.0 <= agreement.model_accuracy <= 0.2
    assert "points lost" in str(agreement) and "same top-1 on" in str(agreement)
    with open(os.path.join(path, "metadata.json"), encoding="utf-8") as file:
        assert json.load(file)["self_check"]["export_accuracy"] == agreement.export_accuracy


@pytest.mark.slow
def test_keras_export_gives_the_model_back(network, tmp_path, expected):
    images, logits = expected
    path, *_ = export(network, str(tmp_path), ExportOptions(format="keras"))
    model = keras.models.load_model(os.path.join(path, "model.keras"))
    np.testing.assert_allclose(model(images), logits, atol=3e-5)
    other = EfficientNet.from_config(model.get_config())
    other.load_weights(os.path.join(path, "model.weights.h5"))
    np.testing.assert_array_equal(other(images), model(images))


def test_onnx_without_its_environment_says_what_to_install(network, tmp_path):
    options = ExportOptions(format="onnx", onnx_python=str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="`--onnx_python` is .*pip install .*tf2onnx"):
        export(network, str(tmp_path / "served"), options)
    assert os.listdir(tmp_path) == []


def test_onnx_is_converted_and_checked(network, tmp_path):
    try:
        converters.check_onnx_environment(os.environ.get("ONNX_PYTHON", sys.executable))
    except RunError:
        pytest.skip(
            "no tf2onnx here; name an interpreter that has it: ONNX_PYTHON=onnx-env/bin/python"
        )
    options = ExportOptions(
        format="onnx", onnx_python=os.environ.get("ONNX_PYTHON", sys.executable)
    )
    _, _, agreement = export(network, str(tmp_path), options)
    assert agreement.num_same_top1 == agreement.num_images and agreement.max_difference < 1e-5


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(quantization="float16"), "`--quantization` is 'float16'.*--format=tflite"),
        (dict(format="tflite", quantization="full_integer"), "--calibration_dir"),
        (dict(end_point="stem", format="keras"), "`--end_point` is 'stem'"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(UsageError, match=words):
        ExportOptions(**options)


def test_a_bfloat16_run_with_auxiliary_branches_is_exported_in_float32(network, expected):
    images, logits = expected
    trained = EfficientNet.from_config(
        {**network.model.get_config(), "compute_dtype": "bfloat16", "aux_branches": 1}
    )
    values = {variable.name: variable for variable in network.model.variables}
    for variable in trained.variables:
        variable.assign(values[variable.name] if variable.name in values else variable + 1.0)
    plain = exporting._in_float32(trained)
    np.testing.assert_allclose(plain(images), logits, atol=3e-5)
    assert weights_digest(plain.variables) == weights_digest(network.model.variables)


def test_the_door_reports_in_one_line(tmp_path):
    finished = run_program("export", "--checkpoint", str(DATA / "tiny_ckpt"))
    assert finished.returncode == 2 and "`--export_dir` is missing" in finished.stderr
    assert "Traceback" not in finished.stderr
