"""What APGD, FAB and Square share: a search of the ball around each image for one that
the network gets wrong.

    found = APGD(epsilon=8.0, num_classes=10).search(logits_fn, images, labels, seed)
    found.images, found.is_open

A search makes one or several runs, each from another random start or towards another
wrong class; an image that was got wrong once is left alone from then on, and a batch in
which no image is still right ends the search.
"""

from typing import Callable, NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import norms, objectives
from efficientnet_advprop.attacks.labels import check_classes
from efficientnet_advprop.runtime.errors import UserError
from tpu_utils.replicas import randomness

LogitsFn = Callable[[tf.Tensor], tf.Tensor]


class AttackError(UserError, ValueError):
    """A network or a batch that cannot be attacked as asked; the message says why."""


def are_images(images: tf.Tensor) -> tf.Tensor:
    """Which are finite, bool [batch]: what is not fools every network, and is no image."""
    # A sum is finite only if all its terms are, and is the cheapest pass over them.
    return tf.math.is_finite(tf.reduce_sum(images, [1, 2, 3]))


class Found(NamedTuple):
    """What a search has found so far.

    Args:
        images: float32 [batch, height, width, channels]: misclassified images where the
            search succeeded, else the clean ones.
        is_open: bool [batch], which images are still classified correctly, clean and
            under every attack so far.
    """

    images: tf.Tensor
    is_open: tf.Tensor

    def update(self, images: tf.Tensor, is_wrong: tf.Tensor) -> "Found":
        """With those of `images` that are wrong and finite in place of what was open.

        Shapes and dtypes as above.
        """
        is_new = self.is_open & is_wrong & are_images(images)
        return Found(norms.choose(is_new, images, self.images), self.is_open & ~is_new)


class Run(NamedTuple):
    """One run of a search.

    Args:
        seed: int32 [2].
        targets: int32 [batch], the wrong class that is aimed at; None: any.
        is_restart: bool scalar: an earlier run has searched for the same.
    """

    seed: tf.Tensor
    targets: Optional[tf.Tensor]
    is_restart: tf.Tensor


class Search:
    """An attack of one or several runs; subclasses are frozen dataclasses with the
    fields below, and say what a run does.
    """

    epsilon: float
    norm: str
    num_classes: Optional[int]
    targeted: bool
    num_targets: int
    num_restarts: int
    needs_gradient = True

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: Optional[tf.Tensor] = None,
    ) -> tf.Tensor:
        """Adversarial images for a batch.

        Args:
            logits_fn: float32 pixels [batch, height, width, channels] → logits [batch,
                classes]; must not change any variable, and must judge each image by
                itself: no moments of a batch.
            images: any numeric dtype, pixels in [0, 255].
            labels: the true classes, integers [batch] or [batch, 1].
            seed: int32 [2]; None draws one.

        Returns:
            float32 images of the same shape, within `epsilon` of the clean ones and in
            [0, 255]: misclassified where the search succeeded, and as they came where
            it did not, or where they were misclassified from the start.

        Raises:
            AttackError: see `search`.
        """
        return self.search(logits_fn, images, labels, randomness.seed_or_fresh(seed)).images

    def search(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        is_open: Optional[tf.Tensor] = None,
    ) -> Found:
        """The same, with what has come of each image.

        Args:
            logits_fn, images, labels, seed: as above.
            is_open: bool [batch], which images are worth attacking; None: all. Others
                come back as they are, not open.

        Raises:
            AttackError: images or logits of the wrong shape; or the attack needs
                gradients and there are none.
            LabelError: see `labels.check_classes`.
        """
        images, labels = as_batch(images, labels, self.num_classes)
        norms.require_fitting_radius(self.epsilon, self.norm, images)
        logits = checked_logits(logits_fn(images), images, self.num_classes)
        is_right = objectives.is_right(labels, logits)
        found = Found(images, is_right if is_open is None else is_right & is_open)
        num_targets = self.num_targets if self.targeted else 1
        targets = (
            objectives.likeliest_wrong_classes(labels, logits, num_targets)
            if self.targeted
            else None
        )

        def run_once_more(number, *found):
            run = Run(
                seed=randomness.fold_in(seed, number),
                targets=None
                if targets is None
                else tf.gather(targets, number // self.num_restarts, axis=1),
                is_restart=number % self.num_restarts > 0,
            )
            found = self._run(logits_fn, images, labels, run, Found(*found))
            return number + 1, tf.ensure_shape(found.images, images.shape), found.is_open

        num_runs = num_targets * self.num_restarts
        more = lambda number, _, is_open: (number < num_runs) & tf.reduce_any(is_open)  # noqa: E731
        _, adversarial_images, is_open = tf.while_loop(
            more, run_once_more, (tf.constant(0), *found)
        )
        return Found(tf.stop_gradient(adversarial_images), is_open)

    def _run(
        self, logits_fn: LogitsFn, images: tf.Tensor, labels: tf.Tensor, run: Run, found: Found
    ) -> Found:
        """What is found after one more run; arguments as those of `search`, images in
        float32 and labels in int32.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is no attack of its own; use APGD, FAB or Square."
        )

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


def require_whole(name: str, value: int, lowest: int) -> None:
    """Raises a ValueError unless `value` is a whole number ≥ `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"`{name}` is {value!r}, but must be a whole number ≥ {lowest}.")


def as_batch(
    images: tf.Tensor, labels: tf.Tensor, num_classes: Optional[int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Images as float32 [batch, height, width, channels] and labels as int32 [batch].

    Raises:
        AttackError: the images have another shape.
        LabelError: see `labels.check_classes`.
    """
    images = tf.cast(images, tf.float32)
    if images.shape.rank != 4:
        raise AttackError(
            f"`images` has shape {images.shape}, but must be [batch, height, width, channels]."
        )
    return images, check_classes(labels, num_classes, images.shape[0])


def checked_logits(logits: tf.Tensor, images: tf.Tensor, num_classes: Optional[int]) -> tf.Tensor:
    """The logits in float32.

    Raises:
        AttackError: they are not [batch, classes], or of another number of classes than
            promised.
    """
    logits = tf.cast(logits, tf.float32)
    if (
        logits.shape.rank != 2
        or not logits.shape[:1].is_compatible_with(images.shape[:1])
        or logits.shape[1] is None
    ):
        raise AttackError(
            f"`logits_fn` answers images of shape {images.shape} by a tensor of shape "
            f"{logits.shape}, but must by logits [batch, classes]."
        )
    if num_classes is not None and logits.shape[1] != num_classes:
        raise AttackError(
            f"`num_classes` is {num_classes}, but `logits_fn` returns {logits.shape[1]} logits "
            "per image."
        )
    return logits


def ascend(objective: Callable[[tf.Tensor], tuple], images: tf.Tensor) -> tuple[tf.Tensor, tuple]:
    """The gradient of an objective with respect to the images.

    Args:
        objective: images → (what to differentiate, float32 [batch]; more tensors that
            are handed through, …).
        images: float32 [batch, height, width, channels].

    Returns:
        The gradient, in the shape of `images`, and all that `objective` returned.

    Raises:
        AttackError: there is no gradient.
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
