"""Loss functions as in the official TPU code, and the scale that float16 needs."""

import math

import tensorflow as tf

from efficientnet_advprop.attacks.labels import are_classes, check_labels, is_class
from efficientnet_advprop.models.network import official_name
from efficientnet_advprop.models.normalization import batch_norms


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the softmax cross-entropy per example, as `tf.losses.softmax_cross_entropy`.

    Args:
        labels: classes, or class weights (from MixUp or CutMix); see `check_labels`.
        logits: float [batch, classes].
        label_smoothing: in [0, 1); this fraction of the probability is spread evenly
            over all classes.

    Returns:
        float32 [batch]; nan where a label is not a class.

    Raises:
        AttackError: the labels have another type, shape or number of classes.
    """
    logits = tf.cast(logits, tf.float32)
    num_classes = logits.shape[-1]
    labels = check_labels(labels, num_classes, logits.shape[0])
    probabilities = tf.one_hot(labels, num_classes) if are_classes(labels) else labels
    probabilities = probabilities * (1.0 - label_smoothing) + label_smoothing / num_classes
    losses = tf.nn.softmax_cross_entropy_with_logits(probabilities, logits)
    if not are_classes(labels):
        return losses
    # The one-hot vector of an invalid class is zero, which would give a small loss.
    return tf.where(is_class(labels, num_classes), losses, math.nan)


def decayed_variables(model: tf.Module, biases: bool = True) -> list[tf.Variable]:
    """Returns the trainable variables that decay: all but those of batch norms, auxiliary
    ones included, the trained α of activations (SAT's code decays kernels alone) and, if
    asked for, biases.
    """
    spared = ("root_of_alpha",) if biases else ("root_of_alpha", "bias")
    of_norms = {id(variable) for norm in batch_norms(model) for variable in norm.variables}
    return [
        variable
        for variable in model.trainable_variables
        if id(variable) not in of_norms
        and official_name(variable.name).rpartition("/")[2] not in spared
    ]


class LossScale(tf.Module):
    """A factor of the loss, so that float16 gradients neither underflow nor overflow.

    It doubles after every `growth_steps` consecutive finite gradients, and halves (to no
    less than 1) after one that is not finite, as `LossScaleOptimizer` of Keras. Source:
    Micikevicius et al., ICLR 2018.

    Args:
        initial: the first scale.
        growth_steps: the number of finite gradients after which it doubles.
    """

    def __init__(self, initial: float = 2.0**15, growth_steps: int = 2000):
        super().__init__()
        self.growth_steps = growth_steps
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.num_finite = tf.Variable(
            0, trainable=False, dtype=tf.int64, name="loss_scale_num_finite"
        )

    def update(self, is_finite: tf.Tensor) -> None:
        """Counts a step in a replica; `is_finite` is the same on all of them."""
        num_finite = tf.where(is_finite, self.num_finite.read_value() + 1, 0)
        grows = num_finite >= self.growth_steps
        scale = self.scale.read_value()
        shrunk = tf.maximum(scale * 0.5, 1.0)
        grown = tf.minimum(scale * 2.0, 2.0**31)
        # Each replica updates its own copy, as everywhere in a step; the copies stay
        # equal.
        tf.raw_ops.AssignVariableOp(
            resource=self.scale.handle,
            value=tf.where(is_finite, tf.where(grows, grown, scale), shrunk),
        )
        tf.raw_ops.AssignVariableOp(
            resource=self.num_finite.handle,
            value=tf.where(grows, tf.zeros_like(num_finite), num_finite),
        )
