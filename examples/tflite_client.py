"""Classifies image files with a TFLite export.

    python examples/tflite_client.py served/b0/1 panda.jpg cat.png

It needs tensorflow (for its interpreter), numpy and Pillow.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from pixels import classify_files


def make_classifier(export: str):
    """Returns a function of one image [size, size, 3] → probabilities [num_classes]."""
    path = os.path.join(export, "model.tflite")
    interpreter = tf.lite.Interpreter(path, num_threads=os.cpu_count())
    # Before a runner is made: this is where the fast kernels (XNNPACK) come in.
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    dtype = runner.get_input_details()["images"]["dtype"]

    def classify(image):
        if dtype == np.uint8:
            image = np.clip(np.round(image), 0, 255)
        return runner(images=image[None].astype(dtype))["probabilities"][0]

    return classify


if __name__ == "__main__":
    classify_files(__doc__, make_classifier)
