"""How fast EfficientNet-Lite0 answers as TFLite, in float32 and in whole numbers: the
reason why there is a Lite.

    # on an idle machine; 0.5 or less is the target
    python benchmarks/tflite.py
    python benchmarks/tflite.py --variant=edgetpu-S --calls=50

Median latency of one image, two threads, the two files taking turns so that a machine
that slows down slows both. Weights are random, biases included; the ranges are those of
noise.
"""

import argparse
import statistics
import time

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.serving import converters
from efficientnet_advprop.serving.inference_network import InferenceNetwork


def make_runner(contents: bytes, pixels: np.ndarray):
    """Returns a call of the file's network, of one image."""
    interpreter = tf.lite.Interpreter(model_content=contents, num_threads=2)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    dtype = runner.get_input_details()["images"]["dtype"]
    images = pixels[:1].astype(dtype)
    return lambda: (interpreter, runner(images=images))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="lite0")
    parser.add_argument("--calls", type=int, default=200)
    arguments = parser.parse_args()
    model = EfficientNet(arguments.variant, aux_branches=0)
    random = np.random.RandomState(0)
    for variable in model.variables:
        if variable.shape.rank == 1 and "variance" not in variable.name:
            variable.assign_add(random.normal(0.0, 0.1, variable.shape).astype(np.float32))
    size = model.image_size
    pixels = random.randint(0, 256, [8, size, size, 3]).astype(np.float32)
    folded = InferenceNetwork(model, size)
    runners = {
        quantization: make_runner(converters.to_tflite(folded, quantization, pixels), pixels)
        for quantization in ("none", "full_integer")
    }
    seconds = {quantization: [] for quantization in runners}
    for call in range(arguments.calls + 10):
        for quantization, run in runners.items():
            started = time.perf_counter()
            run()
            if call >= 10:  # after a few calls to warm up
                seconds[quantization].append(time.perf_counter() - started)
    medians = {quantization: statistics.median(times) for quantization, times in seconds.items()}
    for quantization, median in medians.items():
        print(f"{arguments.variant} {quantization:13s} {1000 * median:6.1f} ms")
    print(f"whole numbers take {medians['full_integer'] / medians['none']:.2f} of float32's time")


if __name__ == "__main__":
    main()
