"""Fast adaptive boundary attack: the nearest misclassified image (Croce and Hein,
"Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML
2020).

Each step projects the current and the clean image onto the boundary as it looks from
here, a hyperplane, and goes to a point between the two; a misclassified point is drawn
back towards the clean image. What counts is the nearest one that was met.
"""

import dataclasses
import functools
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.attacks import norms, objectives
from efficientnet_advprop.attacks.attack import Found, Search, image_gradients
from efficientnet_advprop.runtime.errors import require_whole
from tpu_utils import replica_runtime

# Of the paper: the largest weight of the clean image's projection, by how much a
# projection is overshot, and how much of the way to the clean image a misclassified
# point keeps.
_LARGEST_BIAS = 0.1
_OVERSHOOT = 1.05
_KEPT_SHARE = 0.9
_TINY = 1e-12
_SHORTEST = 1e-6  # pixels; a projection that moves less has arrived
_NUM_REFINEMENTS = 40  # of the projection onto a hyperplane; about ten are needed


def shortest_step(
    points: tf.Tensor, normals: tf.Tensor, gaps: tf.Tensor, clean_images: tf.Tensor, norm
) -> tf.Tensor:
    """Returns the shortest steps to hyperplanes that stay in the pixel range; where none of
    its points is on the hyperplane, as far as the range goes.

    Args:
        points: float32 [batch, height, width, channels], in the pixel range.
        normals: of the hyperplanes, in the same shape.
        gaps: float32 [batch]: normal · point − offset, what the step must take away.
        clean_images: whose `pixel_range` holds.
        norm: of `norms.NORMS`.
    """
    # Each pixel value moves against or with its normal, at the norm's speed, until it meets
    # the end of its range: the rise over the hyperplane's normal is a concave, piecewise
    # linear function of the time, of which Newton's method finds the root from the left.
    directions = -norms.per_image(tf.sign(gaps)) * tf.sign(normals)
    lowest, highest = norms.pixel_range(clean_images)
    room = tf.where(directions > 0.0, highest - points, points - lowest)
    weights, speeds, wanted = tf.abs(normals), norm.speeds(normals), tf.abs(gaps)
    rates = weights * speeds
    total = lambda values: tf.reduce_sum(values, [1, 2, 3])  # noqa: E731

    def refine(number, times, _):
        way = norms.per_image(times) * speeds
        missing = wanted - total(weights * tf.minimum(way, room))
        rate = total(tf.where(way < room, rates, 0.0))
        goes_on = (missing > 1e-6 * wanted) & (rate > 0.0)
        more = tf.where(goes_on, missing / tf.maximum(rate, _TINY), 0.0)
        return number + 1, times + more, goes_on

    _, times, _ = tf.while_loop(
        lambda number, _, goes_on: (number < _NUM_REFINEMENTS) & tf.reduce_any(goes_on),
        refine,
        (tf.constant(0), tf.zeros_like(wanted), wanted > 0.0),
    )
    return directions * tf.minimum(norms.per_image(times) * speeds, room)


