"""The network in other runtimes' files: TensorFlow Lite, and ONNX.

ONNX takes `images` float32 [batch, 3, size, size], since its runtime works in
channels-first. tf2onnx and ONNX Runtime want other versions of shared packages than
training does, so they live in an environment of their own, whose interpreter does the
conversion and the check.
"""

import os
import subprocess
import tempfile
from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.runtime.errors import RunError
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from tpu_utils.platforms import without_noise

OPSET = 17
_INSTALL = (
    "make an environment for it: python3.11 -m venv onnx-env && onnx-env/bin/pip install"
    " tensorflow==2.15.1 tf2onnx==1.17.0 onnx==1.17.0 onnxruntime; then add"
    " --onnx_python=onnx-env/bin/python"
)


def to_tflite(
    network: InferenceNetwork,
    quantization: str = "none",
    calibration_images: Optional[np.ndarray] = None,
    end_point: Optional[str] = None,
) -> bytes:
    """Returns the network as a TFLite file's contents: one image [1, size, size, 3] of pixels
    0…255 in, `logits` and `probabilities` [1, num_classes] out, or the `features` of one end
    point. "full_integer" takes uint8 pixels and answers in float32; the others take float32.

    `quantization` is "none" (float32), "float16" or "dynamic_range" (8 bits) of the weights
    alone, or "full_integer" of all, whose ranges `calibration_images` decide: float32
    [n, size, size, 3], pre-processed.
    """
    spec = tf.TensorSpec([1, network.image_size, network.image_size, 3], tf.float32, "images")

    def predict(images):
        return network.answers(images, end_point)

    function = tf.function(predict, autograph=False).get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "full_integer":
        pixels = np.clip(np.round(calibration_images), 0, 255)  # as they will come in
        converter.representative_dataset = lambda: ([image[None]] for image in pixels)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    with without_noise(b""):  # its summary of operations, which nothing else turns off
        return converter.convert()


def to_onnx(
    network: InferenceNetwork, path: str, python: str, end_point: Optional[str] = None
) -> None:
    """Writes the network as an ONNX file, by an interpreter that `check_onnx_environment`
    accepts; `end_point`: see `InferenceNetwork.answers`.
    """
    check_onnx_environment(python)
    spec = tf.TensorSpec([None, network.image_size, network.image_size, 3], tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def predict(images):
        return network.answers(images, end_point)

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(network, folder, {"serving_default": predict.get_concrete_function()})
        command = [python, "-m", "tf2onnx.convert", "--saved-model", folder, "--output", path]
        finished = _run([*command, "--opset", str(OPSET), "--inputs-as-nchw", "images"])
    if finished.returncode != 0 or not os.path.exists(path):
        last_lines = " | ".join(finished.stderr.strip().splitlines()[-3:])
        raise RunError(f"tf2onnx could not convert the network: {last_lines}")


def check_onnx_environment(python: str) -> None:
    """Raises a `RunError` that says what to install, unless `python` has what ONNX needs."""
    try:
        finished = _run([python, "-c", "import onnx, onnxruntime, tf2onnx"])
    except OSError as error:
        raise RunError(
            f"`--onnx_python` is {python!r}, which cannot be run ({error}); {_INSTALL}."
        ) from error
    if finished.returncode != 0:
        last_line = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(
            f"`--onnx_python` is {python!r}, which cannot make ONNX files ({last_line});"
            f" {_INSTALL}."
        )


def _run(command):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
