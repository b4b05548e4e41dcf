"""Preprocesses images for TFLite and ONNX exports, which do not contain this step.

    # the export's metadata.json: image_size, crop, crop_fraction and resize
    settings = json.load(file)["input"]
    image = load_as_told("panda.jpg", settings)
    image = load_pixels("panda.jpg", image_size=224, crop_fraction=0.875, resize="bicubic")

It uses NumPy and Pillow, and computes what the served SavedModel computes. The filters
are TensorFlow's old ones: no half-pixel centres, no smoothing when they shrink, and a
cubic coefficient of −0.75. Pillow's own differ visibly and reduce accuracy.
"""

import argparse
import json
import os
import sys
from typing import Callable, Optional

import numpy as np
from PIL import Image

_TABLE_SIZE = 1024  # the filter is read from a table at this resolution


def classify_files(documentation: str, make_classifier: Callable) -> None:
    """Runs a client: prints the five best classes of every image file on the command line."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", help="a version's folder, with the model and metadata.json")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    try:
        with open(os.path.join(arguments.export, "metadata.json"), encoding="utf-8") as file:
            settings = json.load(file)["input"]
        classify = make_classifier(arguments.export)
        for path in arguments.images:
            row = classify(load_as_told(path, settings))
            best = (f"class {index} {100 * row[index]:.1f} %" for index in np.argsort(-row)[:5])
            print(f"{path}: {', '.join(best)}")
    except OSError as error:  # no such file, or no image
        sys.exit(f"error: {error}")


def load_as_told(path: str, settings: dict) -> np.ndarray:
    """Returns an image file as an export wants it; `settings`: "input" of its metadata."""
    crop = settings["crop"]
    if crop in ("v2", "v2-ft"):
        return load_pixels_for_v2(path, settings["image_size"], settings["crop_fraction"])
    if crop not in ("none", "released") and not str(crop).replace(".", "", 1).isdigit():
        raise SystemExit(
            f"error: the export's crop is {crop!r}, which this client cannot make; export with"
            " --format=saved_model, whose serving_default takes image files"
        )
    return load_pixels(
        path, settings["image_size"], settings["crop_fraction"], settings.get("resize", "bicubic")
    )


def load_pixels(
    path: str, image_size: int, crop_fraction: Optional[float], resize: str = "bicubic"
) -> np.ndarray:
    """Returns an image file as float32 [image_size, image_size, 3] around 0…255, RGB.

    Without a `crop_fraction`, the whole image is used; `resize`: "bicubic" or
    "bilinear".
    """
    with Image.open(path) as image:
        pixels = _to_rgb(image)
    if crop_fraction is not None:
        pixels = center_crop(pixels, crop_fraction)
    rows, columns = (_filter(size, image_size, resize) for size in pixels.shape[:2])
    resized = np.einsum("yi,ijc,xj->yxc", rows, pixels.astype(np.float32), columns, optimize=True)
    return resized.astype(np.float32)


def load_pixels_for_v2(path: str, image_size: int, crop_fraction: float) -> np.ndarray:
    """Returns an image file as EfficientNetV2 wants it: float32 [image_size, image_size, 3].

    The whole image is squashed, or the centre of it where `crop_fraction` is below 1;
    bilinear, and other than above between the centres of the pixels.
    """
    with Image.open(path) as image:
        pixels = _to_rgb(image)
    if crop_fraction < 1:
        height, width = pixels.shape[:2]
        side = max(1, int(np.float32(crop_fraction) * np.float32(min(height, width))))
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    rows, columns = (_filter(size, image_size, "bilinear", 0.5) for size in pixels.shape[:2])
    resized = np.einsum("yi,ijc,xj->yxc", rows, pixels.astype(np.float32), columns, optimize=True)
    return resized.astype(np.float32)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Returns uint8 [height, width, 3], as TensorFlow decodes it."""
    # Of 16-bit gray images, the upper eight bits are used; Pillow would clip them to
    # 255.
    if image.mode.startswith("I"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.format == "GIF":  # transparent pixels become black
        pixels = np.asarray(image.convert("RGBA"))
        return np.where(pixels[..., 3:] > 0, pixels[..., :3], 0).astype(np.uint8)
    return np.asarray(image.convert("RGB"))


def center_crop(pixels: np.ndarray, crop_fraction: float) -> np.ndarray:
    """Cuts out the centre square, `crop_fraction` of the shorter side."""
    height, width = pixels.shape[:2]
    side = max(1, int(np.float32(crop_fraction) * np.float32(min(height, width))))
    top = (height - side + 1) // 2
    left = (width - side + 1) // 2
    return pixels[top : top + side, left : left + side]


def _filter(size: int, new_size: int, method: str, centre: float = 0.0) -> np.ndarray:
    """Returns the weights [new_size, size] of the old pixels in each new pixel; a pixel's
    `centre` is at its edge (0) or in its middle (0.5).
    """
    numbers = np.arange(new_size, dtype=np.float32)
    positions = (numbers + centre) * np.float32(size / new_size) - np.float32(centre)
    first = np.floor(positions).astype(int)
    offsets = positions - first
    if method == "bilinear":
        neighbours = {0: 1 - offsets, 1: offsets}
    else:
        offsets = np.round(offsets * _TABLE_SIZE) / _TABLE_SIZE
        neighbours = {step: _cubic(np.abs(step - offsets)) for step in (-1, 0, 1, 2)}
    weights = np.zeros([new_size, size], np.float32)
    for step, values in neighbours.items():
        index = np.clip(first + step, 0, size - 1)  # beyond the edge, the edge
        np.add.at(weights, (np.arange(new_size), index), values)
    return weights


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
