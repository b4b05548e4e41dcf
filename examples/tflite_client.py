"""Classifies image files with a TFLite export.

    python examples/tflite_client.py served/b0/1 panda.jpg cat.png

It needs tensorflow (for its interpreter), numpy and Pillow.
"""

import argparse
import json
import os

import numpy as np
import tensorflow as tf
from pixels import load_as_told


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", help="a version's folder, with model.tflite and metadata.json")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    with open(os.path.join(arguments.export, "metadata.json"), encoding="utf-8") as file:
        settings = json.load(file)["input"]
    interpreter = tf.lite.Interpreter(
        os.path.join(arguments.export, "model.tflite"), num_threads=os.cpu_count()
    )
    # Before a runner is made: this is where the fast kernels (XNNPACK) come in.
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    dtype = runner.get_input_details()["images"]["dtype"]
    for path in arguments.images:
        image = load_as_told(path, settings)
        if dtype == np.uint8:
            image = np.clip(np.round(image), 0, 255)
        (row,) = runner(images=image[None].astype(dtype))["probabilities"]
        print(
            f"{path}: "
            + ", ".join(f"class {index} {100 * row[index]:.1f} %" for index in np.argsort(-row)[:5])
        )


if __name__ == "__main__":
    main()
