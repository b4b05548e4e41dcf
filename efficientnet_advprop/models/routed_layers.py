"""Convolutions whose kernels are mixed anew for each image, from experts.

Yang et al., "CondConv", NeurIPS 2019.

    # float32 [batch, experts], in (0, 1)
    routing = Routing(num_experts, name="dense")(inputs)
    outputs = RoutedPointwiseConvolution(filters, num_experts, make)(inputs, routing=routing)

The official code runs one convolution per image and so needs a static batch. Here a 1×1
convolution is one batched matrix product, and the depthwise convolutions of all images
are a single one over batch × channels.

Variables: the official kernels belong to plain Keras layers, which TensorFlow 1 put
below `<network>/model/<block>/` and not below `<network>/<block>/` as all others.
"""

from typing import Callable

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import activations
from efficientnet_advprop.models.convolutions import add_offset


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
        pooled = tf.cast(activations.spatial_mean(inputs), tf.float32)
        return tf.sigmoid(tf.nn.bias_add(tf.linalg.matmul(pooled, self.kernel), self.bias))


class ExpertKernels(keras.layers.Layer):
    """Kernels of one shape, one per expert.

    Args:
        num_experts: how many.
        weight_name: of the variable that holds them all, [experts, height · width · in
            · out].
        make_initializer: makes the initializer of one kernel; asked anew for each,
            since one object gives one draw.
    """

    def __init__(self, num_experts: int, weight_name: str, make_initializer: Callable, **kwargs):
        super().__init__(**kwargs)
        self.num_experts, self.weight_name, self.make_initializer = (
            num_experts,
            weight_name,
            make_initializer,
        )

    def kernel_shape(self, channels: int) -> list[int]:
        """The shape of one expert's kernel, [height, width, in, out]."""
        raise NotImplementedError(
            f"{type(self).__name__} has no kernels of its own; use a subclass that says their"
            " shape."
        )

    def build(self, input_shape):
        shape = self.kernel_shape(input_shape[-1])

        def initialize(flat_shape, dtype):
            kernels = [self.make_initializer()(shape, dtype) for _ in range(self.num_experts)]
            return tf.reshape(tf.stack(kernels), flat_shape)

        network, block, own = tf.get_current_name_scope().rsplit("/", 2)
        with tf.name_scope(
            f"{network}/model/{block}/{own}/"
        ):  # the slash at the end: not below the current scope
            self.experts = self.add_weight(
                self.weight_name,
                [self.num_experts, shape[0] * shape[1] * shape[2] * shape[3]],
                tf.float32,
                initialize,
                experimental_autocast=False,
            )
        self.built = True

    def mix(self, routing: tf.Tensor, shape: list[int]) -> tf.Tensor:
        """One kernel per image: routing [batch, experts] → float32 [batch, *shape]."""
        return tf.reshape(tf.linalg.matmul(routing, self.experts), [-1, *shape])


def convolve_pointwise(images: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
    """A 1×1 convolution by kernels of each image's own.

    Args:
        images: float tensor [batch, height, width, channels].
        kernels: [batch, channels, filters], in the same dtype.

    Returns:
        [batch, height, width, filters].
    """
    (_, height, width, channels), filters = images.shape, kernels.shape[-1]
    rows = tf.shape(images)[1] * tf.shape(images)[2] if None in (height, width) else height * width
    outputs = tf.linalg.matmul(tf.reshape(images, [-1, rows, channels]), kernels)
    outputs = tf.reshape(outputs, [-1, tf.shape(images)[1], tf.shape(images)[2], filters])
    return tf.ensure_shape(outputs, [*images.shape[:3], filters])


def convolve_depthwise(images: tf.Tensor, kernels: tf.Tensor, strides: int) -> tf.Tensor:
    """A depthwise convolution, padding "SAME", by kernels of each image's own.

    Args:
        images: float tensor [batch, height, width, channels].
        kernels: [batch, size, size, channels], in the same dtype.
        strides: in both directions.

    Returns:
        [batch, ⌈height/strides⌉, ⌈width/strides⌉, channels].
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
    """A 1×1 convolution, without a bias of its own."""

    def __init__(self, filters: int, num_experts: int, make_initializer: Callable, **kwargs):
        super().__init__(num_experts, "condconv_kernel", make_initializer, **kwargs)
        self.filters = filters

    def kernel_shape(self, channels):
        return [1, 1, channels, self.filters]

    def call(self, inputs, scale=None, offset=None, *, routing):
        """Convolves; `routing` is float32 [batch, experts], all else as in
        `layers.Convolution`.
        """
        kernels = self.mix(routing, [inputs.shape[-1], self.filters])
        kernels = kernels if scale is None else kernels * scale
        outputs = convolve_pointwise(inputs, tf.cast(kernels, self.compute_dtype))
        return add_offset(outputs, offset)


class RoutedDepthwiseConvolution(ExpertKernels):
    """A depthwise convolution of multiplier 1, padding "SAME", without a bias of its
    own.
    """

    def __init__(
        self, kernel_size: int, strides: int, num_experts: int, make_initializer: Callable, **kwargs
    ):
        super().__init__(num_experts, "depthwise_condconv_kernel", make_initializer, **kwargs)
        self.kernel_size, self.strides = kernel_size, strides

    def kernel_shape(self, channels):
        return [self.kernel_size, self.kernel_size, channels, 1]

    def call(self, inputs, scale=None, offset=None, *, routing):
        """Convolves each channel; arguments and result as in
        `RoutedPointwiseConvolution`.
        """
        kernels = self.mix(routing, [self.kernel_size, self.kernel_size, inputs.shape[-1]])
        kernels = kernels if scale is None else kernels * scale
        outputs = convolve_depthwise(inputs, tf.cast(kernels, self.compute_dtype), self.strides)
        return add_offset(outputs, offset)
