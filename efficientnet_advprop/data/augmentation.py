"""AutoAugment, RandAugment, Cutout, MixUp and CutMix: the official EfficientNet code's
operations, bit for bit, and its policies as data.

    # uint8 [h, w, 3] in and out; 15 degrees, gray (128) coming in
    rotated = OPS["Rotate"](image, 15.0)
    image = autoaugment(image, seed)                              # policy v0
    image = randaugment(image, seed, num_layers=2, magnitude=10)
    images, labels = mixup(images, one_hot_labels, seed, alpha=0.2)

Every random choice is a pure function of `seed`, int [2]. Only the chosen operation
runs.

What the official code did, rather than what it meant, is the default: Solarize's
threshold is a byte, so 256 is 0 and inverts everything; Posterize shifts by at most 7,
so 0 bits are 1, and a negative shift (more than 8 bits) wraps to that too; Contrast's
"mean" is the number of pixels / 256, whatever the picture shows. `MEANT_OPS` has these
three as they were meant.

Sources: AutoAugment, arXiv 1805.09501; RandAugment, 1909.13719; Cutout, 1708.04552;
MixUp, 1710.09412; CutMix, 1905.04899; behaviour: `autoaugment.py` of the official
EfficientNet repository, under TensorFlow 1.15 and NumPy 1.18.
"""

from typing import Callable, Dict, Mapping, Sequence, Tuple, Union

import numpy as np
import tensorflow as tf

Number = Union[int, float, tf.Tensor]
# Sub-policies of (operation, probability, level), applied in turn.
Policy = Sequence[Sequence[Tuple[str, float, float]]]

_MAX_LEVEL = 10.0
_FILL = 128  # gray, for what a geometric operation or Cutout leaves empty

AUTOAUGMENT_V0: Policy = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)
RANDAUGMENT_OPS = tuple(
    "AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast Brightness Sharpness"
    " ShearX ShearY TranslateX TranslateY Cutout SolarizeAdd".split()
)
# What the strongest level, 10, means in pixels, which differs between the two methods.
AUTOAUGMENT_PIXELS = {"Cutout": 100, "Translate": 250}
RANDAUGMENT_PIXELS = {"Cutout": 40, "Translate": 100}
# Either sign with probability 1/2.
_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def level_to_argument(name: str, level: float, pixels: Mapping[str, float]) -> float:
    """Returns the number that an operation takes at a level; 0 for those that take none."""
    strength = level / _MAX_LEVEL
    return {
        "Rotate": lambda: strength * 30.0,  # degrees
        "Posterize": lambda: int(strength * 4),  # bits
        "Solarize": lambda: int(strength * 256),  # threshold
        "SolarizeAdd": lambda: int(strength * 110),
        "Color": lambda: strength * 1.8 + 0.1,
        "Contrast": lambda: strength * 1.8 + 0.1,
        "Brightness": lambda: strength * 1.8 + 0.1,
        "Sharpness": lambda: strength * 1.8 + 0.1,
        "ShearX": lambda: strength * 0.3,
        "ShearY": lambda: strength * 0.3,
        "TranslateX": lambda: strength * pixels["Translate"],  # pixels
        "TranslateY": lambda: strength * pixels["Translate"],
        "Cutout": lambda: int(strength * pixels["Cutout"]),  # pixels: half the square's side
    }.get(name, lambda: 0)()


# The operations. Each takes uint8 [h, w, 3] and returns the same. Most work on rows of
# 3·w numbers: TensorFlow's CPU kernels are several times slower where a broadcast or a
# reduction has only the three channels to vectorise over, and `tf.where` on bytes is
# slower still, hence the masks.


def _rows(image: tf.Tensor) -> tf.Tensor:
    """Returns [h, w, 3] as [h, 3·w]."""
    shape = tf.shape(image)
    return tf.ensure_shape(
        tf.reshape(image, [shape[0], 3 * shape[1]]),
        [image.shape[0], None if image.shape[1] is None else 3 * image.shape[1]],
    )


