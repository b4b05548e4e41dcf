"""The protocol of all attacks, and what they check and differentiate alike."""

import dataclasses
from typing import Any, Callable, Optional

import tensorflow as tf

from efficientnet_advprop.attacks.labels import check_classes
from efficientnet_advprop.runtime.errors import AttackError

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
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.compare
        }
        return {**values, "name": type(self).__name__}


def require_whole(name: str, value: int, lowest: int) -> None:
    """Raises a ValueError unless `value` is a whole number ≥ `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"`{name}` is {value!r}, but must be a whole number ≥ {lowest}.")


def as_batch(
    images: tf.Tensor, labels: tf.Tensor, num_classes: Optional[int]
) -> tuple[tf.Tensor, tf.Tensor]:
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
    if (
        logits.shape.rank != 2
        or not logits.shape[:1].is_compatible_with(images.shape[:1])
        or logits.shape[1] is None
    ):
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
    """Returns the gradient with respect to the images, and what `objective` returned.

    Args:
        objective: images → (what to differentiate, float32 [batch]; more tensors, …).
        images: float32 [batch, height, width, channels].
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
