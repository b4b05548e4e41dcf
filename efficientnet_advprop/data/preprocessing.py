"""From encoded bytes to the pixels that a network sees: the official evaluation and
training pre-processing, one image at a time.

    # float32 [224, 224, 3], bit-exact to the official code
    preprocess_for_eval(jpeg_bytes, image_size=224)
    # uint8 [224, 224, 3], a pure function of bytes and seed
    preprocess_for_train(jpeg_bytes, 224, seed=tf.constant([0, 1]))

Pixels are RGB in [0, 255]; the network normalises them. Everything here runs eagerly
and inside `Dataset.map`.
"""

import functools
from typing import Any, Callable, List, Optional, Sequence, Union

import tensorflow as tf

from efficientnet_advprop.data.image_formats import ACCURATE_DCT, OFFICIAL_DCT, decode

# (uint8 [h, w, 3], seed int [2]) → uint8 [h, w, 3]
Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

INCEPTION_AREA = (0.08, 1.0)
INCEPTION_ASPECT_RATIO = (3 / 4, 4 / 3)
_INCEPTION_ATTEMPTS = 10
V2_AREA, V2_ASPECT_RATIO = (0.05, 1.0), (0.75, 1.33)
# "bicubic" is what every network here was trained and evaluated with. "bilinear" is how
# the official export of EfficientNet-Lite and -EdgeTPU resizes: it never leaves 0…255,
# which suits 8 bits. The official trainer asks for it too, but its reader of TFRecords
# does not pass it on.
RESIZE_METHODS = {"bicubic": tf.raw_ops.ResizeBicubic, "bilinear": tf.raw_ops.ResizeBilinear}
# A `crop` of the evaluation alone: what torchvision's models are measured with, and
# RobustBench's.
TORCHVISION = "torchvision"
_TORCHVISION_FRACTION = 0.875  # 224 of 256 pixels
# EfficientNetV2's: bilinear with centres at half pixels. V2 cuts the centre out for small
# sizes and squashes the whole image to the square from 320 pixels on; V2_FT, of networks
# fine-tuned from ImageNet-21k, always squashes.
V2, V2_FT = "v2", "v2-ft"
_V2_SIZE_OF_WHOLE_IMAGES = 320  # pixels
_RELEASED_PADDING = 32  # pixels: at the checkpoints' release the crop was size / (size + 32)


def crop_fraction(image_size: int, crop: Union[str, float] = "released") -> float:
    """Returns the centre crop's side as a fraction of the image's shorter side.

    Args:
        image_size: pixels.
        crop: "released", image_size / (image_size + 32), with which the published
            accuracies were measured; `V2`, the same below 320 pixels, and `V2_FT`; or a
            number or its text, such as 0.875, which the official script has used for
            every model since November 2021.

    Raises:
        ValueError: `crop` is something else, or not in (0, 1].
    """
    if crop == V2_FT or (crop == V2 and image_size >= _V2_SIZE_OF_WHOLE_IMAGES):
        return 1.0
    if crop in ("released", V2):
        return image_size / (image_size + _RELEASED_PADDING)
    try:
        fraction = float(crop)
    except (TypeError, ValueError):
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise ValueError(
            f"`crop` is {crop!r}, but must be 'released', '{V2}', '{V2_FT}' or a fraction in"
            " (0, 1], such as 0.875."
        )
    if fraction < 1:
        # The official script rounds the padding to whole pixels first: 0.875 at 260
        # pixels is 260 / 297.
        return image_size / (image_size + round(image_size * (1 / fraction - 1)))
    return 1.0


def resize(image: tf.Tensor, image_size: int, method: str = "bicubic") -> tf.Tensor:
    """Resizes by TensorFlow's legacy kernels, as the official code does.

    Args:
        image: [height, width, 3], any numeric dtype.
        image_size: pixels of the result's sides.
        method: a key of `RESIZE_METHODS`.

    Returns:
        float32 [size, size, 3]; bicubic *not* clipped (it overshoots 0…255).
    """
    # From float: the kernel is 2.7 times as fast as from uint8, with the same result.
    images = tf.cast(image, tf.float32)[tf.newaxis]
    return RESIZE_METHODS[method](images=images, size=[image_size, image_size])[0]


def _decode_and_crop(
    encoded: tf.Tensor,
    window: Callable[[tf.Tensor], tf.Tensor],
    exact_jpeg: bool = False,
) -> tf.Tensor:
    """Decodes only `window(shape)` = [y, x, height, width] of a JPEG, by the official
    code's DCT; of another format, decodes all of it and cuts the window out.
    """

    def of_jpeg() -> tf.Tensor:
        shape = tf.image.extract_jpeg_shape(encoded)
        return tf.image.decode_and_crop_jpeg(
            encoded, window(shape), channels=3, dct_method=OFFICIAL_DCT
        )

    def of_other() -> tf.Tensor:
        image = decode(encoded)
        y, x, height, width = tf.unstack(window(tf.shape(image)))
        return tf.image.crop_to_bounding_box(image, y, x, height, width)

    # Cut off while it is decoded, a JPEG's colours are others along the edge.
    return of_other() if exact_jpeg else tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_other)


