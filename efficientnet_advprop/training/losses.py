"""Losses, as the official TPU code computes them."""

from typing import Sequence

import tensorflow as tf


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy per example, as in `tf.losses.softmax_cross_entropy`.

    Args:
        labels: int [batch], or class probabilities float [batch, classes] (from MixUp or CutMix).
        logits: float [batch, classes].
        label_smoothing: in [0, 1): this share of the probability is spread evenly over all classes.

    Returns:
        float32 [batch].
    """
    logits = tf.cast(logits, tf.float32)
    num_classes = logits.shape[-1]
    probabilities = (
        tf.one_hot(labels, num_classes) if labels.shape.rank == 1 else tf.cast(labels, tf.float32)
    )
    probabilities = probabilities * (1.0 - label_smoothing) + label_smoothing / num_classes
    return tf.nn.softmax_cross_entropy_with_logits(probabilities, logits)


def is_decayed(name: str) -> bool:
    """Whether weight decay covers a trainable variable: all but the batch norms', auxiliary ones included."""
    return "batch_normalization" not in name


def weight_decay_loss(variables: Sequence[tf.Variable], weight_decay: float) -> tf.Tensor:
    """weight_decay · Σ ½‖v‖² over the decayed ones of `variables`; float32 scalar."""
    return weight_decay * tf.add_n(
        [tf.nn.l2_loss(variable) for variable in variables if is_decayed(variable.name)]
    )
