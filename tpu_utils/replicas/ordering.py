"""Prescribes an order of execution to XLA.

XLA ignores control dependencies; it respects only the dependencies between data.
"""

import tensorflow as tf


def after(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns `second` such that everything computed from it waits for `first`.

    A zero is added that depends on `first`. No compiler can prove that it is zero, so
    XLA's common subexpression elimination does not merge the result with `second`
    either. If the first element of `first` is not finite, the result is not finite.

    Args:
        first: float tensor of any shape, not empty.
        second: float tensor.

    Returns:
        A tensor with the shape, dtype and values of `second`.
    """
    element = tf.reshape(first, [-1])[0]
    zero = tf.where(tf.math.is_finite(element), tf.zeros_like(element), element)
    return second + tf.cast(zero, second.dtype)
