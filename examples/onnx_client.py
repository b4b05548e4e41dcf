"""Classifies image files with an ONNX export.

    python examples/onnx_client.py served/b0/1 panda.jpg cat.png

It needs onnxruntime, numpy and Pillow.
"""

import os

import numpy as np
import onnxruntime
from pixels import classify_files


def make_classifier(export: str):
    """Returns a function of one image [size, size, 3] → probabilities [num_classes]."""
    path = os.path.join(export, "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def classify(image):
        images = np.ascontiguousarray(np.transpose(image[None], [0, 3, 1, 2]))
        return session.run(["probabilities"], {"images": images})[0][0]

    return classify


if __name__ == "__main__":
    classify_files(__doc__, make_classifier)
