"""Which files are taken for images, and how each format is read: one answer for every
reader.

    is_image("photo.WebP")                       # by its name
    # bytes that TensorFlow decodes to the right pixels
    encoded = as_decodable(file_contents)
    encoded = as_decodable_in_graph(encoded)     # the same inside `Dataset.map`

TensorFlow's decoders say what the pixels of a JPEG, PNG or GIF are: for training,
evaluation, classification, calibration, and for `prepare`. BMP and WebP files are
turned into PNGs by Pillow first, without loss: TensorFlow reads the colours of a BMP
with a palette as its indices, and TensorFlow 2.15 has no WebP at all. All else is
refused by its name. What holds for each format: sixteen bits become the upper eight,
transparency is dropped (in a GIF such a pixel is black), the first picture of an
animation counts, and a camera's orientation tag (EXIF) is not followed.

A graph without Python, such as an exported one, takes what `is_decodable` says.
"""

import io
import os
import warnings

import tensorflow as tf
from PIL import Image

from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.runtime.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
_JPEG, _PNG, _GIF, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"
_CONVERTED = ("BMP", "WEBP")  # Pillow's names of the formats that become PNGs
# How a BMP looks that TensorFlow reads right: the size of its second header, at byte
# 14, is 40 or more; the bits per pixel, at byte 28, are 24 or 32; the kind of
# compression, at byte 30, is 0.
BMP_HEADER_BYTES = 34
# How a JPEG becomes pixels. The official code takes TensorFlow's default, the fast inverse
# DCT, which is off by a level or two in photographs, and by dozens at quality 100.
OFFICIAL_DCT, ACCURATE_DCT = "INTEGER_FAST", "INTEGER_ACCURATE"
_REFUSED = (
    "the image is no JPEG, PNG or GIF file, nor an uncompressed BMP file of 24 or 32 bits per pixel"
)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its suffix, and not if it
    is hidden.

    Files whose names begin with a dot are hidden: macOS keeps what belongs to `x.png`
    in `._x.png`.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether the last part of a path begins with a dot."""
    return os.path.basename(name.rstrip("/")).startswith(".")


def as_decodable(encoded: bytes) -> bytes:
    """Returns a file's bytes if TensorFlow decodes them to the right pixels, else the same
    image as a PNG.
    """
    if encoded.startswith((_JPEG, _PNG, _GIF)):
        return encoded
    if not encoded.startswith(_BMP) and encoded[8:12] != b"WEBP":
        raise DataError("it is no JPEG, PNG, GIF, BMP or WebP file")
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of the limit
            with Image.open(io.BytesIO(encoded), formats=_CONVERTED) as image:
                image.convert("RGB").save(buffer, "PNG", compress_level=1)
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise DataError(f"it has more than {limit:,} pixels, which is Pillow's limit") from error
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"it is damaged: {error}") from error
    return buffer.getvalue()


def as_decodable_in_graph(encoded: tf.Tensor) -> tf.Tensor:
    """Does `as_decodable` of a scalar string tensor; of a format that is not taken, running
    it is an `InvalidArgumentError`.

    Python is called for BMP and WebP files only.
    """

    def convert():
        return call_python(as_decodable, [encoded], converted=tf.TensorSpec([], tf.string))[0]

    return tf.cond(is_jpeg(encoded) | is_png(encoded) | is_gif(encoded), lambda: encoded, convert)


def read_file(path: str) -> bytes:
    """Reads an image file's bytes, as `as_decodable`.

    Args:
        path: local or remote.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        return as_decodable(file.read())


def decode(encoded: tf.Tensor, dct_method: str = ACCURATE_DCT) -> tf.Tensor:
    """Decodes any still image that `is_decodable` to uint8 [height, width, 3], RGB, in or
    out of a graph; a JPEG by default by the accurate DCT, as other libraries do.

    Another one, and a damaged one, is an `InvalidArgumentError`.
    """
    encoded = tf.convert_to_tensor(encoded)
    if tf.executing_eagerly() and not is_decodable(encoded):
        raise tf.errors.InvalidArgumentError(None, None, _REFUSED)

    def of_jpeg() -> tf.Tensor:
        return tf.io.decode_jpeg(encoded, channels=3, dct_method=dct_method)

    def of_other() -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.Assert(is_decodable(encoded), [_REFUSED])]):
            return tf.io.decode_image(tf.identity(encoded), channels=3, expand_animations=False)

    image = tf.cond(is_jpeg(encoded), of_jpeg, of_other)
    image.set_shape([None, None, 3])
    return image


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Tells a format by its first bytes, as a scalar bool; so do the others."""
    return _starts_with(encoded, _JPEG)


def is_png(encoded: tf.Tensor) -> tf.Tensor:
    return _starts_with(encoded, _PNG)


def is_gif(encoded: tf.Tensor) -> tf.Tensor:
    return _starts_with(encoded, _GIF)


def is_bmp(encoded: tf.Tensor) -> tf.Tensor:
    return _starts_with(encoded, _BMP)


def is_decodable(encoded: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow decodes files of this format to the right pixels; scalar bool.

    Args:
        encoded: scalar string, whole files' bytes; looked at are the first of them.
    """
    padded = tf.strings.join(
        [tf.strings.substr(encoded, 0, BMP_HEADER_BYTES), b"\0" * BMP_HEADER_BYTES]
    )
    header = tf.io.decode_raw(tf.strings.substr(padded, 0, BMP_HEADER_BYTES), tf.uint8)
    header = tf.cast(header, tf.int32)
    bits_per_pixel = header[28] + 256 * header[29]
    is_plain_bmp = (
        is_bmp(encoded)
        & (header[14] >= 40)
        & ((bits_per_pixel == 24) | (bits_per_pixel == 32))
        & tf.reduce_all(tf.equal(header[30:34], 0))
    )
    return is_jpeg(encoded) | is_png(encoded) | is_gif(encoded) | is_plain_bmp


def _starts_with(encoded: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)
