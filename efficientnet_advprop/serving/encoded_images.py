"""Encoded image files to pixels inside a served graph, where one bad file must not fail
the batch it came in. JPEGs are decoded as clients decode them (examples/pixels.py), not
by the fast DCT of training and evaluation.

    images, errors = decode_batch(encoded, image_size=224, crop="released")

A TensorFlow decoder raises, and a raised error ends the whole request. A
`tf.data.Dataset` with `ignore_errors` instead yields nothing, which can be told: it is
the one way in which a graph alone can go on after a bad file.
"""

from typing import Union

import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.image_formats import (
    BMP_HEADER_BYTES,
    is_bmp,
    is_decodable,
    is_gif,
    is_jpeg,
    is_png,
)

# Of an image, before decoding: 8192 × 8192; decoded and as floats it takes a gigabyte.
MAX_PIXELS = 64 * 2**20
EMPTY = "empty: no bytes were sent"
UNKNOWN_FORMAT = (
    "unknown format: not a JPEG, PNG, GIF or BMP file (WebP, AVIF, HEIC and TIFF must be converted"
    " first)"
)
UNSUPPORTED_BMP = (
    "unsupported BMP: only 24 or 32 bits per pixel, without palette and compression; convert it"
)
TOO_LARGE = f"too large: more than {MAX_PIXELS} pixels"
DAMAGED = "damaged: the file cannot be decoded"

_HEADER_BYTES = 26  # reach to the sizes in the headers of PNG, GIF and BMP


def decode_batch(
    encoded: tf.Tensor, image_size: int, crop: Union[str, float], resize_method: str = "bicubic"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes, crops and resizes files, string [batch] (0 or more), each on its own.

    JPEG (also gray, CMYK, progressive), PNG (also gray, palette, 16-bit, alpha), GIF
    (its first frame) and BMP (24 or 32 bits without compression). Sixteen bits become
    eight; transparency is dropped, not blended; the orientation tag of cameras (EXIF)
    is not followed.

    Returns:
        Images, float32 [batch, image_size, image_size, 3] around 0…255, zeros where
        there was an error; and the errors, string [batch]: "" for a good file, else
        `EMPTY`, `UNKNOWN_FORMAT`, `UNSUPPORTED_BMP`, `TOO_LARGE` or `DAMAGED`.
    """
    shape = [image_size, image_size, 3]

    def refuse(reason):
        return lambda: (tf.zeros(shape), tf.constant(reason))

    def prepare(file):
        def accepted():
            image = preprocessing.preprocess_for_eval(
                file, image_size, crop, resize_method, exact_jpeg=True
            )
            return image, tf.constant("")

        is_other_bmp = (
            is_bmp(file)
            & (tf.strings.length(file) >= BMP_HEADER_BYTES)
            & tf.logical_not(is_decodable(file))
        )
        refused = [
            (_num_pixels(file) > MAX_PIXELS, refuse(TOO_LARGE)),
            (is_other_bmp, refuse(UNSUPPORTED_BMP)),
        ]
        return tf.case(refused, default=accepted)

    def attempt(file):
        failed = tf.data.Dataset.from_tensors(refuse(DAMAGED)())
        attempts = (
            tf.data.Dataset.from_tensors(file).map(prepare).ignore_errors().concatenate(failed)
        )
        image, error = attempts.take(1).get_single_element()
        return tf.ensure_shape(image, shape), tf.ensure_shape(error, [])

    def decode(file):
        return tf.case(
            [
                (tf.equal(tf.strings.length(file), 0), refuse(EMPTY)),
                (tf.logical_not(_is_known(file)), refuse(UNKNOWN_FORMAT)),
            ],
            default=lambda: attempt(file),
        )

    signature = (tf.TensorSpec(shape, tf.float32), tf.TensorSpec([], tf.string))
    return tf.map_fn(decode, encoded, fn_output_signature=signature, parallel_iterations=8)


def _is_known(file: tf.Tensor) -> tf.Tensor:
    return is_jpeg(file) | is_png(file) | is_gif(file) | is_bmp(file)


def _num_pixels(file: tf.Tensor) -> tf.Tensor:
    """Returns height × width by the header alone, int64; a damaged JPEG raises here."""
    padded = tf.strings.join([tf.strings.substr(file, 0, _HEADER_BYTES), b"\0" * _HEADER_BYTES])
    header = tf.strings.substr(padded, 0, _HEADER_BYTES)
    values = tf.cast(tf.io.decode_raw(header, tf.uint8), tf.int64)

    def number(start, size, big_endian=False):
        order = range(size - 1, -1, -1) if big_endian else range(size)
        return tf.reduce_sum(
            values[start : start + size] * tf.constant([256**power for power in order], tf.int64)
        )

    def of_bmp():
        height = number(22, 4)  # a negative one stands for rows from the top down
        return number(18, 4) * tf.minimum(height, 2**32 - height)

    def of_jpeg():
        return tf.reduce_prod(tf.image.extract_jpeg_shape(file, tf.int64)[:2])

    def of_png():
        return number(16, 4, big_endian=True) * number(20, 4, big_endian=True)

    def of_gif():
        return number(6, 2) * number(8, 2)

    known = [(is_jpeg(file), of_jpeg), (is_png(file), of_png), (is_gif(file), of_gif)]
    return tf.case(known, default=of_bmp)
