"""Projected gradient descent under L∞ (AdvProp's attacker) or L2, and uniform noise.

Which batch-norm statistics the attacked network uses is the `logits_fn`'s business:
`training=False` is the paper's attack (running statistics), `training=True,
update_statistics=False` that of Fast AdvProp (Mei et al., ICLR 2022). FGSM is one step
of size ε; I-FGSM has no random start; GD has no projection.
"""

import dataclasses
import math
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.attacks import norms
from efficientnet_advprop.attacks.attack import Attack, image_gradients
from efficientnet_advprop.attacks.labels import are_classes, check_labels, is_class
from efficientnet_advprop.attacks.objectives import cross_entropy
from efficientnet_advprop.runtime.errors import require_choice, require_whole
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


def _pixel(pixel_range: tuple[float, float]) -> float:
    """Returns a 255th of the distance from black to white."""
    black, white = pixel_range
    return (white - black) / 255.0


@dataclasses.dataclass(frozen=True)
class PGD(Attack):
    """An attack by gradient steps (Madry et al., ICLR 2018): under L∞ by their signs,
    as the paper uses it; under L2 along the gradient.

    Args:
        epsilon: radius of the ball around the clean image, pixels, ≥ 0; also a float32
            scalar tensor, for a radius that changes from step to step.
        step_size: of one iteration, pixels, > 0.
        num_steps: iterations, ≥ 1; the loop is traced once whatever their number.
        targeted: descend the loss of a uniformly drawn wrong class (the paper); False
            ascends that of the true class.
        random_start: probability, per batch, of starting from uniform noise in
            ±`epsilon` instead of the clean images (0.8 in the authors'
            adversarial-training code).
        num_classes: of the labels, ≥ 2; needed by targeted attacks.
        project: keep within `epsilon` of the clean image; False is plain gradient
            descent (GD), where only the pixel range clips.
        loss_scale: what the loss is multiplied by, > 0: nothing for the signs, but
            float16 gradients of a small loss are zero (128 in the authors' code).
        norm: "linf", or "l2": `epsilon` and `step_size` are then Euclidean lengths over
            all pixel values of an image, and a random start is uniform in that ball.
        pixel_range: the values of black and white in the images; `epsilon` and
            `step_size` count 255ths of the distance between them.

    Raises:
        ValueError: a value out of its range, with its name.
    """

    epsilon: float = 1.0
    step_size: float = 1.0
    num_steps: int = 1
    targeted: bool = True
    random_start: float = 0.8
    num_classes: Optional[int] = None
    project: bool = True
    loss_scale: float = 1.0
    norm: str = norms.Linf.name
    pixel_range: tuple[float, float] = norms.BLACK_AND_WHITE

    def __post_init__(self):
        require_choice("norm", self.norm, norms.NORMS)
        require_whole("num_steps", self.num_steps, 1)

        def require(ok, name, rule):
            if not ok:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, but {rule}.")

        is_radius = tf.is_tensor(self.epsilon) or self.epsilon >= 0
        require(is_radius, "epsilon", "must be ≥ 0, in pixels of 255; the paper uses 1 to 4")
        require(self.step_size > 0, "step_size", "must be > 0, in pixels of 255; the paper uses 1")
        require(0.0 <= self.random_start <= 1.0, "random_start", "is a probability, in [0, 1]")
        require(self.loss_scale > 0, "loss_scale", "must be > 0; 128 suits float16")
        black, white = self.pixel_range
        require(black < white, "pixel_range", "must be the values of black and white, rising")
        require(
            not self.targeted or (self.num_classes is not None and self.num_classes >= 2),
            "num_classes",
            "a targeted attack draws a wrong class and must know of at least 2; give the number,"
            " or targeted=False",
        )

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
        step = (-self.step_size if self.targeted else self.step_size) * self._pixel
        direction = norms.NORMS[self.norm].steepest(gradients)
        moved = self._clip(images, adversarial_images + step * direction)
        return tf.ensure_shape(moved, images.shape)

    @property
    def _pixel(self) -> float:
        return _pixel(self.pixel_range)

    def _start(self, images, noise_seed, start_seed):
        if self.random_start == 0.0:
            return images
        is_noisy = randomness.uniform([], start_seed) < self.random_start
        radius = self.epsilon * self._pixel
        noise = norms.NORMS[self.norm].random_point(images, radius, noise_seed)
        return self._clip(images, tf.where(is_noisy, images + noise, images))

    def _clip(self, images, adversarial_images):
        if self.project:
            radius = self.epsilon * self._pixel
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
        epsilon = self.epsilon * _pixel(self.pixel_range)
        noise = randomness.noise_like(images, randomness.seed_or_fresh(seed), -epsilon, epsilon)
        return norms.clip_to_pixel_range(images + noise, images, self.pixel_range)
