"""Forward and backward passes: what the gradients of every method are made of.

    run = PassRunner(state, global_batch_size=256, label_smoothing=0.1)
    result = run(method.passes[0], images, labels, seed)          # gradients, losses, hits

`steps.py` and `fast_advprop.py` say which passes a method makes, and in which order.
"""

from typing import Callable, NamedTuple, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.attacks.labels import are_classes
from efficientnet_advprop.methods import Pass
from efficientnet_advprop.training import losses
from efficientnet_advprop.training.state import TrainState
from tpu_utils.replicas import ordering, replica_runtime

Batch = dict[str, tf.Tensor]
Sums = dict[str, tf.Tensor]
Gradients = list[Optional[tf.Tensor]]  # one per trainable variable; None for another branch's
GradientFn = Callable[[Batch, tf.Tensor], tuple[Gradients, Sums]]  # batch, seed


class PassResult(NamedTuple):
    """What one pass gives: this replica's share of the gradients, and losses and hits per image.

    `losses` and `hits` (1 where the class was right) are float32 [batch].
    """

    gradients: Gradients
    image_gradients: Optional[tf.Tensor]  # of an attack's pass
    losses: tf.Tensor
    hits: tf.Tensor

    def sums_of(self, part: Pass) -> Sums:
        """The sums of losses and hits for each of the pass's views."""
        count = len(part.views)
        sums = {}
        for view, loss, hits in zip(
            part.views, tf.split(self.losses, count), tf.split(self.hits, count)
        ):
            sums[f"{view}_loss"], sums[f"{view}_correct"] = tf.reduce_sum(loss), tf.reduce_sum(hits)
        return sums


class PassRunner:
    """Forward and backward through a branch, for the losses of one step."""

    def __init__(self, state: TrainState, global_batch_size: int, label_smoothing: float):
        self.model, self.loss_scale = state.model, state.loss_scale
        self.global_batch_size, self.label_smoothing = global_batch_size, label_smoothing

    def __call__(self, part: Pass, images, labels, seed, *, is_attack: bool = False) -> PassResult:
        """The gradient of the sum of losses, times the pass's weight and the loss scale, over the global batch size.

        `is_attack`: with respect to the images, too, and without moving statistics.
        """
        with tf.GradientTape() as tape:
            if is_attack:
                tape.watch(images)
            logits = self.model(
                images,
                training=True,
                branch=part.branch,
                update_statistics=not is_attack,
                seed=seed,
            )
            per_image = losses.cross_entropy(labels, logits, self.label_smoothing)
            loss = tf.reduce_sum(per_image) / (self.global_batch_size / part.weight)
            if self.loss_scale is not None:
                loss *= self.loss_scale.scale
        trained = self.model.trainable_variables
        gradients = tape.gradient(loss, [*trained, images] if is_attack else trained)
        of_images = gradients.pop() if is_attack else None
        true_classes = labels if are_classes(labels) else tf.argmax(labels, -1)
        hits = tf.cast(
            tf.equal(tf.argmax(logits, -1, true_classes.dtype), true_classes), tf.float32
        )
        return PassResult(gradients, of_images, per_image, hits)


def sum_of_gradients(gradients: Sequence[Optional[tf.Tensor]]) -> Optional[tf.Tensor]:
    """The sum of those that are not None."""
    given = [gradient for gradient in gradients if gradient is not None]
    return sum(given[1:], given[0]) if given else None


def start_after(gradients: Gradients, images: tf.Tensor) -> tf.Tensor:
    """`images`, for what must not begin before `gradients` are known, where an order costs nothing.

    The passes over clean images and the attack depend on nothing of each other's, and XLA would mix them: two passes'
    activations at once. The first gradient is the last one to be known.
    """
    if not replica_runtime.current().executes_in_order:
        return images
    return ordering.after(
        next(gradient for gradient in gradients if gradient is not None),
        tf.cast(images, tf.float32),
    )
