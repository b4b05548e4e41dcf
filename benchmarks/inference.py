r"""Measures how fast exports of EfficientNet-B0 answer, relative to other
implementations.

Usage:

    python benchmarks/inference.py
    python benchmarks/inference.py --onnx_python=onnx-env/bin/python \
        --other_python=torch-env/bin/python
    .venv-tf215/bin/python benchmarks/inference.py --tensorflow_python=.venv-tf221/bin/python

It measures latency at batch 1 (median and 99th percentile) and throughput at batch 16
(from the median), in float32 on all cores. Every candidate runs in a process of its
own. They take turns for a few calls at a time, so that a change of the machine's speed
affects all of them. Weights and biases are random, because biases of zero would be
optimised away. `--onnx_python` has tf2onnx and onnxruntime; `--other_python` has some
of onnxruntime, openvino, torch and timm. Packages that are not installed are left out.
`--tensorflow_python` belongs to another stack (docs/stacks.md): it runs the same files,
and its ratio to this stack is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

IMAGE_SIZE = 224
REFERENCE = "keras.applications"
OF_BOTH_STACKS = (REFERENCE, "ours, SavedModel", "ours, TFLite")  # with --tensorflow_python


def make_saved_model(path, pixels):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    function, images = loaded.signatures["predict_images"], tf.constant(pixels)
    return lambda: (loaded, function(images=images)["probabilities"].numpy())


def make_keras(path, pixels):
    import tensorflow as tf

    from efficientnet_advprop.keras2 import keras

    model = keras.applications.EfficientNetB0(weights=None)
    randomize(model.variables)
    function, images = tf.function(lambda batch: model(batch, training=False)), tf.constant(pixels)
    return lambda: function(images).numpy()


def make_keras_saved_model(path, pixels):
    import tensorflow as tf

    from efficientnet_advprop.keras2 import keras

    model = keras.applications.EfficientNetB0(weights=None)
    randomize(model.variables)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(model, folder)
        loaded = tf.saved_model.load(folder)
    function, images = loaded.signatures["serving_default"], tf.constant(pixels)
    (name,) = function.structured_input_signature[1]
    return lambda: [(loaded, value.numpy()) for value in function(**{name: images}).values()]


def make_tflite(path, pixels):
    import tensorflow as tf

    if len(pixels) > 1:
        raise ImportError("one image at a time")
    interpreter = tf.lite.Interpreter(path, num_threads=os.cpu_count())
    # Before a runner is made: this is where the fast kernels (XNNPACK) come in.
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    return lambda: (interpreter, runner(images=pixels)["probabilities"])


def make_onnx(path, pixels):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (inputs,), output = session.get_inputs(), session.get_outputs()[-1].name
    images = np.ascontiguousarray(np.transpose(pixels, [0, 3, 1, 2]))
    return lambda: session.run([output], {inputs.name: images})


def make_openvino(path, pixels):
    import numpy as np
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    images = np.ascontiguousarray(np.transpose(pixels, [0, 3, 1, 2]))
    return lambda: compiled([images])[compiled.outputs[-1]]


def make_timm(path, pixels):
    import numpy as np
    import timm
    import torch

    torch.set_num_threads(os.cpu_count())
    model = timm.create_model("efficientnet_b0").eval()
    images = torch.from_numpy(np.ascontiguousarray(np.transpose(pixels, [0, 3, 1, 2])))

    def run():
        with torch.inference_mode():
            return model(images).numpy()

    return run


def make_timm_onnx(path, pixels):
    import timm
    import torch

    model = timm.create_model("efficientnet_b0", exportable=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "timm.onnx")
        images = torch.zeros([2, 3, IMAGE_SIZE, IMAGE_SIZE])
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (images,), path, dynamic_shapes=shapes, dynamo=True, verbose=False)
        return make_onnx(path, pixels)


def randomize(variables):
    """Moves every bias and statistic a little off its initial value."""
    import numpy as np

    random = np.random.RandomState(0)
    for variable in variables:
        if len(variable.shape) == 1:
            value = variable.numpy()
            variable.assign(
                value + 0.1 * np.abs(random.standard_normal(value.shape)).astype(value.dtype)
            )


def serve_timings(kind, path, batch_sizes):
    """Works: prints "ready", then for each line "index count" on stdin as many
    durations in seconds, as JSON.
    """
    import numpy as np

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    runs = []
    for batch_size in batch_sizes:
        pixels = (
            np.random.RandomState(0)
            .uniform(0, 255, [batch_size, IMAGE_SIZE, IMAGE_SIZE, 3])
            .astype(np.float32)
        )
        try:
            runs.append(globals()[f"make_{kind}"](path, pixels))
        except ImportError:
            runs.append(None)
            continue
        for _ in range(3):
            runs[-1]()
    print(json.dumps([run is not None for run in runs]), file=answers, flush=True)
    for line in sys.stdin:
        index, count = map(int, line.split())
        durations = []
        for _ in range(count):
            start = time.perf_counter()
            runs[index]()
            durations.append(time.perf_counter() - start)
        print(json.dumps(durations), file=answers, flush=True)


class Contender:
    """A worker process and what it has measured."""

    def __init__(self, python, kind, path, batch_sizes):
        command = [python, __file__, "--worker", kind, path, *map(str, batch_sizes)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        answer = self._process.stdout.readline()
        self.can = json.loads(answer) if answer else [False] * len(batch_sizes)
        self.seconds = [[] for _ in batch_sizes]

    def measure(self, index, count):
        if self.can[index]:
            print(index, count, file=self._process.stdin, flush=True)
            self.seconds[index] += json.loads(self._process.stdout.readline())

    def stop(self):
        self._process.stdin.close()
        self._process.wait()


def write_exports(folder, onnx_python):
    """Writes our SavedModel, TFLite and, where it can be made, ONNX files."""
    from efficientnet_advprop.models import EfficientNet
    from efficientnet_advprop.runtime.errors import RunError
    from efficientnet_advprop.serving import converters
    from efficientnet_advprop.serving.calibration_images import default_examples
    from efficientnet_advprop.serving.inference_network import InferenceNetwork
    from efficientnet_advprop.serving.saved_model import ServedNetwork, write_saved_model

    model = EfficientNet("b0", aux_branches=0)
    randomize(model.variables)
    network = InferenceNetwork(model, IMAGE_SIZE)
    file = default_examples(IMAGE_SIZE, "released").files[0]
    write_saved_model(
        ServedNetwork(network, "released"), os.path.join(folder, "saved_model"), {}, file
    )
    with open(os.path.join(folder, "model.tflite"), "wb") as tflite_file:
        tflite_file.write(converters.to_tflite(network))
    try:
        converters.to_onnx(network, os.path.join(folder, "model.onnx"), onnx_python)
    except RunError as error:
        print(f"Our ONNX export is left out: {error}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--onnx_python", default=sys.executable)
    parser.add_argument("--other_python", default=sys.executable)
    parser.add_argument("--tensorflow_python")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    batch_sizes, counts = (1, 16), (20, 2)
    with tempfile.TemporaryDirectory() as folder:
        write_exports(folder, arguments.onnx_python)
        saved_model, tflite_file, onnx_file = (
            os.path.join(folder, n) for n in ("saved_model", "model.tflite", "model.onnx")
        )
        other = arguments.other_python
        candidates = {
            REFERENCE: (sys.executable, "keras", "-"),
            f"{REFERENCE}, SavedModel": (sys.executable, "keras_saved_model", "-"),
            "ours, SavedModel": (sys.executable, "saved_model", saved_model),
            "ours, TFLite": (sys.executable, "tflite", tflite_file),
            "ours, ONNX Runtime": (other, "onnx", onnx_file),
            "ours, OpenVINO": (other, "openvino", onnx_file),
            "timm, ONNX Runtime": (other, "timm_onnx", "-"),
            "timm, PyTorch": (other, "timm", "-"),
        }
        if arguments.tensorflow_python:
            for name in OF_BOTH_STACKS:
                _, kind, path = candidates[name]
                candidates[f"{name}, other stack"] = (arguments.tensorflow_python, kind, path)
        contenders = {name: Contender(*what, batch_sizes) for name, what in candidates.items()}
    for _ in range(arguments.rounds):
        for index, count in enumerate(counts):
            for contender in contenders.values():
                contender.measure(index, count)
    for contender in contenders.values():
        contender.stop()
    print_table(contenders, batch_sizes[1])


def print_table(contenders, batch_size):
    import numpy as np

    reference = [np.median(seconds) for seconds in contenders[REFERENCE].seconds]
    print(
        f"{'EfficientNet-B0, 224 px':28} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6} {'images/s':>9}"
        f" {'ratio':>6}"
    )
    print(f"{'':28} {'batch 1':>24} {f'batch {batch_size}':>16}")
    for name, contender in contenders.items():
        if not any(contender.can):
            print(f"{name:28} not installed")
            continue
        one, many = contender.seconds
        text = (
            f"{name:28} {1e3 * np.median(one):8.1f} {1e3 * np.quantile(one, 0.99):8.1f}"
            f" {np.median(one) / reference[0]:6.2f}"
        )
        if many:
            text += f" {batch_size / np.median(many):9.1f} {reference[1] / np.median(many):6.2f}"
        print(text)
    for name in OF_BOTH_STACKS:
        other = contenders.get(f"{name}, other stack")
        if other is None:
            continue
        pairs = zip((1, batch_size), contenders[name].seconds, other.seconds)
        ratios = [
            f"batch {size} {np.median(theirs) / np.median(ours):5.3f} ×"
            for size, ours, theirs in pairs
            if ours and theirs
        ]
        print(f"{name}, time of the other stack by this one's: {', '.join(ratios) or 'cannot run'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve_timings(sys.argv[2], sys.argv[3], [int(size) for size in sys.argv[4:]])
    else:
        main()
