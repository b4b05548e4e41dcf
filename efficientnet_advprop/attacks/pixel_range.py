"""Between which values an attack may move a pixel: [0, 255], widened to where the clean pixel is.

    clipped = clip_to_pixel_range(adversarial_images, images)

Evaluation resizes by bicubic interpolation and, like the official code, hands the overshoots beside
sharp edges (below 0, above 255) to the network as they are. An attack that clipped to [0, 255]
would move such a pixel by more than ε, and by ε = 0 the image would change. Clipping the clean
images too would change the clean accuracy, which is held against the official one. So a pixel
outside of the range may stay where it is or move towards it, and never further out; of images in
[0, 255], which all training images are, this is the usual range.
"""

import tensorflow as tf


def pixel_range(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The lowest and the highest allowed value of each pixel.

    Args:
        images: the clean ones, float32.

    Returns:
        min(`images`, 0) and max(`images`, 255), of the images' shape.
    """
    return tf.minimum(images, 0.0), tf.maximum(images, 255.0)


def clip_to_pixel_range(adversarial_images: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """`adversarial_images`, clipped to the range of the clean `images`; float32, of one shape."""
    return tf.clip_by_value(adversarial_images, *pixel_range(images))
