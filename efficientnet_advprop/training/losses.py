"""Loss functions, computed as in the official TPU code."""

import math

import tensorflow as tf

from efficientnet_advprop.attacks.labels import are_classes, check_labels, is_class
from efficientnet_advprop.models.normalization import batch_norms


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy per example, as in `tf.losses.softmax_cross_entropy`.

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


def decayed_variables(model: tf.Module) -> list[tf.Variable]:
    """The trainable variables to which weight decay applies: all except those of batch
    norms, auxiliary ones included, and the trained α of activations (SAT's code decays
    kernels alone).
    """
    of_norms = {id(variable) for norm in batch_norms(model) for variable in norm.variables}
    return [
        variable
        for variable in model.trainable_variables
        if id(variable) not in of_norms and "root_of_alpha" not in variable.name
    ]
