"""Between which values an attack may move a pixel: [0, 255], widened to where the clean
pixel is.

    clipped = clip_to_pixel_range(adversarial_images, images)

Evaluation resizes by bicubic interpolation and, like the official code, hands the
overshoots beside sharp edges (below 0, above 255) to the network as they are. An attack
that clipped to [0, 255] would move such a pixel by more than ε, and by ε = 0 the image
would change. Clipping the clean images too would change the clean accuracy, which is
held against the official one. So a pixel outside of the range may stay where it is or
move towards it, and never further out; of images in [0, 255], which all training images
are, this is the usual range.
"""

import tensorflow as tf

BLACK_AND_WHITE = (0.0, 255.0)


def pixel_range(
    images: tf.Tensor, black_and_white: tuple[float, float] = BLACK_AND_WHITE
) -> tuple[tf.Tensor, tf.Tensor]:
    """The lowest and the highest allowed value of each pixel.

    Args:
        images: the clean ones, float32.
        black_and_white: the values of black and white.

    Returns:
        min(`images`, black) and max(`images`, white), of the images' shape.
    """
    black, white = black_and_white
    return tf.minimum(images, black), tf.maximum(images, white)


def clip_to_pixel_range(
    adversarial_images: tf.Tensor,
    images: tf.Tensor,
    black_and_white: tuple[float, float] = BLACK_AND_WHITE,
) -> tf.Tensor:
    """`adversarial_images`, clipped to the range of the clean `images`; float32, of one
    shape.
    """
    return tf.clip_by_value(adversarial_images, *pixel_range(images, black_and_white))
