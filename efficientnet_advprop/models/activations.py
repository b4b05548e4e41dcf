"""Swish with a gradient that is one pass over memory.

Automatic differentiation of `tf.nn.silu` runs six elementwise operations over tensors far larger than any cache, and these are a
third of a training step on a CPU. Here the gradient is one expression, compiled by XLA into one loop; inside a step that is
compiled as a whole it simply becomes part of it. Only the activation's input is kept for the backward pass, never the sigmoid.
"""

import tensorflow as tf


@tf.function(jit_compile=True)
def _swish_gradient(x, upstream):
    """d(x·σ(x))/dx · upstream, computed in float32 whatever the activations' dtype."""
    x32, upstream32 = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    sigmoid = tf.sigmoid(x32)
    return tf.cast(upstream32 * sigmoid * (1.0 + x32 * (1.0 - sigmoid)), x.dtype)


@tf.function(jit_compile=True)
def _pooled_swish_gradient(x, upstream, upstream_mean):
    """The same, with the gradient of the spatial mean of the output added on the way."""
    share = tf.cast(upstream_mean, tf.float32) / float(x.shape[1] * x.shape[2])
    return _swish_gradient(x, tf.cast(tf.cast(upstream, tf.float32) + share[:, None, None, :], upstream.dtype))


def _traced(function, *tensors):
    """Calls a `tf.function`, one trace per shape: a network has dozens, which a plain call would warn about."""
    return function.get_concrete_function(*tensors)(*tensors)


@tf.custom_gradient
def swish(x: tf.Tensor) -> tf.Tensor:
    """x·σ(x) (Ramachandran et al. 2017), the activation of EfficientNet.

    Args:
        x: float tensor of any shape.

    Returns:
        A tensor of the same shape and dtype.
    """
    return tf.nn.silu(x), lambda upstream: _traced(_swish_gradient, x, upstream)


@tf.custom_gradient
def swish_and_mean(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Swish and its mean over height and width, whose two gradients come back in one pass.

    Args:
        x: float tensor [batch, height, width, channels], of static height and width.

    Returns:
        swish(x), and its spatial mean [batch, channels] in the same dtype.
    """
    y = tf.nn.silu(x)
    mean = tf.cast(tf.reduce_mean(tf.cast(y, tf.float32), [1, 2]), y.dtype)
    return (y, mean), lambda upstream, upstream_mean: _traced(_pooled_swish_gradient, x, upstream, upstream_mean)
