"""What APGD, FAB and Square share: a search of the ball around each image for one that
the network gets wrong.

A search makes one or several runs, each from another random start or towards another
wrong class; an image that was got wrong once is left alone from then on, and a batch in
which no image is still right ends the search.
"""

from typing import NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import norms, objectives
from efficientnet_advprop.attacks.attack import (
    Attack,
    LogitsFn,
    as_batch,
    checked_logits,
    require_whole,
)
from tpu_utils import randomness


def are_images(images: tf.Tensor) -> tf.Tensor:
    """Returns which are finite, bool [batch]: what is not fools every network."""
    # A sum is finite only if all its terms are, and is the cheapest pass over them.
    return tf.math.is_finite(tf.reduce_sum(images, [1, 2, 3]))


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
    """An attack of one or several runs; subclasses have these fields and define a run."""

    epsilon: float
    norm: str
    num_classes: Optional[int]
    targeted: bool
    num_targets: int
    num_restarts: int

    def __call__(self, logits_fn, images, labels, seed=None, candidates=None) -> tf.Tensor:
        """Returns adversarial images; see `Attack`.

        They are misclassified where the search succeeded, and unchanged where it did not
        or where they were misclassified from the start. `logits_fn` must score each image
        by itself: no moments of a batch.
        """
        return self.search(logits_fn, images, labels, seed, candidates).images

    def search(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: Optional[tf.Tensor] = None,
        candidates: Optional[tf.Tensor] = None,
    ) -> Found:
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

    def _run(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        targets: Optional[tf.Tensor],
        is_restart: tf.Tensor,
        found: Found,
    ) -> Found:
        """Returns what is found after one more run.

        Args:
            images, labels: float32, int32.
            targets: int32 [batch], the wrong classes that are aimed at; None: any.
            is_restart: bool scalar: an earlier run has searched for the same.
        """
        raise NotImplementedError

    def _require_runs(self) -> None:
        """Raises a ValueError for a field of this class that is out of its range."""
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
