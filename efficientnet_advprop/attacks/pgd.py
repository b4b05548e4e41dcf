"""Projected gradient descent under L∞ (AdvProp's attacker) or L2, and uniform noise.

Which batch-norm statistics the attacked network uses is the `logits_fn`'s business:
`training=False` is the paper's attack (running statistics), `training=True,
update_statistics=False` that of Fast AdvProp (Mei et al., ICLR 2022). FGSM is one step
of size ε; I-FGSM has no random start; GD has no projection.
"""

import dataclasses
import math

import tensorflow as tf

from efficientnet_advprop.attacks import norms
from efficientnet_advprop.attacks.attack import Attack, image_gradients
from efficientnet_advprop.attacks.labels import are_classes, check_labels, is_class
from efficientnet_advprop.attacks.objectives import cross_entropy
from efficientnet_advprop.config.pgd_settings import PGDSettings
from tpu_utils import randomness


def draw_wrong_labels(labels: tf.Tensor, num_classes: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws uniformly from the classes that are not the label, int32 [batch].

    Of class weights (MixUp, CutMix), from the classes of the smallest weight, as a rule zero.
    Of a label that is no class, where tracing could not see that, −1.
    """
    labels = check_labels(labels, num_classes)
    if are_classes(labels):
        offsets = randomness.integers(tf.shape(labels), seed, 1, num_classes)
        targets = tf.math.floormod(labels + offsets, num_classes)
        return tf.where(is_class(labels, num_classes), targets, -1)
    is_wrong = labels <= tf.reduce_min(labels, -1, keepdims=True)
    draws = tf.where(is_wrong, randomness.uniform(tf.shape(labels), seed), -1.0)
    return tf.argmax(draws, -1, tf.int32)


def _nan_unless_known(labels: tf.Tensor, num_classes: int, images: tf.Tensor) -> tf.Tensor:
    # Where no error can be raised, the network must not seem to withstand such an attack.
    if not are_classes(labels):
        return images
    has_class = tf.reshape(is_class(labels, num_classes), [-1] + [1] * (images.shape.rank - 1))
    return tf.where(has_class, images, math.nan)


class PGD(PGDSettings, Attack):
    __doc__ = PGDSettings.__doc__

    def __call__(
        self, logits_fn, images, labels, seed=None, candidates=None, objective=None
    ) -> tf.Tensor:
        """Returns adversarial images for a batch; see `Attack`.

        The loss is plain cross-entropy without label smoothing. Only the images are
        watched: no gradient reaches a variable, and none flows back through the result.
        All images are attacked, whatever `candidates` says: a step costs the same.

        Args:
            logits_fn, images, labels, seed: as there; the batch and the size of the images
                need not be known when tracing, and labels may be weights [batch, classes].
            objective: what to ascend (descend if targeted) in place of the labels'
                cross-entropy, for outputs that are no logits of classes: outputs → a loss
                of any shape, whose sum counts. `labels` are then not looked at.
        """
        target_seed, noise_seed, start_seed = randomness.split(randomness.seed_or_fresh(seed), 3)
        images = tf.cast(images, tf.float32)
        if objective is None:
            labels = check_labels(labels, self.num_classes, images.shape[0])
            if self.targeted:
                assert self.num_classes is not None  # by `__post_init__`
                labels = draw_wrong_labels(labels, self.num_classes, target_seed)

        def advance(index, adversarial_images):
            def loss_of(images):
                outputs = logits_fn(images)
                losses = cross_entropy(labels, outputs) if objective is None else objective(outputs)
                return losses * self.loss_scale, outputs

            gradients, (_, outputs) = image_gradients(loss_of, adversarial_images)
            moved = self.move(images, adversarial_images, gradients)
            if objective is None:
                moved = _nan_unless_known(labels, outputs.shape[-1], moved)
            return index + 1, moved

        state = (tf.constant(0), self._start(images, noise_seed, start_seed))
        if self.num_steps == 1:  # the same without a loop, in which some strategies cannot reduce
            _, adversarial_images = advance(*state)
        else:
            goes_on = lambda index, _: index < self.num_steps  # noqa: E731
            _, adversarial_images = tf.while_loop(
                goes_on, advance, state, maximum_iterations=self.num_steps
            )
        return tf.stop_gradient(adversarial_images)

    def draw_targets(self, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the wrong classes, int32 [batch], that a targeted call with this seed takes."""
        assert self.num_classes is not None  # by `__post_init__`
        return draw_wrong_labels(labels, self.num_classes, randomness.split(seed, 3)[0])

    def start(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the float32 images from which a call with this seed starts."""
        _, noise_seed, start_seed = randomness.split(seed, 3)
        return self._start(tf.cast(images, tf.float32), noise_seed, start_seed)

    def move(
        self, images: tf.Tensor, adversarial_images: tf.Tensor, gradients: tf.Tensor
    ) -> tf.Tensor:
        """Returns images after one iteration: a step along the gradients, and the projection.

        `images` are the clean ones, the gradients those of the (target's) loss with respect to
        `adversarial_images`; their scale does not count.
        """
        step = self.pixels(-self.step_size if self.targeted else self.step_size)
        direction = norms.NORMS[self.norm].steepest(gradients)
        moved = self._clip(images, adversarial_images + step * direction)
        return tf.ensure_shape(moved, images.shape)

    def _start(self, images, noise_seed, start_seed):
        if self.random_start == 0.0:
            return images
        is_noisy = randomness.uniform([], start_seed) < self.random_start
        radius = self.pixels(self.epsilon)
        noise = norms.NORMS[self.norm].random_point(images, radius, noise_seed)
        return self._clip(images, tf.where(is_noisy, images + noise, images))

    def _clip(self, images, adversarial_images):
        if self.project:
            radius = self.pixels(self.epsilon)
            norm = norms.NORMS[self.norm]
            return norm.project(adversarial_images, images, radius, self.pixel_range)
        return norms.clip_to_pixel_range(adversarial_images, images, self.pixel_range)


@dataclasses.dataclass(frozen=True)
class UniformNoise(Attack):
    """Uniform noise in place of an attack, the control for adversarial directions: PGD's random
    start under L∞ alone; neither network nor labels are looked at. Arguments as of `PGD`.
    """

    epsilon: float = 1.0
    pixel_range: tuple[float, float] = norms.BLACK_AND_WHITE
    needs_gradient = False

    def __post_init__(self):
        if not tf.is_tensor(self.epsilon) and not self.epsilon >= 0:
            raise ValueError(f"`epsilon` is {self.epsilon!r}, but must be ≥ 0, in pixels of 255.")

    def __call__(self, logits_fn, images, labels, seed=None, candidates=None) -> tf.Tensor:
        images = tf.cast(images, tf.float32)
        black, white = self.pixel_range
        epsilon = self.epsilon * ((white - black) / 255.0)
        noise = randomness.noise_like(images, randomness.seed_or_fresh(seed), -epsilon, epsilon)
        return norms.clip_to_pixel_range(images + noise, images, self.pixel_range)
