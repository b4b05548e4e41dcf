"""What an attack ascends: functions of logits and labels, one number per image, larger
where the network errs more.

    dlr(labels, logits)                                           # float32 [batch]

All take labels int [batch] and float logits [batch, classes].
"""

import tensorflow as tf

from efficientnet_advprop.attacks.labels import are_classes, check_labels

_TINY = 1e-12


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Plain cross-entropy per image.

    Args:
        labels: see `check_labels`.
        logits: float [batch, classes].

    Returns:
        float32 [batch].

    Raises:
        LabelError: see `check_labels`.
    """
    logits = tf.cast(logits, tf.float32)
    labels = check_labels(labels, logits.shape[-1], logits.shape[0])
    if are_classes(labels):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def logit_of(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Each image's logit of its label, float32 [batch]."""
    return tf.reduce_sum(logits * tf.one_hot(labels, logits.shape[-1]), -1)


def largest_other(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Each image's largest logit of another class than its label, float32 [batch]."""
    is_own = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.reduce_max(tf.where(is_own, logits.dtype.min, logits), -1)


def margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """By how much the label's logit exceeds every other; below 0 the image is
    misclassified.

    Falls where the network errs.
    """
    return logit_of(labels, logits) - largest_other(labels, logits)


def dlr(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Difference of logits ratio (Croce and Hein, ICML 2020, equation 6): −margin over
    the step from first to third logit.

    Unlike cross-entropy it does not change when all logits are shifted or scaled. Needs
    three classes.
    """
    top = tf.math.top_k(logits, 3).values
    return -margin(labels, logits) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(labels: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The same towards a wrong class (equation 7): the target's logit less the label's,
    over the step from the first logit to the middle of third and fourth.

    Needs four classes.
    """
    top = tf.math.top_k(logits, 4).values
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
    return (logit_of(targets, logits) - logit_of(labels, logits)) / (spread + _TINY)


def is_right(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Whether the label is the class of the largest logit (of equal ones the lowest
    class), bool [batch].
    """
    return tf.equal(tf.argmax(logits, -1, tf.int32), tf.cast(labels, tf.int32))


def likeliest_wrong_classes(labels: tf.Tensor, logits: tf.Tensor, num_targets: int) -> tf.Tensor:
    """The `num_targets` classes of the largest logits without the label's, likeliest
    first; int32 [batch, num_targets].
    """
    is_own = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.math.top_k(tf.where(is_own, logits.dtype.min, logits), num_targets).indices