@dataclasses.dataclass(frozen=True)
class FAB(Search):
    """The nearest misclassified image, kept if it is within `epsilon`.

    Args:
        epsilon, norm: see `APGD`.
        num_steps: of a run, ≥ 1; traced once whatever their number. A batch ends when
            all its images are found within `epsilon`.
        targeted: look at the boundaries to the `num_targets` likeliest wrong classes,
            one run each. False looks at all classes in every step, at the cost of a
            gradient for each class.
        num_targets, num_restarts, num_classes: see `APGD`. The first start is the clean
            image itself, later ones are random.

    Raises:
        ValueError: a value out of its range, with its name.
    """

    epsilon: float = 8.0
    norm: str = "linf"
    num_steps: int = 100
    targeted: bool = True
    num_targets: int = 9
    num_restarts: int = 1
    num_classes: Optional[int] = None

    def __post_init__(self):
        super().__post_init__()
        require_whole("num_steps", self.num_steps, 1)

    def _boundary(self, logits_fn, images, labels, targets):
        """Returns the nearest boundary as it looks from `images`: a class's logit less the
        label's [batch], and its gradient.
        """

        def lead(classes):
            def of(images):
                logits = tf.cast(logits_fn(images), tf.float32)
                return (objectives.logit_of(classes, logits) - objectives.logit_of(labels, logits),)

            gradients, (leads,) = image_gradients(of, images)
            return leads, gradients

        if targets is not None:
            return lead(targets)
        norm = norms.NORMS[self.norm]

        def compare(number, nearest, leads, gradients):
            more_leads, more_gradients = lead(tf.fill(tf.shape(labels), number))
            distances = tf.abs(more_leads) / (norm.dual_length(more_gradients) + _TINY)
            is_nearer = (distances < nearest) & tf.not_equal(labels, number)
            gradients = norms.where_per_image(is_nearer, more_gradients, gradients)
            return (
                number + 1,
                tf.where(is_nearer, distances, nearest),
                tf.where(is_nearer, more_leads, leads),
                tf.ensure_shape(gradients, images.shape),
            )

        zeros = tf.zeros_like(images[:, 0, 0, 0])
        start = (tf.constant(0), zeros + float("inf"), zeros, tf.zeros_like(images))
        num_classes = logits_fn(images).shape[-1] if self.num_classes is None else self.num_classes
        _, _, leads, gradients = tf.while_loop(
            lambda number, *_: number < num_classes, compare, start
        )
        return leads, gradients

    def _run(self, logits_fn, images, labels, seed, targets, is_restart, found: Found) -> Found:
        norm = norms.NORMS[self.norm]
        step_to = replica_runtime.in_one_program(functools.partial(shortest_step, norm=norm))

        def advance(step, points, nearest_images, nearest):
            leads, normals = self._boundary(logits_fn, points, labels, targets)
            own_step = step_to(points, normals, leads, images)
            from_clean = tf.reduce_sum(normals * (images - points), [1, 2, 3])
            clean_step = step_to(images, normals, leads + from_clean, images)
            own_length = tf.maximum(norm.length(own_step), _SHORTEST)
            clean_length = tf.maximum(norm.length(clean_step), _SHORTEST)
            bias = tf.minimum(own_length / (own_length + clean_length), _LARGEST_BIAS)
            bias = norms.per_image(bias)
            from_points, from_images = (
                points + _OVERSHOOT * own_step,
                images + _OVERSHOOT * clean_step,
            )
            points = from_points * (1.0 - bias) + from_images * bias
            points = norms.clip_to_pixel_range(points, images)
            is_wrong = ~objectives.is_correct(labels, tf.cast(logits_fn(points), tf.float32))
            distances = norm.length(points - images)
            is_nearest = is_wrong & (distances < nearest)
            nearest_images = norms.where_per_image(is_nearest, points, nearest_images)
            nearest = tf.where(is_nearest, distances, nearest)
            drawn_back = images + _KEPT_SHARE * (points - images)
            points = norms.where_per_image(is_wrong, drawn_back, points)
            keep = lambda values: tf.ensure_shape(values, images.shape)  # noqa: E731
            return step + 1, keep(points), keep(nearest_images), nearest

        # A restart begins half a radius away.
        noise = 0.5 * self.epsilon * norm.random_direction(images, seed)
        start = tf.where(is_restart, norms.clip_to_pixel_range(images + noise, images), images)
        nowhere = tf.zeros_like(images[:, 0, 0, 0]) + float("inf")
        _, _, nearest_images, nearest = tf.while_loop(
            lambda step, _, __, nearest: (
                (step < self.num_steps)
                & tf.reduce_any(found.still_correct & (nearest > self.epsilon))
            ),
            advance,
            (tf.constant(0), tf.ensure_shape(start, images.shape), images, nowhere),
        )
        return found.update(nearest_images, nearest <= self.epsilon)
