"""Swish, alone and with squeeze-excite gates, whose gradients are one pass over memory.

Automatic differentiation of `tf.nn.silu` runs six elementwise operations over tensors
far larger than any cache, and these are a third of a training step on a CPU. Here the
gradient is one expression, compiled by XLA into one loop; inside a step that is
compiled as a whole it simply becomes part of it, and where there is no XLA (the host of
a TPU) it runs operation by operation. Only the activation's input is kept for the
backward pass, never the sigmoid.
"""

import tensorflow as tf

from tpu_utils.replicas import replica_runtime


def _swish_gradient(x, upstream):
    """d(x·σ(x))/dx · upstream, computed in float32 whatever the activations' dtype."""
    x32, upstream32 = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    sigmoid = tf.sigmoid(x32)
    return tf.cast(upstream32 * sigmoid * (1.0 + x32 * (1.0 - sigmoid)), x.dtype)


def _gated_swish_gradient(x, upstream, gates, upstream_mean):
    """The same where the output is multiplied by `gates` and also goes, as its spatial
    mean, somewhere else.
    """
    height, width = tf.unstack(tf.shape(x)[1:3])  # the shape of the arguments may leave them open
    share = tf.cast(upstream_mean, tf.float32)[:, None, None, :] / tf.cast(
        height * width, tf.float32
    )
    total = tf.cast(upstream, tf.float32) * tf.cast(gates, tf.float32)[:, None, None, :] + share
    return _swish_gradient(x, tf.cast(total, x.dtype))


def spatial_mean(x: tf.Tensor) -> tf.Tensor:
    """The mean over height and width, taken in float32: [batch, height, width,
    channels] → [batch, channels].
    """
    return tf.cast(tf.reduce_mean(tf.cast(x, tf.float32), [1, 2]), x.dtype)


_COMPILED = {
    function: tf.function(function, jit_compile=True)
    for function in (_swish_gradient, _gated_swish_gradient)
}


def _in_one_pass(function, *tensors):
    """The function's result, by XLA where there is one.

    One trace per shape: a network has dozens, which a plain call of a `tf.function`
    would warn about.
    """
    if not replica_runtime.current().compiles_parts:
        return function(*tensors)
    return _COMPILED[function].get_concrete_function(*tensors)(*tensors)


@tf.custom_gradient
def swish(x: tf.Tensor) -> tf.Tensor:
    """x·σ(x) (Ramachandran et al. 2017), the activation of EfficientNet.

    Args:
        x: float tensor of any shape.

    Returns:
        A tensor of the same shape and dtype.
    """
    return tf.nn.silu(x), lambda upstream: _in_one_pass(_swish_gradient, x, upstream)


def squeeze_excite(pooled, reduce_kernel, reduce_bias, expand_kernel, expand_bias) -> tf.Tensor:
    """One gate in (0, 1) per image and channel, from spatial means (Hu et al. 2018).

    Args:
        pooled: [batch, channels].
        reduce_kernel, expand_kernel: [channels, squeezed] and [squeezed, channels].
        reduce_bias, expand_bias: [squeezed] and [channels].

    Returns:
        [batch, channels].
    """
    squeezed = tf.nn.silu(tf.nn.bias_add(tf.linalg.matmul(pooled, reduce_kernel), reduce_bias))
    return tf.sigmoid(tf.nn.bias_add(tf.linalg.matmul(squeezed, expand_kernel), expand_bias))


@tf.custom_gradient
def gated_swish(x: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
    """swish(x) times its squeeze-excite gates; the gradients of both paths come back in
    one pass.

    Automatic differentiation would write the gated gradient, the broadcast gradient of
    the mean, and their sum to memory, each as large as the widest activation of the
    block.

    Args:
        x: float tensor [batch, height, width, channels]; height and width may be
            unknown when tracing.
        *weights: the two kernels and biases of `squeeze_excite`, in its order and in
            x's dtype.

    Returns:
        A tensor of x's shape and dtype.
    """
    y = tf.nn.silu(x)
    pooled = spatial_mean(y)
    gates = squeeze_excite(pooled, *weights)

    def gradient(upstream):
        products = tf.cast(upstream, tf.float32) * tf.cast(y, tf.float32)
        upstream_gates = tf.cast(tf.reduce_sum(products, [1, 2]), x.dtype)
        with tf.GradientTape(
            watch_accessed_variables=False
        ) as tape:  # small matrices: cheaper run again than kept
            tape.watch([pooled, *weights])
            again = squeeze_excite(pooled, *weights)
        upstream_mean, *weight_gradients = tape.gradient(again, [pooled, *weights], upstream_gates)
        gradient_of_x = _in_one_pass(_gated_swish_gradient, x, upstream, gates, upstream_mean)
        return gradient_of_x, *weight_gradients

    return y * gates[:, None, None, :], gradient


ACTIVATIONS = {"swish": swish, "relu": tf.nn.relu, "relu6": tf.nn.relu6}
