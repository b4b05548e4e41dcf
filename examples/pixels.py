"""Preprocesses images for TFLite and ONNX exports, which do not contain this step.

Usage:

    # both values are in the export's metadata.json
    image = load_pixels("panda.jpg", image_size=224, crop_fraction=0.875)

It uses NumPy and Pillow, and computes what the network was evaluated with. The cubic
filter is TensorFlow's old one: coefficient −0.75, no half-pixel centres, no smoothing
when it shrinks. Pillow's own bicubic filter differs visibly and reduces accuracy.
"""

from typing import Optional

import numpy as np
from PIL import Image

_TABLE_SIZE = 1024  # the filter is read from a table at this resolution


def load_pixels(path: str, image_size: int, crop_fraction: Optional[float]) -> np.ndarray:
    """An image file as float32 [image_size, image_size, 3] around 0…255, RGB.

    Without a `crop_fraction`, the whole image is used.
    """
    with Image.open(path) as image:
        pixels = _to_rgb(image)
    return resize(
        pixels if crop_fraction is None else center_crop(pixels, crop_fraction), image_size
    )


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3], as TensorFlow decodes it."""
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
    """The centre square, `crop_fraction` of the shorter side."""
    height, width = pixels.shape[:2]
    side = max(1, int(np.float32(crop_fraction) * np.float32(min(height, width))))
    top = (height - side + 1) // 2
    left = (width - side + 1) // 2
    return pixels[top : top + side, left : left + side]


def resize(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes an image to a square by bicubic interpolation; float32."""
    rows, columns = (_filter(size, image_size) for size in pixels.shape[:2])
    return np.einsum(
        "yi,ijc,xj->yxc", rows, pixels.astype(np.float32), columns, optimize=True
    ).astype(np.float32)


def _filter(size: int, new_size: int) -> np.ndarray:
    """The weights [new_size, size] of the old pixels in each new pixel."""
    positions = np.arange(new_size, dtype=np.float32) * np.float32(size / new_size)
    first = positions.astype(int)
    offsets = np.round((positions - first) * _TABLE_SIZE) / _TABLE_SIZE
    weights = np.zeros([new_size, size], np.float32)
    for neighbour in (-1, 0, 1, 2):
        index = np.clip(first + neighbour, 0, size - 1)  # beyond the edge, the edge
        np.add.at(weights, (np.arange(new_size), index), _cubic(np.abs(neighbour - offsets)))
    return weights


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
