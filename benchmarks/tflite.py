"""Measures how fast EfficientNet-Lite0 answers as TFLite, in float32 and in whole numbers:
the reason why there is a Lite.

    # on an idle machine; 0.5 or less is the target
    python benchmarks/tflite.py
    python benchmarks/tflite.py --variant=edgetpu-S --calls=50

Median latency of one image, two threads, the two files taking turns. Weights are random,
biases included; the ranges are those of noise.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import numpy as np
import tensorflow as tf
from inference import randomize

from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.serving import converters
from efficientnet_advprop.serving.inference_network import InferenceNetwork


def make_runner(contents: bytes, pixels: np.ndarray):
    """Returns a call of the file's network, of one image."""
    interpreter = tf.lite.Interpreter(model_content=contents, num_threads=2)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    images = pixels[:1].astype(runner.get_input_details()["images"]["dtype"])
    return lambda: (interpreter, runner(images=images))


def main():
    arguments = harness.parse(
        __doc__, variant=("lite0", "of EfficientNet"), calls=(200, "timed ones of each file")
    )
    model = EfficientNet(arguments.variant, aux_branches=0)
    randomize(model.variables)
    size = model.image_size
    pixels = np.random.RandomState(0).randint(0, 256, [8, size, size, 3]).astype(np.float32)
    folded = InferenceNetwork(model, size)
    runners = {
        quantization: make_runner(converters.to_tflite(folded, quantization, pixels), pixels)
        for quantization in ("none", "full_integer")
    }
    medians = harness.median_by_turns(runners, arguments.calls, warm_up=10)
    for quantization, median in medians.items():
        print(f"{arguments.variant} {quantization:13s} {1000 * median:6.1f} ms")
    print(f"whole numbers take {medians['full_integer'] / medians['none']:.2f} of float32's time")


if __name__ == "__main__":
    main()
