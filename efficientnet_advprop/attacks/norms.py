"""The balls that an attack may search: L∞ and L2 around an image, cut to the pixel
range, in pixels of 255.
"""

import math

import tensorflow as tf

from efficientnet_advprop.runtime.errors import AttackError, require_choice
from tpu_utils import randomness

BLACK_AND_WHITE = (0.0, 255.0)
HIGHEST_PIXEL = 255.0
_TINY = 1e-12  # keeps a quotient of lengths finite


def pixel_range(images: tf.Tensor, black_and_white=BLACK_AND_WHITE) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the lowest and highest allowed values of each pixel of the clean images.

    These are black and white, but a clean pixel outside of them may stay where it is or move
    towards them.
    """
    # Evaluation resizes by bicubic interpolation and, like the official code, hands the
    # overshoots beside sharp edges to the network. Clipping an attack to [0, 255] would move
    # such a pixel by more than ε; clipping the clean images would change the clean accuracy,
    # which is held against the official one.
    black, white = black_and_white
    return tf.minimum(images, black), tf.maximum(images, white)


def clip_to_pixel_range(
    adversarial_images: tf.Tensor, images: tf.Tensor, black_and_white=BLACK_AND_WHITE
) -> tf.Tensor:
    """Clips to the `pixel_range` of the clean `images`."""
    return tf.clip_by_value(adversarial_images, *pixel_range(images, black_and_white))


def per_image(values: tf.Tensor) -> tf.Tensor:
    """Reshapes [batch] to [batch, 1, 1, 1], to broadcast over images."""
    return values[:, None, None, None]


def where_per_image(condition: tf.Tensor, images: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Returns `tf.where` of a condition [batch] and tensors [batch, …] of one shape."""
    # `tf.where` would broadcast the condition: on a CPU five times as slow.
    return tf.raw_ops.Select(condition=condition, x=images, y=others)


class Linf:
    """The largest difference of any pixel value; differences and gradients are float32
    [batch, height, width, channels].
    """

    name = "linf"

    def length(self, differences: tf.Tensor) -> tf.Tensor:
        """Returns the norm of each image's difference, float32 [batch]."""
        return tf.reduce_max(tf.abs(differences), [1, 2, 3])

    def dual_length(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns by how much a linear function rises along `steepest`, float32 [batch]."""
        return tf.reduce_sum(tf.abs(gradients), [1, 2, 3])

    def steepest(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns the step of length 1 along which a function of these gradients rises fastest."""
        return tf.sign(gradients)

    def speeds(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns each pixel value's speed, ≥ 0, on the shortest way to such a hyperplane."""
        return tf.abs(tf.sign(gradients))

    def project(self, images, clean_images, epsilon, black_and_white=BLACK_AND_WHITE) -> tf.Tensor:
        """Returns the nearest images in the ball around the clean ones and their pixel range."""
        inside = tf.clip_by_value(images, clean_images - epsilon, clean_images + epsilon)
        return clip_to_pixel_range(inside, clean_images, black_and_white)

    def random_direction(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns random differences of length 1."""
        noise = randomness.noise_like(images, seed, -1.0, 1.0)
        return noise / per_image(self.length(noise))

    def random_point(self, images: tf.Tensor, epsilon, seed: tf.Tensor) -> tf.Tensor:
        """Returns differences drawn uniformly from the ball of radius `epsilon`."""
        return randomness.noise_like(images, seed, -epsilon, epsilon)


class L2:
    """The Euclidean length over all pixel values; methods as those of `Linf`.

    ε = 0.5 of papers that count pixels in [0, 1] is 127.5.
    """

    name = "l2"

    def length(self, differences: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_sum(tf.square(differences), [1, 2, 3]))

    def dual_length(self, gradients: tf.Tensor) -> tf.Tensor:
        return self.length(gradients)

    def steepest(self, gradients: tf.Tensor) -> tf.Tensor:
        return gradients / per_image(self.length(gradients) + _TINY)

    def speeds(self, gradients: tf.Tensor) -> tf.Tensor:
        return tf.abs(gradients)

    def project(self, images, clean_images, epsilon, black_and_white=BLACK_AND_WHITE) -> tf.Tensor:
        differences = images - clean_images
        # The pixel range is convex and holds the clean image: clipping after scaling
        # only shortens the difference.
        factors = tf.minimum(1.0, epsilon / (self.length(differences) + _TINY))
        inside = clean_images + differences * per_image(factors)
        return clip_to_pixel_range(inside, clean_images, black_and_white)

    def random_direction(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self.steepest(randomness.normal(tf.shape(images), seed))

    def random_point(self, images: tf.Tensor, epsilon, seed: tf.Tensor) -> tf.Tensor:
        direction_seed, radius_seed = randomness.split(seed, 2)
        num_values = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), tf.float32)
        shares = randomness.positive_uniform([tf.shape(images)[0]], radius_seed)
        radii = epsilon * tf.pow(shares, 1.0 / num_values)
        return per_image(radii) * self.random_direction(images, direction_seed)


NORMS = {norm.name: norm for norm in (Linf(), L2())}


def require_radius(epsilon: float, norm: str) -> None:
    """Raises a ValueError unless `epsilon` can be a radius in that norm."""
    require_choice("norm", norm, NORMS)
    if not (epsilon > 0.0 and math.isfinite(epsilon)):
        raise ValueError(f"`epsilon` is {epsilon!r}, but must be a number > 0, in pixels of 255.")
    if norm == Linf.name and epsilon > HIGHEST_PIXEL:
        raise ValueError(
            f"`epsilon` is {epsilon!r}, but under `norm` 'linf' no pixel can move by more than 255;"
            " a Euclidean radius needs norm='l2'."
        )


def require_fitting_radius(epsilon: float, norm: str, images: tf.Tensor) -> None:
    """Raises an `AttackError` where the ball would hold every image of this (static) shape."""
    if images.shape[1:].is_fully_defined():
        num_values = 1 if norm == Linf.name else images.shape[1:].num_elements()
        largest = HIGHEST_PIXEL * math.sqrt(num_values)
        if epsilon > largest:
            raise AttackError(
                f"`epsilon` is {epsilon!r}, but under `norm` {norm!r} images of shape "
                f"{tuple(images.shape[1:])} are at most {largest:.6g} apart, in pixels of 255."
            )
