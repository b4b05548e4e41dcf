"""ONNX: `images` float32 [batch, 3, size, size], pixels 0…255, in; `logits` and
`probabilities` [batch, num_classes] out.

tf2onnx and ONNX Runtime want other versions of shared packages than training does, so
they live in an environment of their own, whose interpreter does the conversion and the
check. ONNX Runtime works in channels-first, hence the layout of the input.
"""

import os
import subprocess
import sys
import tempfile
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.serving.export_directory import ExportError
from efficientnet_advprop.serving.network import InferenceNetwork

OPSET = 17
_INSTALL = (
    "make an environment for it: python3.11 -m venv onnx-env && onnx-env/bin/pip install"
    " tensorflow==2.15.1 tf2onnx==1.17.0 onnx==1.17.0 onnxruntime; then add"
    " --onnx_python=onnx-env/bin/python"
)


def convert(
    network: InferenceNetwork, path: str, python: str, end_point: Optional[str] = None
) -> None:
    """Writes the network as an ONNX file.

    Args:
        network: to convert.
        path: of the file to write.
        python: interpreter of an environment with tf2onnx, onnx and onnxruntime.
        end_point: see `InferenceNetwork.answers`.

    Raises:
        ExportError: there is no such environment, with what to install; or the
            conversion fails.
    """
    check_environment(python)
    spec = tf.TensorSpec([None, network.image_size, network.image_size, 3], tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def predict(images):
        return network.answers(images, end_point)

    with tempfile.TemporaryDirectory() as folder:
        holder = network if isinstance(network, tf.Module) else tf.Module()
        tf.saved_model.save(holder, folder, {"serving_default": predict.get_concrete_function()})
        command = [
            python,
            "-m",
            "tf2onnx.convert",
            "--saved-model",
            folder,
            "--output",
            path,
            "--opset",
            str(OPSET),
        ]
        finished = _run([*command, "--inputs-as-nchw", "images"])
    if finished.returncode != 0 or not os.path.exists(path):
        raise ExportError(
            "tf2onnx could not convert the network:"
            f" {' | '.join(finished.stderr.strip().splitlines()[-3:])}"
        )


def check_environment(python: str) -> None:
    """Raises an `ExportError` that says what to install, unless `python` has what ONNX
    needs.
    """
    try:
        finished = _run([python, "-c", "import onnx, onnxruntime, tf2onnx"])
    except OSError as error:
        raise ExportError(
            f"`--onnx_python` is {python!r}, which cannot be run ({error}); {_INSTALL}."
        ) from error
    if finished.returncode != 0:
        which = (
            "this environment"
            if python == sys.executable
            else f"the environment of `--onnx_python` {python!r}"
        )
        last_line = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"{which} cannot make ONNX files ({last_line}); {_INSTALL}.")


def _run(command):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
