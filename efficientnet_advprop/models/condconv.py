"""CondConv: convolutions whose kernels are mixed anew for each image, from experts (Yang et
al., NeurIPS 2019).

The official code runs one convolution per image and so needs a static batch. Here a 1×1
convolution is one batched matrix product, and the depthwise convolutions of all images
are a single one over batch × channels.

Variables: the official kernels belong to plain Keras layers, which TensorFlow 1 put
below `<network>/model/<block>/` and not below `<network>/<block>/` as all others.
"""

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.activations import spatial_mean
from efficientnet_advprop.models.layers import add_offset, kernel_initializer
from efficientnet_advprop.runtime.pass_mode import weights


class Routing(keras.layers.Layer):
    """How much of each expert an image gets: σ(dense(mean over height and width)); the
    shares need not sum to one.
    """

    def __init__(self, num_experts: int, **kwargs):
        super().__init__(dtype=tf.float32, **kwargs)
        self.num_experts = num_experts

    def build(self, input_shape):
        self.kernel = self.add_weight(
            "kernel", [input_shape[-1], self.num_experts], initializer="glorot_uniform"
        )
        self.bias = self.add_weight("bias", [self.num_experts], initializer="zeros")
        self.built = True

    def call(self, inputs):
        """Float tensor [batch, height, width, channels] → float32 [batch, experts]."""
        pooled = tf.cast(spatial_mean(inputs), tf.float32)
        kernel, bias = weights(lambda: (self.kernel, self.bias))
        return tf.sigmoid(tf.nn.bias_add(tf.linalg.matmul(pooled, kernel), bias))


class ExpertKernels(keras.layers.Layer):
    """Kernels of one shape, one per expert, all in one variable [experts, h · w · in · out]."""

    def __init__(self, num_experts: int, weight_name: str, **kwargs):
        super().__init__(**kwargs)
        self.num_experts, self.weight_name = num_experts, weight_name

    def kernel_shape(self, channels: int) -> list[int]:
        """Returns the shape of one expert's kernel, [height, width, in, out]."""
        raise NotImplementedError

    def build(self, input_shape):
        shape = self.kernel_shape(input_shape[-1])

        def initialize(flat_shape, dtype):
            kernels = [kernel_initializer()(shape, dtype) for _ in range(self.num_experts)]
            return tf.reshape(tf.stack(kernels), flat_shape)

        network, block, own = tf.get_current_name_scope().rsplit("/", 2)
        # The slash at the end: not below the current scope.
        with tf.name_scope(f"{network}/model/{block}/{own}/"):
            self.experts = self.add_weight(
                self.weight_name,
                [self.num_experts, shape[0] * shape[1] * shape[2] * shape[3]],
                tf.float32,
                initialize,
                experimental_autocast=False,
            )
        self.built = True

    def mix(self, routing: tf.Tensor, shape: list[int], scale) -> tf.Tensor:
        """Returns one kernel per image, in the compute dtype, of `routing` [batch, experts].

        `scale`, float32 [output channels], is what the kernels are multiplied by; None: 1.
        """

        def scaled():
            # Before they are mixed: there are fewer experts than images.
            experts = tf.reshape(self.experts, [-1, *shape]) * scale
            return tf.reshape(experts, [self.num_experts, -1])

        experts = weights(lambda: self.experts if scale is None else scaled())
        kernels = tf.reshape(tf.linalg.matmul(routing, experts), [-1, *shape])
        return tf.cast(kernels, self.compute_dtype)


def convolve_pointwise(images: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
    """Convolves [batch, height, width, channels] with 1×1 kernels of each image's own,
    [batch, channels, filters].
    """
    (_, height, width, channels), filters = images.shape, kernels.shape[-1]
    rows = tf.shape(images)[1] * tf.shape(images)[2] if None in (height, width) else height * width
    outputs = tf.linalg.matmul(tf.reshape(images, [-1, rows, channels]), kernels)
    outputs = tf.reshape(outputs, [-1, tf.shape(images)[1], tf.shape(images)[2], filters])
    return tf.ensure_shape(outputs, [*images.shape[:3], filters])


def convolve_depthwise(images: tf.Tensor, kernels: tf.Tensor, strides: int) -> tf.Tensor:
    """Convolves each channel of [batch, height, width, channels], padding "SAME", with
    kernels of each image's own, [batch, size, size, channels].
    """
    size, channels = kernels.shape[1], images.shape[-1]
    batch, height, width, _ = tf.unstack(tf.shape(images))
    # All images' channels side by side, as those of one image.
    kernels = tf.reshape(tf.transpose(kernels, [1, 2, 0, 3]), [size, size, batch * channels, 1])
    joined = tf.reshape(tf.transpose(images, [1, 2, 0, 3]), [1, height, width, batch * channels])
    outputs = tf.nn.depthwise_conv2d(joined, kernels, [1, strides, strides, 1], "SAME")
    outputs = tf.reshape(outputs, [tf.shape(outputs)[1], tf.shape(outputs)[2], batch, channels])
    sides = [None if side is None else -(-side // strides) for side in images.shape[1:3]]
    return tf.ensure_shape(tf.transpose(outputs, [2, 0, 1, 3]), [images.shape[0], *sides, channels])


class RoutedPointwiseConvolution(ExpertKernels):
    """A 1×1 convolution."""

    def __init__(self, filters: int, num_experts: int, **kwargs):
        super().__init__(num_experts, "condconv_kernel", **kwargs)
        self.filters = filters

    def kernel_shape(self, channels):
        return [1, 1, channels, self.filters]

    def call(self, inputs, scale=None, offset=None, *, routing):
        """Convolves; all but `routing`, float32 [batch, experts], as in `Convolution`."""
        kernels = self.mix(routing, [inputs.shape[-1], self.filters], scale)
        return add_offset(convolve_pointwise(inputs, kernels), offset)


class RoutedDepthwiseConvolution(ExpertKernels):
    """A depthwise convolution of multiplier 1, padding "SAME"."""

    def __init__(self, kernel_size: int, strides: int, num_experts: int, **kwargs):
        super().__init__(num_experts, "depthwise_condconv_kernel", **kwargs)
        self.kernel_size, self.strides = kernel_size, strides

    def kernel_shape(self, channels):
        return [self.kernel_size, self.kernel_size, channels, 1]

    def call(self, inputs, scale=None, offset=None, *, routing):
        shape = [self.kernel_size, self.kernel_size, inputs.shape[-1]]
        outputs = convolve_depthwise(inputs, self.mix(routing, shape, scale), self.strides)
        return add_offset(outputs, offset)
