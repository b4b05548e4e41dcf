"""The protocol of all attacks, and the search of a ball that APGD, FAB and Square share."""

import dataclasses
from typing import Any, Callable, NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import norms, objectives
from efficientnet_advprop.attacks.labels import check_classes
from efficientnet_advprop.runtime.errors import AttackError, require_whole
from tpu_utils import randomness

LogitsFn = Callable[[tf.Tensor], tf.Tensor]


class Attack:
    """Base of the attacks, which are frozen dataclasses of their settings."""

    needs_gradient = True  # of the network with respect to its images
    num_gradients = 1  # averaged for each step, where a network's outputs are random

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: Optional[tf.Tensor] = None,
        candidates: Optional[tf.Tensor] = None,
    ) -> tf.Tensor:
        """Returns adversarial images for a batch.

        Args:
            logits_fn: float32 pixels [batch, height, width, channels] → logits [batch,
                classes]; must not change any variable. A logit of −inf excludes its class.
            images: any numeric dtype, pixels in [0, 255].
            labels: the true classes, integers [batch] or [batch, 1].
            seed: int32 [2], of all random numbers; None draws one (not reproducible
                after a restart).
            candidates: bool [batch], which images are worth attacking; the others may
                come back as they are. None: all.

        Returns:
            float32 images of the same shape, within `epsilon` of the clean ones and in
            [0, 255], or, where a clean pixel is outside, no further out than it.

        Raises:
            AttackError: images, labels or logits of another shape, type or width; or
                the attack needs gradients and there are none.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Returns the attack's class and all fields that decide its result."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        values = {field.name: getattr(self, field.name) for field in fields if field.compare}
        return {**values, "name": type(self).__name__}


class Found(NamedTuple):
    """What a search has found so far.

    Args:
        images: float32 [batch, height, width, channels]: misclassified images where the
            search succeeded, else the clean ones.
        still_correct: bool [batch], which images are classified correctly, clean and
            under every attack so far.
    """

    images: tf.Tensor
    still_correct: tf.Tensor

    def update(self, images: tf.Tensor, is_wrong: tf.Tensor) -> "Found":
        """Returns a copy with those of `images` that are finite, wrong and new."""
        is_new = self.still_correct & is_wrong & are_images(images)
        return Found(
            norms.where_per_image(is_new, images, self.images), self.still_correct & ~is_new
        )


class Search(Attack):
    """One or several runs, each from another random start or towards another wrong class.

    An image that was got wrong once is left alone from then on, and a batch in which no image
    is still right ends the search. Subclasses have these fields and define a run.
    """

    epsilon: float
    norm: str
    num_classes: Optional[int]
    targeted: bool
    num_targets: int
    num_restarts: int

    def __post_init__(self):
        norms.require_radius(self.epsilon, self.norm)
        require_whole("num_restarts", self.num_restarts, 1)
        if self.num_classes is not None:
            require_whole("num_classes", self.num_classes, 2)
        if self.targeted:
            require_whole("num_targets", self.num_targets, 1)
            if self.num_classes is not None and self.num_targets >= self.num_classes:
                raise ValueError(
                    f"`num_targets` is {self.num_targets}, but of `num_classes` = "
                    f"{self.num_classes} only {self.num_classes - 1} are wrong for an image; "
                    f"give at most num_targets={self.num_classes - 1}."
                )

    def __call__(self, logits_fn, images, labels, seed=None, candidates=None) -> tf.Tensor:
        """Returns adversarial images; see `Attack`.

        They are misclassified where the search succeeded, and unchanged where it did not
        or where they were misclassified from the start. `logits_fn` must score each image
        by itself: no moments of a batch.
        """
        return self.search(logits_fn, images, labels, seed, candidates).images

    def search(self, logits_fn: LogitsFn, images, labels, seed=None, candidates=None) -> Found:
        """Attacks as a call does; returns also what came of each image."""
        images, labels = as_batch(images, labels, self.num_classes)
        seed = randomness.seed_or_fresh(seed)
        norms.require_fitting_radius(self.epsilon, self.norm, images)
        logits = checked_logits(logits_fn(images), images, self.num_classes)
        is_correct = objectives.is_correct(labels, logits)
        found = Found(images, is_correct if candidates is None else is_correct & candidates)
        num_targets, all_targets = 1, None
        if self.targeted:
            num_targets = self.num_targets
            all_targets = objectives.likeliest_wrong_classes(labels, logits, num_targets)

        def run_once_more(number, *found):
            targets = None
            if all_targets is not None:
                targets = tf.gather(all_targets, number // self.num_restarts, axis=1)
            run_seed = randomness.fold_in(seed, number)
            is_restart = number % self.num_restarts > 0
            found = self._run(
                logits_fn, images, labels, run_seed, targets, is_restart, Found(*found)
            )
            return number + 1, tf.ensure_shape(found.images, images.shape), found.still_correct

        num_runs = num_targets * self.num_restarts
        _, adversarial_images, still_correct = tf.while_loop(
            lambda number, _, still_correct: (number < num_runs) & tf.reduce_any(still_correct),
            run_once_more,
            (tf.constant(0), *found),
        )
        return Found(tf.stop_gradient(adversarial_images), still_correct)

    def _run(self, logits_fn, images, labels, seed, targets, is_restart, found: Found) -> Found:
        """Returns what is found after one more run.

        `targets`, int32 [batch], are the wrong classes that are aimed at, None: any;
        `is_restart`, a bool scalar, says that an earlier run has searched for the same.
        """
        raise NotImplementedError


def are_images(images: tf.Tensor) -> tf.Tensor:
    """Returns which are finite, bool [batch]: what is not fools every network."""
    # A sum is finite only if all its terms are, and is the cheapest pass over them.
    return tf.math.is_finite(tf.reduce_sum(images, [1, 2, 3]))


def as_batch(images, labels, num_classes: Optional[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns images as float32 [batch, height, width, channels] and labels as int32 [batch]."""
    images = tf.cast(images, tf.float32)
    if images.shape.rank != 4:
        raise AttackError(
            f"`images` has shape {images.shape}, but must be [batch, height, width, channels]."
        )
    return images, check_classes(labels, num_classes, images.shape[0])


def checked_logits(logits: tf.Tensor, images: tf.Tensor, num_classes: Optional[int]) -> tf.Tensor:
    """Returns the logits in float32; refuses another shape or number of classes."""
    logits = tf.cast(logits, tf.float32)
    expected = tf.TensorShape([images.shape[0], None])
    if not logits.shape.is_compatible_with(expected) or logits.shape[-1] is None:
        raise AttackError(
            f"`logits_fn` returned shape {logits.shape} for images {images.shape}; expected "
            "logits [batch, classes]."
        )
    if num_classes is not None and logits.shape[1] != num_classes:
        raise AttackError(
            f"`num_classes` is {num_classes}, but `logits_fn` returns {logits.shape[1]} logits "
            "per image."
        )
    return logits


def image_gradients(
    objective: Callable[[tf.Tensor], tuple], images: tf.Tensor
) -> tuple[tf.Tensor, tuple]:
    """Returns the gradient with respect to the images, and what `objective` returned: what to
    differentiate, float32 [batch], and perhaps more.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        outputs = objective(images)
        # A sum, so that an image's gradient does not shrink with the size of its batch.
        total = tf.reduce_sum(outputs[0])
    gradients = tape.gradient(total, images)
    if gradients is None:
        raise AttackError(
            "`logits_fn` cannot be differentiated with respect to its images, as every attack but "
            "Square must; Square alone is possible."
        )
    return gradients, outputs
