"""ImageNet-C's images made anew from clean ones, in worker processes.

    # (encoded image, position) → encoded image, in a graph
    change = corrupter("fog", severity=3, seed=0)

As the benchmark's generator does: shorter side to 256 pixels, centre crop of 224, the
corruption, JPEG of quality 85. The random draws follow from the seed and the image's
own bytes, wherever it lies. What differs from the official files stands with
`corruptions`. TensorFlow is imported only for the graph's function, so that the workers
do without.
"""

import io
import os
import zlib
from typing import Callable

import numpy as np
from joblib.externals import loky
from PIL import Image

from efficientnet_advprop.data import corruptions

IMAGE_SIZE = 224
_SHORTER_SIDE, _JPEG_QUALITY = 256, 85
_IDLE_SECONDS = 600  # after which a worker ends


def corrupt_encoded(encoded: bytes, corruption: str, severity: int, seed: int) -> bytes:
    """Returns the JPEG that the benchmark's generator would have made of an image file, up to
    `corruptions`' differences.

    Args:
        encoded: as `record_conversion.without_loss` gives it.
        corruption, severity, seed: see `corruptions.corrupt`.
    """
    with _open(encoded) as file:
        image = file.convert("RGB")
    scale = _SHORTER_SIDE / min(image.size)
    image = image.resize(
        [max(_SHORTER_SIDE, int(side * scale)) for side in image.size], Image.Resampling.BILINEAR
    )
    left, top = (int(round((side - IMAGE_SIZE) / 2)) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))
    buffer = io.BytesIO()
    corrupted = corruptions.corrupt(pixels, corruption, severity, seed=seed)
    Image.fromarray(corrupted).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _open(encoded: bytes) -> Image.Image:
    """Opens as Pillow does, but for its limit of pixels: all other readers decode such an
    image.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(io.BytesIO(encoded))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def corrupter(corruption: str, severity: int, seed: int) -> Callable:
    """Makes what `labeled_images.make_dataset(change=…)` takes; one process per CPU works."""
    import tensorflow as tf

    from efficientnet_advprop.data.python_calls import call_python
    from efficientnet_advprop.images.record_conversion import without_loss

    def corrupt_in_worker(encoded):
        own_seed = zlib.crc32(encoded, seed & 0xFFFFFFFF)
        # loky warns where idle workers end, as they do between test sets on a busy machine.
        workers = loky.get_reusable_executor(max_workers=os.cpu_count(), timeout=_IDLE_SECONDS)
        task = workers.submit(
            corrupt_encoded, without_loss(encoded), corruption, severity, own_seed
        )
        return task.result()

    def change(encoded, position):
        del position
        spec = tf.TensorSpec([], tf.string)
        return call_python(corrupt_in_worker, [encoded], corrupted=spec)[0]

    return change
