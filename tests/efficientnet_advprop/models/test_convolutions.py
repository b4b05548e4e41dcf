"""Convolutions with a gradient of our own, against TensorFlow's."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models.layers import Convolution, add_offset, convolve_1x1

SHAPES = {"inputs": [2, 5, 4, 6], "kernel": [1, 1, 6, 3], "offset": [3], "weights": [2, 5, 4, 3]}


def draw(dtype=tf.float32):
    random = np.random.default_rng(0)
    return {name: tf.cast(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def differentiate(convolve, tensors, num_times=1):
    """What a weighted sum of squares, or of its gradient's squares, says of each tensor."""
    sources = [tensors[name] for name in ("inputs", "kernel", "offset")]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(sources)
        total = tf.reduce_sum(tensors["weights"] * tf.square(convolve(*sources)))
        for _ in range(num_times - 1):
            of_inputs = tape.gradient(total, sources[0])
            total = tf.reduce_sum(tf.square(of_inputs))
    return tape.gradient(total, sources)


def by_ourselves(inputs, kernel, offset):
    return add_offset(convolve_1x1(inputs, kernel), offset)


def by_tensorflow(inputs, kernel, offset):
    return tf.nn.conv2d(inputs, kernel, 1, "SAME") + offset


@pytest.mark.parametrize("way", ["eager", "graph", "xla"])
@pytest.mark.parametrize("num_times", [1, 2])
def test_the_gradients_of_a_1x1_convolution(way, num_times):
    tensors = draw()

    def ours():
        return differentiate(by_ourselves, tensors, num_times)

    if way != "eager":
        ours = tf.function(ours, jit_compile=way == "xla")
    for mine, theirs in zip(ours(), differentiate(by_tensorflow, tensors, num_times)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)


def test_low_precision_stays_low():
    tensors = draw(tf.bfloat16)
    exact = differentiate(by_tensorflow, {n: tf.cast(t, tf.float32) for n, t in tensors.items()})
    for mine, theirs in zip(differentiate(by_ourselves, tensors), exact):
        assert mine.dtype == tf.bfloat16
        largest = float(tf.reduce_max(tf.abs(theirs)))
        np.testing.assert_allclose(tf.cast(mine, tf.float32), theirs, atol=0.03 * largest)


@pytest.mark.parametrize(("kernel_size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("is_folded", [False, True])
def test_a_layer_differentiates_like_tensorflows_convolution(kernel_size, strides, is_folded):
    tensors = draw()
    layer = Convolution(3, kernel_size, strides)
    scale, offset = [tensors["offset"] + 2.0, tensors["offset"]] if is_folded else [None, None]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensors)
        outputs = layer(tensors["inputs"], scale, offset)
        kernel = layer.kernel * scale if is_folded else layer.kernel
        expected = tf.nn.conv2d(tensors["inputs"], kernel, strides, "SAME")
        expected = expected + offset if is_folded else expected
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    sources = [tensors["inputs"], layer.kernel, *([tensors["offset"]] if is_folded else [])]
    for mine, theirs in zip(tape.gradient(outputs, sources), tape.gradient(expected, sources)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)
