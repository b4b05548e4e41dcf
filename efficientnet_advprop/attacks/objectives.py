"""What an attack ascends: functions of labels (int [batch]) and logits (float [batch,
classes]) that return float32 [batch], larger where the network errs more.

A logit of −inf excludes its class: no function turns it into NaN.
"""

import tensorflow as tf

from efficientnet_advprop.attacks.labels import are_classes, check_labels

_TINY = 1e-12


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the plain cross-entropy of each image; labels as `check_labels` takes them."""
    logits = tf.cast(logits, tf.float32)
    labels = check_labels(labels, logits.shape[-1], logits.shape[0])
    if are_classes(labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    # An excluded class of weight zero would add 0 · inf.
    logits = tf.maximum(logits, logits.dtype.min)
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def _is_own(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns which logit is the label's, bool [batch, classes]."""
    return tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)


def logit_of(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns each image's logit of its label."""
    return tf.reduce_sum(tf.where(_is_own(labels, logits), logits, 0.0), -1)


def margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns by how much the label's logit exceeds every other.

    Falls where the network errs; below 0 the image is misclassified.
    """
    others = tf.where(_is_own(labels, logits), logits.dtype.min, logits)
    return logit_of(labels, logits) - tf.reduce_max(others, -1)


def _top(logits: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the largest logits; in place of excluded ones the smallest that is not."""
    top = tf.math.top_k(logits, count).values
    is_excluded = tf.equal(top, -float("inf"))
    least = tf.reduce_min(tf.where(is_excluded, logits.dtype.max, top), -1, keepdims=True)
    return tf.where(is_excluded, least, top)


def dlr(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the difference of logits ratio (Croce and Hein, ICML 2020, equation 6):
    −margin over the step from first to third logit.

    Unlike cross-entropy it does not change when all logits are shifted or scaled. Needs
    three classes.
    """
    top = _top(logits, 3)
    return -margin(labels, logits) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(labels: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the same towards a wrong class (equation 7): the target's logit less the
    label's, over the step from the first logit to the middle of third and fourth.

    Needs four classes.
    """
    top = _top(logits, 4)
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
    return (logit_of(targets, logits) - logit_of(labels, logits)) / (spread + _TINY)


def is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns whether the label has the largest logit (of equal ones the lowest class's)."""
    return tf.equal(tf.argmax(logits, -1, tf.int32), tf.cast(labels, tf.int32))


def likeliest_wrong_classes(labels: tf.Tensor, logits: tf.Tensor, num_targets: int) -> tf.Tensor:
    """Returns the wrong classes of the largest logits, likeliest first, int32 [batch, n]."""
    # The label's own logit comes last, behind those of excluded classes.
    others = tf.maximum(logits, 0.5 * logits.dtype.min)
    others = tf.where(_is_own(labels, logits), logits.dtype.min, others)
    return tf.math.top_k(others, num_targets).indices
