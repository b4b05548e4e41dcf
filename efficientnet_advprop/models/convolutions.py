"""Convolutions that can take a batch norm in, and a 1×1 one with a fast gradient.

In training mode a batch norm follows its convolution. In inference mode it is a fixed
scale and offset per channel, so it goes into the kernel and a bias: no pass over the
activations is left of it. The attack runs in this mode K times a step.
"""

from typing import Iterable, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.activations import Activation
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.pass_mode import current_pass, weights


def kernel_initializer() -> keras.initializers.Initializer:
    """Returns the official initializer of kernels: a plain (not truncated) normal of
    variance 2 / fan_out.
    """
    # A new one for each kernel: one object gives one draw.
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def build_in_scopes(shapes: Iterable) -> None:
    """Builds sublayers, (layer, input shape) each, inside name scopes of their names."""
    for layer, shape in shapes:
        if isinstance(layer, Activation):  # no layer, and without variables
            continue
        with tf.name_scope(layer.name):
            layer.build(tf.TensorShape(shape))


def add_offset(outputs: tf.Tensor, offset: Optional[tf.Tensor]) -> tf.Tensor:
    """Adds `offset` [channels] of any float dtype, unless it is None, to `outputs`
    [batch, height, width, channels].
    """
    return outputs if offset is None else tf.nn.bias_add(outputs, tf.cast(offset, outputs.dtype))


@tf.custom_gradient
def convolve_1x1(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves [batch, height, width, channels] with a kernel [1, 1, channels,
    filters] of the same dtype.
    """

    # TensorFlow's own gradient with respect to the inputs takes twice as long on a CPU
    # as another 1×1 convolution, for the same sums; to a TPU's compiler they are one.
    def gradient(upstream):
        to_inputs = tf.nn.conv2d(upstream, tf.transpose(kernel, [0, 1, 3, 2]), 1, "SAME")
        to_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=inputs,
            filter_sizes=tf.shape(kernel),
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="SAME",
        )
        return to_inputs, to_kernel

    return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradient


class Convolution(keras.layers.Layer):
    """A 2-D convolution without a bias of its own.

    Args:
        filters, kernel_size, strides: of the convolution; the size is odd.
        symmetric_padding: of (kernel_size − 1) / 2 zeros on every side, as ResNets
            have; False is "SAME", which differs where a stride above 1 meets an even
            size.
        initializer: of the kernel; None: `kernel_initializer`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        symmetric_padding: bool = False,
        initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        sides = [(kernel_size - 1) // 2] * 2
        # Only where the two differ: explicit padding has no fast gradients on CPUs.
        is_explicit = symmetric_padding and strides > 1 and kernel_size > 1
        self.padding = [[0, 0], sides, sides, [0, 0]] if is_explicit else "SAME"
        self.initializer = initializer or kernel_initializer()

    def build(self, input_shape):
        shape = [self.kernel_size, self.kernel_size, input_shape[-1], self.filters]
        self.kernel = self.add_weight(
            "kernel", shape, tf.float32, self.initializer, experimental_autocast=False
        )
        self.built = True

    def call(self, inputs, scale=None, offset=None):
        """Convolves.

        Args:
            inputs: float tensor [batch, height, width, channels].
            scale, offset: of a batch norm in inference mode: what the kernel is
                multiplied by, float32 [filters] or [channels, filters], and what is
                added to the outputs, [filters].

        Returns:
            A tensor [batch, ⌈height/strides⌉, ⌈width/strides⌉, filters] in the compute
            dtype.
        """
        kernel = weights(lambda: self.kernel if scale is None else self.kernel * scale)
        kernel = tf.cast(kernel, self.compute_dtype)
        # An exported graph shall hold plain operations, which its readers know.
        if self.kernel_size == self.strides == 1 and not current_pass().constant_weights:
            outputs = convolve_1x1(inputs, kernel)
        else:
            outputs = tf.nn.conv2d(inputs, kernel, self.strides, self.padding)
        return add_offset(outputs, offset)


class DepthwiseConvolution(keras.layers.Layer):
    """A depthwise 2-D convolution of multiplier 1, padding "SAME", without a bias of
    its own.
    """

    def __init__(self, kernel_size: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size, self.strides = kernel_size, strides

    def build(self, input_shape):
        shape = [self.kernel_size, self.kernel_size, input_shape[-1], 1]
        self.depthwise_kernel = self.add_weight(
            "depthwise_kernel", shape, tf.float32, kernel_initializer(), experimental_autocast=False
        )
        self.built = True

    def call(self, inputs, scale=None, offset=None):
        """Convolves each channel; arguments and result as those of `Convolution`."""
        kernel = self.depthwise_kernel
        kernel = weights(lambda: kernel if scale is None else kernel * scale[:, None])
        strides = [1, self.strides, self.strides, 1]
        outputs = tf.nn.depthwise_conv2d(
            inputs, tf.cast(kernel, self.compute_dtype), strides, "SAME"
        )
        return add_offset(outputs, offset)


def convolve_and_normalize(
    convolution, norm: DualBatchNormalization, inputs: tf.Tensor, training: bool
) -> tf.Tensor:
    """Applies a convolution and its batch norm, which goes into the kernel in inference
    mode, or if it is frozen.
    """
    if norm.uses_batch_moments(training):
        return norm(convolution(inputs), training=training)
    return convolution(inputs, *norm.affine())
