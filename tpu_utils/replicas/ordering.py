"""An order of execution that XLA keeps: it ignores control dependencies and sees only data."""

import tensorflow as tf


def after(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """`second`, in a way that makes everything computed from it wait for `first`.

    The zero that is added is one that no compiler can know to be zero, so that the result is not `second` to XLA's common
    subexpression elimination either. Where `first`'s first element is not finite, the result is not.

    Args:
        first: float tensor of any shape, not empty.
        second: float tensor.

    Returns:
        A tensor of `second`'s shape, dtype and values.
    """
    element = tf.reshape(first, [-1])[0]
    zero = tf.where(tf.math.is_finite(element), tf.zeros_like(element), element)
    return second + tf.cast(zero, second.dtype)
