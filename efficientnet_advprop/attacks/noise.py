"""Uniform noise in place of an attack: the control for adversarial directions."""

import dataclasses

import tensorflow as tf

from efficientnet_advprop.attacks.attack import Attack
from efficientnet_advprop.attacks.norms import BLACK_AND_WHITE, clip_to_pixel_range
from tpu_utils import randomness


@dataclasses.dataclass(frozen=True)
class UniformNoise(Attack):
    """PGD's random start alone; neither network nor labels are looked at.

    Args:
        epsilon: the noise is uniform in ±`epsilon` pixels, ≥ 0; also a float32 scalar
            tensor, for noise that changes from step to step.
        pixel_range: the values of black and white in the images; `epsilon` counts
            255ths of the distance between them.

    Raises:
        ValueError: `epsilon` is negative.
    """

    epsilon: float = 1.0
    pixel_range: tuple[float, float] = BLACK_AND_WHITE
    needs_gradient = False

    def __post_init__(self):
        if not tf.is_tensor(self.epsilon) and not self.epsilon >= 0:
            raise ValueError(f"`epsilon` is {self.epsilon!r}, but must be ≥ 0, in pixels of 255.")

    def __call__(self, logits_fn, images, labels, seed=None, candidates=None) -> tf.Tensor:
        images = tf.cast(images, tf.float32)
        black, white = self.pixel_range
        epsilon = self.epsilon * ((white - black) / 255.0)
        noise = randomness.noise_like(images, randomness.seed_or_fresh(seed), -epsilon, epsilon)
        return clip_to_pixel_range(images + noise, images, self.pixel_range)
