"""Classifies image files with an ONNX export.

    python examples/onnx_client.py served/b0/1 panda.jpg cat.png

It needs onnxruntime, numpy and Pillow.
"""

import argparse
import json
import os

import numpy as np
import onnxruntime
from pixels import load_as_told


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", help="a version's folder, with model.onnx and metadata.json")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    with open(os.path.join(arguments.export, "metadata.json"), encoding="utf-8") as file:
        settings = json.load(file)["input"]
    session = onnxruntime.InferenceSession(
        os.path.join(arguments.export, "model.onnx"), providers=["CPUExecutionProvider"]
    )
    images = np.stack([load_as_told(path, settings) for path in arguments.images])
    (probabilities,) = session.run(
        ["probabilities"], {"images": np.ascontiguousarray(np.transpose(images, [0, 3, 1, 2]))}
    )
    for path, row in zip(arguments.images, probabilities):
        print(
            f"{path}: "
            + ", ".join(f"class {index} {100 * row[index]:.1f} %" for index in np.argsort(-row)[:5])
        )


if __name__ == "__main__":
    main()
