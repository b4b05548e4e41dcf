import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models import activations


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 2e-6), (tf.bfloat16, 2e-2)])
def test_swish_and_its_mean_have_tensorflows_values_and_gradients(dtype, tolerance):
    random = np.random.RandomState(0)
    x32 = tf.constant(random.uniform(-12, 12, [2, 4, 5, 3]), tf.float32)
    upstream, upstream_mean = tf.constant(random.standard_normal([2, 4, 5, 3]), dtype), tf.constant(random.standard_normal([2, 3]), dtype)
    x = tf.cast(x32, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, mean = activations.swish_and_mean(x)
        loss = tf.reduce_sum(y * upstream) + tf.reduce_sum(mean * upstream_mean)
    gradient = tape.gradient(loss, x)
    wide = tf.cast(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(wide)
        wanted = tf.nn.silu(wide)
        wanted_mean = tf.reduce_mean(wanted, [1, 2])
        loss = tf.reduce_sum(wanted * tf.cast(upstream, tf.float32)) + tf.reduce_sum(wanted_mean * tf.cast(upstream_mean, tf.float32))
    wanted_gradient = tape.gradient(loss, wide)
    for found, value in [(y, wanted), (mean, wanted_mean), (gradient, wanted_gradient)]:
        assert found.dtype == dtype
        np.testing.assert_allclose(tf.cast(found, tf.float32), value, rtol=tolerance, atol=tolerance)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = activations.swish(x)
    np.testing.assert_allclose(
        tf.cast(tape.gradient(y, x), tf.float32), tf.sigmoid(wide) * (1 + wide * (1 - tf.sigmoid(wide))), rtol=tolerance, atol=tolerance
    )
