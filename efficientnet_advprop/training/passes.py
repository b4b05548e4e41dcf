"""Forward and backward passes, of which the gradients of every method consist.

`steps` and `fast_advprop` say which passes a method makes, and in which order.
"""

from typing import Any, Callable, NamedTuple, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.attacks import Attack
from efficientnet_advprop.attacks.labels import are_classes
from efficientnet_advprop.config.methods import Pass
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.pass_mode import use_branch
from efficientnet_advprop.training import losses
from efficientnet_advprop.training.state import TrainState
from tpu_utils import replica_runtime

Batch = dict[str, Any]  # tensors; "labels" may be a structure of them
Labels = Any  # classes or class weights, or a structure of tensors that another runner understands
Sums = dict[str, tf.Tensor]
# One gradient per trainable variable; None for the variables of other branches.
Gradients = list[Optional[tf.Tensor]]
GradientFn = Callable[[Batch, tf.Tensor], tuple[Gradients, Sums]]  # batch, seed


class PassResult(NamedTuple):
    """What one pass of this replica gives. `losses` and `hits` (1 where the predicted class
    is right) are float32 [batch].
    """

    gradients: Gradients
    image_gradients: Optional[tf.Tensor]  # only from a pass with `is_attack`
    losses: tf.Tensor
    hits: tf.Tensor

    def sums_of(self, part: Pass) -> Sums:
        """Returns the sums of losses and hits for each view of the pass."""
        sums = {}
        for name, values in (("loss", self.losses), ("correct", self.hits)):
            for view, share in zip(part.views, tf.split(values, len(part.views))):
                sums[f"{view}_{name}"] = tf.reduce_sum(share)
        return sums


class PassRunner:
    """Runs forward and backward passes through the branches of a network."""

    def __init__(self, state: TrainState, global_batch_size: int, label_smoothing: float):
        self.model = state.model
        self.loss_scale = state.loss_scale
        self.global_batch_size = global_batch_size
        self.label_smoothing = label_smoothing

    def __call__(self, part: Pass, images, labels, seed, *, is_attack: bool = False) -> PassResult:
        """Returns the gradients of one pass.

        The loss is the sum over the images, times the weight of the pass and the loss
        scale, divided by the global batch size. With `is_attack` there are gradients of
        the images, too, and moving statistics stay.
        """
        trained = self.model.trainable_variables
        # The branch is an argument, but a Keras model that recomputes activations calls
        # its layers again in the backward pass, and they read the context.
        with use_branch(part.branch, update_statistics=not is_attack):
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
            gradients = tape.gradient(loss, [*trained, images] if is_attack else trained)
        image_gradients = gradients.pop() if is_attack else None
        true_classes = labels if are_classes(labels) else tf.argmax(labels, -1)
        hits = tf.cast(
            tf.equal(tf.argmax(logits, -1, true_classes.dtype), true_classes), tf.float32
        )
        return PassResult(gradients, image_gradients, per_image, hits)

    def attacked(
        self, attack: Attack, branch: str, statistics: str, images, labels, seed
    ) -> tf.Tensor:
        """Returns the adversarial images of an attack on `attacked_network`."""
        network = attacked_network(self.model, branch, statistics, seed)
        with use_branch(branch, update_statistics=statistics == "running"):
            return attack(network, images, labels, seed)


def attacked_network(
    model: keras.Model, branch: str, statistics: str, seed: Optional[tf.Tensor] = None
):
    """Returns the `logits_fn` of an attack: the model through one branch, unchanged by it.

    Args:
        model: a `Network`.
        branch: "aux" for AdvProp, "main" if there is no other.
        statistics: "running" is inference mode, as in the paper; "batch" takes the
            moments of each batch without moving the running ones, as in Fast AdvProp.
        seed: int32 [2], for dropout and stochastic depth with "batch".
    """
    if statistics == "running":
        return lambda images: model(images, training=False, branch=branch)
    return lambda images: model(
        images, training=True, branch=branch, update_statistics=False, seed=seed
    )


def sum_of_gradients(gradients: Sequence[Optional[tf.Tensor]]) -> Optional[tf.Tensor]:
    """Returns the sum of the gradients that are not None; None if there is none."""
    given = [gradient for gradient in gradients if gradient is not None]
    return sum(given[1:], given[0]) if given else None


def start_after(gradients: Gradients, images: tf.Tensor) -> tf.Tensor:
    """Returns `images`, whose users then start after `gradients` are computed."""
    # The pass over clean images and the attack do not depend on each other, so XLA would
    # interleave them and keep the activations of two passes in memory.
    if not replica_runtime.current().executes_in_order:
        return images
    # The first gradient is the last one to be computed.
    return replica_runtime.after(
        next(gradient for gradient in gradients if gradient is not None),
        tf.cast(images, tf.float32),
    )