def _per_row(image: tf.Tensor, of_channel: tf.Tensor) -> tf.Tensor:
    """Repeats [3] to [3·w]."""
    return tf.tile(of_channel, [tf.shape(image)[1]])


def _mask(condition: tf.Tensor) -> tf.Tensor:
    return tf.cast(condition, tf.uint8)


def _to_bytes(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


def _blend(degenerate: tf.Tensor, image: tf.Tensor, factor: Number) -> tf.Tensor:
    """Returns degenerate + factor · (image − degenerate), both float32."""
    return _to_bytes(degenerate + tf.cast(factor, tf.float32) * (image - degenerate))


def _auto_contrast(image: tf.Tensor) -> tf.Tensor:
    rows = tf.cast(_rows(image), tf.float32)  # of which the extremes are found faster than of bytes
    low = tf.reduce_min(tf.reshape(tf.reduce_min(rows, axis=0), [-1, 3]), axis=0)
    high = tf.reduce_max(tf.reshape(tf.reduce_max(rows, axis=0), [-1, 3]), axis=0)
    is_flat = high <= low
    scale = tf.where(is_flat, 1.0, 255.0 / tf.where(is_flat, 1.0, high - low))
    offset = tf.where(is_flat, 0.0, -low * scale)
    return tf.reshape(
        _to_bytes(rows * _per_row(image, scale) + _per_row(image, offset)), tf.shape(image)
    )


def _equalize(image: tf.Tensor) -> tf.Tensor:
    # One table of 3 · 256 entries for all channels.
    indices = tf.reshape(
        tf.cast(_rows(image), tf.int32) + _per_row(image, tf.constant([0, 256, 512])), [-1]
    )
    histogram = tf.reshape(
        tf.raw_ops.Bincount(arr=indices, size=768, weights=tf.constant([], tf.int32)), [3, 256]
    )
    num_darker = tf.cumsum(histogram, axis=1, exclusive=True)
    # All pixels but the brightest ones.
    is_there = num_darker < tf.shape(image)[0] * tf.shape(image)[1]
    step = tf.reduce_max(tf.where(is_there, num_darker, 0), axis=1, keepdims=True) // 255
    divisor = tf.maximum(step, 1)
    table = tf.minimum((num_darker + divisor // 2) // divisor, 255)
    table = tf.where(step == 0, tf.range(256), table)
    # `gather_nd` looks single numbers up in two thirds of the time of `gather`.
    return tf.reshape(
        tf.gather_nd(tf.reshape(tf.cast(table, tf.uint8), [-1]), indices[:, tf.newaxis]),
        tf.shape(image),
    )


def _invert(image: tf.Tensor) -> tf.Tensor:
    return 255 - image


def _posterize(image: tf.Tensor, bits: Number) -> tf.Tensor:
    shift = 8 - tf.cast(bits, tf.int32)
    return _keep_bits(image, tf.where(shift < 0, 7, tf.minimum(shift, 7)))


def _posterize_as_meant(image: tf.Tensor, bits: Number) -> tf.Tensor:
    return _keep_bits(image, 8 - tf.clip_by_value(tf.cast(bits, tf.int32), 0, 8))


def _keep_bits(image: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(
        image, tf.cast((256 - tf.bitwise.left_shift(1, shift)) % 256, tf.uint8)
    )


def _solarize(image: tf.Tensor, threshold: Number) -> tf.Tensor:
    return _solarize_as_meant(image, tf.cast(threshold, tf.int32) % 256)


def _solarize_as_meant(image: tf.Tensor, threshold: Number) -> tf.Tensor:
    # From the threshold on 255 − x, which for a byte is x with every bit flipped.
    threshold = tf.cast(threshold, tf.int32)
    is_bright = _mask(image >= tf.cast(tf.clip_by_value(threshold, 0, 255), tf.uint8))
    flip = tf.where(threshold > 255, tf.constant(0, tf.uint8), tf.constant(255, tf.uint8))
    return tf.bitwise.bitwise_xor(image, is_bright * flip)


def _solarize_add(image: tf.Tensor, addition: Number) -> tf.Tensor:
    addition = tf.cast(tf.clip_by_value(tf.cast(addition, tf.int32), 0, 255), tf.uint8)
    possible = tf.minimum(addition, 255 - image)
    return image + _mask(image < 128) * possible


def _gray(image: tf.Tensor) -> tf.Tensor:
    """Does `tf.image.rgb_to_grayscale`, to float32 [h, w] of whole numbers, in half its time."""
    pixels = tf.cast(image, tf.float32) * np.float32(1 / 255)
    gray = (
        pixels[..., 0] * np.float32(0.2989)
        + pixels[..., 1] * np.float32(0.5870)
        + pixels[..., 2] * np.float32(0.1140)
    )
    return tf.floor(gray * 255.5)


def _color(image: tf.Tensor, factor: Number) -> tf.Tensor:
    # A product with ones spreads the gray over the channels faster than a broadcast
    # does.
    gray = tf.reshape(
        tf.matmul(tf.reshape(_gray(image), [-1, 1]), tf.ones([1, 3])), tf.shape(image)
    )
    return _blend(gray, tf.cast(image, tf.float32), factor)


def _contrast(image: tf.Tensor, factor: Number) -> tf.Tensor:
    num_pixels = tf.cast(tf.shape(image)[0] * tf.shape(image)[1], tf.float32)
    return _blend(
        tf.floor(tf.minimum(num_pixels / 256.0, 255.0)), tf.cast(image, tf.float32), factor
    )


def _contrast_as_meant(image: tf.Tensor, factor: Number) -> tf.Tensor:
    return _blend(tf.floor(tf.reduce_mean(_gray(image)) + 0.5), tf.cast(image, tf.float32), factor)


def _brightness(image: tf.Tensor, factor: Number) -> tf.Tensor:
    return _blend(tf.constant(0.0), tf.cast(image, tf.float32), factor)


def _sharpness(image: tf.Tensor, factor: Number) -> tf.Tensor:
    # The kernel 1 1 1, 1 5 1, 1 1 1 over 13, added up in the order of the official
    # convolution: a convolution of today's TensorFlow adds otherwise, and where the sum
    # is a whole number the rounding decides which level it is cut to.
    pixels = tf.cast(image, tf.float32)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    outer = pixels * np.float32(1 / np.float32(13))
    center = pixels * np.float32(np.float32(5) / np.float32(13))
    total = None
    for y in range(3):
        for x in range(3):
            term = (center if y == x == 1 else outer)[y : height - 2 + y, x : width - 2 + x]
            total = term if total is None else total + term
    smooth = tf.floor(tf.clip_by_value(total, 0.0, 255.0))
    # The border stays as it is, whatever the factor.
    middle = _blend(smooth, pixels[1:-1, 1:-1], factor)
    middle = tf.concat([image[1:-1, :1], middle, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], middle, image[-1:]], axis=0)


def _nearest(positions: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Returns the pixel nearest to a position, halves away from zero as the official kernel
    rounds; −1 and `length` are outside.
    """
    # The largest number below 1/2: 1/2 itself would make 1 of the largest position
    # below it. Clipping comes first, or TensorFlow's optimizer adds the constant to an
    # earlier one.
    return tf.floor(
        tf.clip_by_value(positions, -1.0, length) + np.nextafter(np.float32(0.5), np.float32(0.0))
    )


def _look_up(image: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns image[nearest(y), nearest(x)], gray outside; y and x are float32 that
    broadcast to [h, w].

    The same as the kernel behind `tfa.image.transform` on an image with a fourth
    channel of ones, in a sixth of its time.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    # Gray above, below and between the end of a row and the beginning of the next.
    rows = tf.concat([_rows(image), _gray_bytes([height, 3])], axis=1)
    pixels = tf.concat(
        [_gray_bytes([3 * (width + 2)]), tf.reshape(rows, [-1]), _gray_bytes([3 * (width + 1)])],
        axis=0,
    )
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    indices = (_nearest(y, height) * (width + 1.0) + (width + 2.0)) + _nearest(x, width)
    # `gather_nd` takes two thirds of the time of `gather`.
    found = tf.gather_nd(
        tf.reshape(pixels, [-1, 3]), tf.reshape(tf.cast(indices, tf.int32), [-1, 1])
    )
    return tf.reshape(found, tf.shape(image))


def _gray_bytes(shape: Sequence[Number]) -> tf.Tensor:
    return tf.fill(shape, tf.constant(_FILL, tf.uint8))


def _positions(image: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
    """Returns y [h, 1] and x [1, w]."""
    y, x = tf.range(tf.shape(image)[0]), tf.range(tf.shape(image)[1])
    return tf.cast(y, tf.float32)[:, tf.newaxis], tf.cast(x, tf.float32)[tf.newaxis]


def _rotate(image: tf.Tensor, degrees: Number) -> tf.Tensor:
    angle = tf.cast(degrees, tf.float32) * np.float32(np.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    width, height = (tf.cast(tf.shape(image)[axis] - 1, tf.float32) for axis in (1, 0))
    x_offset = (width - (cos * width - sin * height)) / 2.0
    y_offset = (height - (sin * width + cos * height)) / 2.0
    y, x = _positions(image)
    return _look_up(image, (sin * x + cos * y) + y_offset, (cos * x + -sin * y) + x_offset)


def _moved(source: Callable) -> Callable:
    """Makes the operation that takes each pixel from `source(y, x, level)`."""
    return lambda image, level: _look_up(
        image, *source(*_positions(image), tf.cast(level, tf.float32))
    )


OPS: Dict[str, Callable] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _moved(lambda y, x, level: (y, x + level * y)),
    "ShearY": _moved(lambda y, x, level: (level * x + y, x)),
    "TranslateX": _moved(lambda y, x, pixels: (y, x + pixels)),
    "TranslateY": _moved(lambda y, x, pixels: (y + pixels, x)),
}
MEANT_OPS: Dict[str, Callable] = {
    **OPS,
    "Solarize": _solarize_as_meant,
    "Posterize": _posterize_as_meant,
    "Contrast": _contrast_as_meant,
}
_WITHOUT_ARGUMENT = ("AutoContrast", "Equalize", "Invert")


def cutout(image: tf.Tensor, half_size: Number, seed: tf.Tensor) -> tf.Tensor:
    """Grays a square of 2·`half_size` pixels, whose centre is uniform over the image and which
    its borders cut; uint8 [h, w, 3], `seed` int [2].
    """
    return _cutout_at(image, half_size, tf.random.stateless_uniform([2], seed))


def _cutout_at(image: tf.Tensor, half_size: Number, uniform: tf.Tensor) -> tf.Tensor:
    half_size = tf.cast(half_size, tf.int32)

    def span(length: tf.Tensor, uniform: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
        center = tf.cast(uniform * tf.cast(length, tf.float32), tf.int32)
        return tf.maximum(center - half_size, 0), tf.minimum(center + half_size, length)

    top, bottom = span(tf.shape(image)[0], uniform[0])
    left, right = span(tf.shape(image)[1], uniform[1])
    return _paste(_gray_bytes([bottom - top, right - left, 3]), image, top, left)


def _paste(patch: tf.Tensor, image: tf.Tensor, top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
    """Replaces a patch of an image [h, w, 3], by copies of whole rows rather than a mask."""
    bottom, right = top + tf.shape(patch)[0], left + tf.shape(patch)[1]
    middle = tf.concat([image[top:bottom, :left], patch, image[top:bottom, right:]], axis=1)
    return tf.ensure_shape(tf.concat([image[:top], middle, image[bottom:]], axis=0), image.shape)


def _apply_chosen(
    names: Sequence[str],
    ops: Dict[str, Callable],
    image: tf.Tensor,
    choice: tf.Tensor,
    argument: tf.Tensor,
    is_signed: tf.Tensor,
    draws: tf.Tensor,
) -> tf.Tensor:
    """Runs the operation names[choice], and no other; `choice` len(names) leaves the image.

    Of the four uniform `draws` the second decides the sign, the last are for Cutout.
    """
    argument = tf.where(tf.logical_and(is_signed, draws[1] < 0.5), -argument, argument)

    def branch(name: str) -> Callable[[], tf.Tensor]:
        if name == "Cutout":
            return lambda: _cutout_at(image, argument, draws[2:])
        if name in _WITHOUT_ARGUMENT:
            return lambda: ops[name](image)
        return lambda: ops[name](image, argument)

    return tf.ensure_shape(
        tf.switch_case(choice, [branch(name) for name in names] + [lambda: image]), image.shape
    )


def autoaugment(
    image: tf.Tensor,
    seed: tf.Tensor,
    policy: Policy = AUTOAUGMENT_V0,
    *,
    ops: Dict[str, Callable] = OPS,
) -> tf.Tensor:
    """Applies one sub-policy, drawn uniformly; each of its operations with its probability.

    Args:
        image: uint8 [h, w, 3], as the result.
        seed: int [2].
        policy: sub-policies of equal length.
        ops: `OPS` or `MEANT_OPS`.
    """
    names = sorted({name for sub_policy in policy for name, _, _ in sub_policy})
    length = len(policy[0])

    def row(name: str, probability: float, level: float) -> Tuple[float, ...]:
        argument = level_to_argument(name, level, AUTOAUGMENT_PIXELS)
        return names.index(name), probability, argument, name in _SIGNED

    table = tf.constant([[row(*step) for step in steps] for steps in policy], tf.float32)
    uniform = tf.random.stateless_uniform([1 + 4 * length], seed)
    chosen = table[tf.cast(uniform[0] * len(policy), tf.int32)]
    for step in range(length):
        draws = uniform[1 + 4 * step : 5 + 4 * step]
        choice = tf.where(
            draws[0] < chosen[step, 1], tf.cast(chosen[step, 0], tf.int32), len(names)
        )
        _, _, argument, is_signed = tf.unstack(chosen[step])
        image = _apply_chosen(names, ops, image, choice, argument, is_signed > 0, draws)
    return image


def randaugment(
    image: tf.Tensor,
    seed: tf.Tensor,
    num_layers: int,
    magnitude: float,
    *,
    ops: Dict[str, Callable] = OPS,
) -> tf.Tensor:
    """Applies `num_layers` operations (usually 1…3) in turn, each drawn uniformly from
    `RANDAUGMENT_OPS`, at one level, `magnitude` (usually 5…30); the rest as `autoaugment`.
    """
    names = RANDAUGMENT_OPS

    def row(name: str) -> Tuple[float, ...]:
        return level_to_argument(name, float(magnitude), RANDAUGMENT_PIXELS), name in _SIGNED

    table = tf.constant(list(map(row, names)), tf.float32)
    uniform = tf.random.stateless_uniform([4 * num_layers], seed)
    for layer in range(num_layers):
        draws = uniform[4 * layer : 4 * layer + 4]
        choice = tf.cast(draws[0] * len(names), tf.int32)
        argument, is_signed = tf.unstack(table[choice])
        image = _apply_chosen(names, ops, image, choice, argument, is_signed > 0, draws)
    return image


def mixup(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, alpha: float
) -> Tuple[tf.Tensor, tf.Tensor]:
    """Mixes each image with one of the same batch read backwards, as the official code
    pairs them; its own share is ≥ 1/2, from Beta(α, α).

    Args:
        images: [batch, h, w, 3], 0…255, of any numeric dtype.
        labels: [batch, num_classes], one-hot or soft.
        seed: int [2].
        alpha: > 0.

    Returns:
        Images of the same shape and dtype (whole numbers are rounded) and labels as
        float32.
    """
    images = tf.convert_to_tensor(images)
    share = _beta(tf.shape(images)[:1], seed, alpha)
    share = tf.maximum(share, 1.0 - share)

    # Image by image: what a whole batch takes in floating point is in no processor's
    # cache.
    def mix(image: tf.Tensor, partner: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        mixed = tf.cast(image, tf.float32) * share + tf.cast(partner, tf.float32) * (1.0 - share)
        return tf.cast(tf.round(mixed) if images.dtype.is_integer else mixed, images.dtype)

    mixed = tf.map_fn(
        lambda parts: mix(*parts),
        (images, _backwards(images), share),
        fn_output_signature=images.dtype,
    )
    return tf.ensure_shape(mixed, images.shape), _mix_labels(labels, 1.0 - share)


def cutmix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, alpha: float
) -> Tuple[tf.Tensor, tf.Tensor]:
    """Pastes into each image a box of one of the same batch read backwards; the labels are
    mixed by area.

    The box has the image's aspect and a share of 1 − Beta(α, α) of its area, before the
    borders cut it; its centre is uniform.

    Args and returns: as `mixup`.
    """
    images = tf.convert_to_tensor(images)
    batch, size = tf.shape(images)[:1], tf.shape(images)[1:3]
    side = tf.sqrt(1.0 - _beta(batch, seed, alpha))
    centers = tf.random.stateless_uniform([2, batch[0]], seed + tf.constant([2, 0], seed.dtype))

    def span(length: tf.Tensor, center: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
        length = tf.cast(length, tf.float32)
        center, half = tf.floor(center * length), tf.floor(side * length) / 2.0
        ends = (
            tf.clip_by_value(tf.floor(end), 0.0, length) for end in (center - half, center + half)
        )
        return tuple(tf.cast(end, tf.int32) for end in ends)

    (top, bottom), (left, right) = span(size[0], centers[0]), span(size[1], centers[1])

    def paste(image, partner, top, bottom, left, right):
        return _paste(partner[top:bottom, left:right], image, top, left)

    mixed = tf.map_fn(
        lambda parts: paste(*parts),
        (images, _backwards(images), top, bottom, left, right),
        fn_output_signature=images.dtype,
    )
    pasted = tf.cast((bottom - top) * (right - left), tf.float32) / tf.cast(
        size[0] * size[1], tf.float32
    )
    return tf.ensure_shape(mixed, images.shape), _mix_labels(labels, pasted)


def mix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, mixup_alpha: float, cutmix_alpha: float
) -> Tuple[tf.Tensor, tf.Tensor]:
    """Does `mixup` where only its α is positive, `cutmix` where only its is; with both, as
    in the official code, the first half of the batch by MixUp and the second by CutMix.

    Args and returns: as `mixup`.
    """
    if not cutmix_alpha:
        return mixup(images, labels, seed, mixup_alpha)
    if not mixup_alpha:
        return cutmix(images, labels, seed, cutmix_alpha)
    half = images.shape[0] // 2
    first = mixup(images[:half], labels[:half], seed, mixup_alpha)
    other_seed = seed + tf.constant([3, 0], seed.dtype)
    second = cutmix(images[half:], labels[half:], other_seed, cutmix_alpha)
    return tuple(tf.concat(parts, axis=0) for parts in zip(first, second))


def _backwards(images: tf.Tensor) -> tf.Tensor:
    # As a slice, `[::-1]`, it takes TensorFlow 2 ms for each image of 224 pixels.
    return tf.gather(images, tf.range(tf.shape(images)[0])[::-1])


def _mix_labels(labels: tf.Tensor, share_of_partner: tf.Tensor) -> tf.Tensor:
    labels, share = tf.cast(labels, tf.float32), share_of_partner[:, tf.newaxis]
    return labels * (1.0 - share) + labels[::-1] * share


def _beta(shape: tf.Tensor, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draws from Beta(α, α): of two Gamma draws, the first's share."""
    first = tf.random.stateless_gamma(shape, seed, alpha)
    second = tf.random.stateless_gamma(shape, seed + tf.constant([1, 0], seed.dtype), alpha)
    # For a tiny α both may be too small for a float32.
    return tf.math.divide_no_nan(first, first + second)
