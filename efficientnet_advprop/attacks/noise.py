"""Uniform noise in place of an attack: the control that shows whether adversarial
directions matter, in pixels of 255.

Usage:

    attack = UniformNoise(epsilon=1.0)
    noisy_images = attack(None, images, labels)
"""

import dataclasses
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.attacks.pixel_range import clip_to_pixel_range
from tpu_utils.replicas import randomness


def add_noise(images: tf.Tensor, epsilon: float, seed: tf.Tensor) -> tf.Tensor:
    """`images` (float32, pixels in [0, 255]) with uniform noise in ±`epsilon`, not
    clipped.

    `seed`: int32 [2].
    """
    return images + randomness.noise_like(images, seed, -epsilon, epsilon)


@dataclasses.dataclass(frozen=True)
class UniformNoise:
    """Images with noise of PGD's random start, called like an attack.

    Args:
        epsilon: the noise is uniform in ±`epsilon` pixels, ≥ 0; also a float32 scalar
            tensor, for noise that changes from step to step.
        pixel_range: the values of black and white in the images; `epsilon` counts
            255ths of the distance between them.

    Raises:
        ValueError: `epsilon` is negative.
    """

    epsilon: float = 1.0
    pixel_range: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self):
        if not tf.is_tensor(self.epsilon) and not self.epsilon >= 0:
            raise ValueError(f"`epsilon` is {self.epsilon!r}, but must be ≥ 0, in pixels of 255.")

    def __call__(
        self, logits_fn, images: tf.Tensor, labels: tf.Tensor, seed: Optional[tf.Tensor] = None
    ) -> tf.Tensor:
        """Noisy images for a batch; `logits_fn` and `labels` are not looked at.

        Arguments and result as those of `PGD`.
        """
        images = tf.cast(images, tf.float32)
        black, white = self.pixel_range
        epsilon = self.epsilon * ((white - black) / 255.0)
        noisy_images = add_noise(images, epsilon, randomness.seed_or_fresh(seed))
        return clip_to_pixel_range(noisy_images, images, self.pixel_range)