def _center_window(shape: tf.Tensor, fraction: float) -> tf.Tensor:
    height, width = shape[0], shape[1]
    side = tf.cast(fraction * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    side = tf.maximum(side, 1)  # of an image one pixel high or wide nothing would be left
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def preprocess_for_eval(
    encoded: tf.Tensor,
    image_size: int = 224,
    crop: Union[str, float] = "released",
    resize_method: str = "bicubic",
    exact_jpeg: bool = False,
) -> tf.Tensor:
    """Does the official evaluation pre-processing: centre crop of the shorter side, legacy
    resizing.

    Args:
        encoded: scalar string, the bytes of a JPEG (or PNG, GIF, BMP) file.
        image_size: pixels of the result's sides.
        crop: see `crop_fraction`; "none" takes the whole image and resizes only if it
            has another size; `TORCHVISION` resizes first and cuts then, by a method of
            its own, see `_resize_and_cut`; so do `V2` and `V2_FT`, see `_cut_for_v2`.
        resize_method: "bicubic", or "bilinear" as EfficientNet-Lite and -EdgeTPU are
            served; see `RESIZE_METHODS`.
        exact_jpeg: decode a JPEG as other libraries do, rather than as the official code
            does. With "none" and `TORCHVISION`, which are not its own, it always is.

    Returns:
        float32 [image_size, image_size, 3] around 0…255: bicubic unclipped, so it
        overshoots as the official code's does.
    """
    encoded = tf.convert_to_tensor(encoded)
    if crop == "none":
        return _fit(decode(encoded), image_size, resize_method)
    if crop == TORCHVISION:
        return _resize_and_cut(decode(encoded), image_size)
    if crop in (V2, V2_FT):
        image = decode(encoded, ACCURATE_DCT if exact_jpeg else OFFICIAL_DCT)
        return _cut_for_v2(image, image_size, crop)
    fraction = crop_fraction(image_size, crop)
    window = functools.partial(_center_window, fraction=fraction)
    image = _decode_and_crop(encoded, window, exact_jpeg)
    return tf.ensure_shape(resize(image, image_size, resize_method), [image_size, image_size, 3])


def _cut_for_v2(image: tf.Tensor, image_size: int, crop: str) -> tf.Tensor:
    """The centre of a small image, or all of it, resized bilinearly."""
    fraction = crop_fraction(image_size, crop)
    if fraction < 1:
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        shorter = tf.cast(tf.minimum(height, width), tf.float32)
        side = tf.maximum(tf.cast(fraction * shorter, tf.int32), 1)
        # Offsets are rounded down here, and up in the first EfficientNets.
        top, left = (height - side) // 2, (width - side) // 2
        image = tf.image.crop_to_bounding_box(image, top, left, side, side)
    return tf.image.resize(tf.cast(image, tf.float32), [image_size, image_size])


def _resize_and_cut(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Does torchvision's `Resize` (bilinear with antialiasing, as Pillow has it) of the
    shorter side to 8/7 of `image_size`, 256 for 224, and `CenterCrop`; up to one level of
    255 from Pillow's, which rounds between the two directions.
    """
    side = round(image_size / _TORCHVISION_FRACTION)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    shorter = tf.minimum(height, width)
    size = [side * height // shorter, side * width // shorter]
    resized = tf.image.resize(image, size, tf.image.ResizeMethod.BILINEAR, antialias=True)
    # Half a pixel is rounded to even here and there.
    top, left = (tf.cast(tf.round((edge - image_size) / 2), tf.int32) for edge in size)
    cut = tf.image.crop_to_bounding_box(resized, top, left, image_size, image_size)
    return tf.ensure_shape(tf.round(cut), [image_size, image_size, 3])


def _fit(image: tf.Tensor, image_size: int, method: str = "bicubic") -> tf.Tensor:
    """Resizes a whole image unless it has the size already: float32 [size, size, 3]."""
    fits = tf.reduce_all(tf.equal(tf.shape(image)[:2], image_size))
    fitted = tf.cond(
        fits, lambda: tf.cast(image, tf.float32), lambda: resize(image, image_size, method)
    )
    return tf.ensure_shape(fitted, [image_size, image_size, 3])


def inception_window(shape: tf.Tensor, seed: tf.Tensor, fallback_fraction: float) -> tf.Tensor:
    """Draws the official random crop: 8–100 % of the area, aspect 3/4–4/3, ten attempts, then
    the centre crop of the evaluation.

    Args:
        shape: int32 [3], height, width, channels of the image.
        seed: int [2].
        fallback_fraction: of the shorter side, for the centre crop. Like the official
            code, it is also taken when a draw happens to be the whole image.

    Returns:
        int32 [4]: y, x, height, width.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=INCEPTION_ASPECT_RATIO,
        area_range=INCEPTION_AREA,
        max_attempts=_INCEPTION_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    # The official test compares the channels too: a gray JPEG (one channel in the file,
    # three when decoded) never falls back.
    whole = tf.reduce_all(tf.equal(tf.stack([size[0], size[1], 3]), shape))
    return tf.where(whole, _center_window(shape, fallback_fraction), window)


def v2_window(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws EfficientNetV2's random crop: 5–100 % of the area, aspect 0.75–1.33.

    Args and returns: as `inception_window`.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=V2_ASPECT_RATIO,
        area_range=V2_AREA,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.stack([begin[0], begin[1], size[0], size[1]])


def preprocess_for_train(
    encoded: tf.Tensor,
    image_size: int = 224,
    *,
    augment: Optional[Augmentation] = None,
    **settings: Any,
) -> tf.Tensor:
    """Does the official training pre-processing: random crop, legacy bicubic, random flip,
    then `augment`; of one view, see `preprocess_views_for_train`.
    """
    return preprocess_views_for_train(
        encoded, image_size=image_size, augmentations=[augment], **settings
    )[0]


def preprocess_views_for_train(
    encoded: tf.Tensor,
    *,
    image_size: int,
    augmentations: Sequence[Optional[Augmentation]],
    seed: tf.Tensor,
    crop: str = "inception",
    crop_padding: int = 0,
    horizontal_flip: bool = True,
) -> List[tf.Tensor]:
    """Gives the same crop and flip of an image under each augmentation, decoded once;
    fine-grained AdvProp trains on two.

    The official code feeds float pixels when it does not augment and, when it does,
    clips and truncates to uint8 first. The same here, except that without augmentation
    the pixels are rounded to uint8, the form in which they travel to the device.

    Args:
        encoded: scalar string, the bytes of a JPEG (or PNG, GIF, BMP) file.
        image_size: pixels of the result's sides.
        augmentations: `(uint8 image, seed) -> uint8 image` of the same shape, or None.
        seed: int [2]; the result is a pure function of `encoded` and it.
        crop: "inception"; "v2", see `v2_window`, and bilinear; "pad", a random
            shift by up to `crop_padding` pixels of the whole image, black coming in;
            "none", the whole image.
        crop_padding: pixels.
        horizontal_flip: with probability 1/2.

    Returns:
        Of each uint8 [image_size, image_size, 3].
    """
    seed = tf.cast(seed, tf.int64)
    pixels = _train_pixels(encoded, image_size, seed, crop, crop_padding)
    flip_seed, own_seed = (seed + tf.constant([i, 0], tf.int64) for i in (1, 2))

    def view(augment: Optional[Augmentation]) -> tf.Tensor:
        image = tf.clip_by_value(pixels if augment is not None else tf.round(pixels), 0.0, 255.0)
        image = tf.cast(image, tf.uint8)
        if horizontal_flip:
            image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        return image if augment is None else augment(image, own_seed)

    return list(map(view, augmentations))


def _train_pixels(
    encoded: tf.Tensor, image_size: int, seed: tf.Tensor, crop: str, crop_padding: int
) -> tf.Tensor:
    """Returns the randomly cropped image before rounding: float32 [size, size, 3]."""
    encoded = tf.convert_to_tensor(encoded)
    if crop == "inception":
        window = functools.partial(
            inception_window, seed=seed, fallback_fraction=crop_fraction(image_size)
        )
        image = resize(_decode_and_crop(encoded, window), image_size)
    elif crop == V2:
        cut = _decode_and_crop(encoded, functools.partial(v2_window, seed=seed))
        image = tf.image.resize(tf.cast(cut, tf.float32), [image_size, image_size])
    elif crop in ("pad", "none"):
        image = _fit(decode(encoded), image_size)
        if crop == "pad" and crop_padding:
            shift = tf.random.stateless_uniform(
                [2], seed, minval=0, maxval=2 * crop_padding + 1, dtype=tf.int32
            )
            border = [crop_padding, crop_padding]
            padded = tf.pad(image, [border, border, [0, 0]])
            image = tf.slice(padded, [shift[0], shift[1], 0], [image_size, image_size, 3])
    else:
        raise ValueError(f"`crop` is {crop!r}, but must be 'inception', 'v2', 'pad' or 'none'.")
    return tf.ensure_shape(image, [image_size, image_size, 3])
