r"""Measures how fast exports of EfficientNet-B0 answer, relative to other implementations.

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

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import os
import sys
import tempfile

IMAGE_SIZE = 224
BATCH_SIZES, COUNTS = (1, 16), (20, 2)  # and the calls of each in a round
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


def work(kind, path):
    """Returns what `harness.serve` needs: which batches can be run, and what answers a request
    for so many runs of one of them by their seconds.
    """
    import numpy as np

    runs = []
    for batch_size in BATCH_SIZES:
        shape = [batch_size, IMAGE_SIZE, IMAGE_SIZE, 3]
        pixels = np.random.RandomState(0).uniform(0, 255, shape).astype(np.float32)
        try:
            runs.append(globals()[f"make_{kind}"](path, pixels))
        except ImportError:
            runs.append(None)
            continue
        for _ in range(3):
            runs[-1]()

    def measure(index, count):
        return [harness.seconds_of(runs[int(index)]) for _ in range(int(count))]

    return [run is not None for run in runs], measure


class Contender:
    """A worker and what it has measured, by batch."""

    def __init__(self, python, kind, path):
        self._worker = harness.Worker(python, "--worker", kind, path, is_quiet=True)
        self.can = self._worker.greeting or [False] * len(BATCH_SIZES)
        self.seconds = [[] for _ in BATCH_SIZES]

    def measure(self):
        for index, count in enumerate(COUNTS):
            if self.can[index]:
                self.seconds[index] += self._worker.ask(index, count)

    def stop(self):
        self._worker.stop()


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
    arguments = harness.parse(
        __doc__,
        onnx_python=(sys.executable, "Python of an environment with tf2onnx and onnxruntime"),
        other_python=(sys.executable, "of one with onnxruntime, openvino, torch or timm"),
        tensorflow_python=(None, "of another stack"),
        rounds=(10, f"of {COUNTS[0]} and {COUNTS[1]} calls of each"),
        worker=(None, "KIND FILE: runs that when asked", dict(nargs=2)),
    )
    if arguments.worker:
        harness.serve(lambda: work(*arguments.worker))
        return
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
        contenders = {name: Contender(*what) for name, what in candidates.items()}
    for _ in range(arguments.rounds):
        for contender in contenders.values():
            contender.measure()
    for contender in contenders.values():
        contender.stop()
    print_table(contenders)


def print_table(contenders):
    import numpy as np

    batch_size = BATCH_SIZES[1]
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
        pairs = zip(BATCH_SIZES, contenders[name].seconds, other.seconds)
        ratios = [
            f"batch {size} {np.median(theirs) / np.median(ours):5.3f} ×"
            for size, ours, theirs in pairs
            if ours and theirs
        ]
        print(f"{name}, time of the other stack by this one's: {', '.join(ratios) or 'cannot run'}")


if __name__ == "__main__":
    main()
