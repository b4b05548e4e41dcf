"""Convolutions that can take a batch norm in, and the parts of an EfficientNet made of them.

In training mode a batch norm follows its convolution. In inference mode it is a fixed scale and offset per channel, so it
goes into
the kernel and a bias: no pass over the activations is left of it. The attack runs in this mode K times a step.

Variables carry the official TF1 names below the model's scope (`blocks_3/conv2d_1/kernel`,
`stem/tpu_batch_normalization/gamma`).
"""

from typing import Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import activations
from efficientnet_advprop.models.normalization import MAIN, DualBatchNormalization
from efficientnet_advprop.models.scaling import Block
from tpu_utils.replicas import randomness


def kernel_initializer() -> keras.initializers.Initializer:
    """The official initial kernels: a plain (not truncated) normal of variance 2 / fan_out. One object gives one draw: ask
    anew."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def classifier_initializer() -> keras.initializers.Initializer:
    """The official initial classifier: uniform within ±1/√num_classes."""
    return keras.initializers.VarianceScaling(1.0 / 3.0, "fan_out", "uniform")


def build_in_scopes(shapes) -> None:
    """Builds sublayers, each inside a name scope of its own name. `shapes`: (layer, input shape) pairs."""
    for layer, shape in shapes:
        with tf.name_scope(layer.name):
            layer.build(tf.TensorShape(shape))


class Convolution(keras.layers.Layer):
    """A 2-D convolution without a bias of its own.

    Args:
        filters, kernel_size, strides: of the convolution; the size is odd.
        symmetric_padding: of (kernel_size − 1) / 2 zeros on every side, as ResNets have; False is "SAME", which differs where
            a stride above 1 meets an even size.
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
            scale, offset: float32 [filters]; what a folded batch norm multiplies and adds per output channel.

        Returns:
            A tensor [batch, ⌈height/strides⌉, ⌈width/strides⌉, filters] in the compute dtype.
        """
        kernel = tf.cast(self.kernel if scale is None else self.kernel * scale, self.compute_dtype)
        outputs = tf.nn.conv2d(inputs, kernel, self.strides, self.padding)
        return (
            outputs if offset is None else tf.nn.bias_add(outputs, tf.cast(offset, outputs.dtype))
        )


class DepthwiseConvolution(keras.layers.Layer):
    """A depthwise 2-D convolution of multiplier 1, padding "SAME", without a bias of its own."""

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
        kernel = self.depthwise_kernel if scale is None else self.depthwise_kernel * scale[:, None]
        strides = [1, self.strides, self.strides, 1]
        outputs = tf.nn.depthwise_conv2d(
            inputs, tf.cast(kernel, self.compute_dtype), strides, "SAME"
        )
        return (
            outputs if offset is None else tf.nn.bias_add(outputs, tf.cast(offset, outputs.dtype))
        )


class PointwiseWeights(keras.layers.Layer):
    """Kernel and bias of a 1×1 convolution of a pooled (1×1) image, which is a matrix product; the caller does it."""

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        shape = [1, 1, input_shape[-1], self.units]
        self.kernel = self.add_weight(
            "kernel", shape, tf.float32, kernel_initializer(), experimental_autocast=False
        )
        self.bias = self.add_weight(
            "bias", [self.units], tf.float32, "zeros", experimental_autocast=False
        )
        self.built = True

    def call(self, dtype):
        """The kernel as a matrix [channels, units] and the bias [units], in `dtype`."""
        return tf.cast(self.kernel[0, 0], dtype), tf.cast(self.bias, dtype)


class GatedSwish(keras.layers.Layer):
    """The activation of an MBConv block's depthwise convolution, and the squeeze-excite gate on it."""

    def __init__(self, squeeze_filters: int, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.reduce = PointwiseWeights(squeeze_filters, name="conv2d")
        self.expand = PointwiseWeights(filters, name="conv2d_1")

    def build(self, input_shape):
        build_in_scopes([(self.reduce, input_shape), (self.expand, [None, self.reduce.units])])
        self.built = True

    def call(self, inputs):
        """[batch, height, width, channels] → the same, in the same dtype."""
        return activations.gated_swish(
            inputs, *self.reduce(inputs.dtype), *self.expand(inputs.dtype)
        )


def convolve_and_normalize(
    convolution,
    norm: DualBatchNormalization,
    inputs,
    *,
    training: bool,
    branch: str,
    update_statistics: bool,
):
    """A convolution and its batch norm; in inference mode (or frozen) the norm goes into the kernel."""
    if training and norm.trainable:
        return norm(
            convolution(inputs), training=True, branch=branch, update_statistics=update_statistics
        )
    return convolution(inputs, *norm.affine(branch))


def drop_residual(inputs: tf.Tensor, survival_prob: float, seed: Optional[tf.Tensor]) -> tf.Tensor:
    """Stochastic depth (official `drop_connect`): each image's branch is kept with `survival_prob` and then divided by it.

    Args:
        inputs: float tensor [batch, height, width, channels].
        survival_prob: in (0, 1].
        seed: int32 [2], of stateless random numbers; None draws one, as Keras needs where it traces a layer on its own to
            save it.
    """
    noise = randomness.uniform([tf.shape(inputs)[0], 1, 1, 1], randomness.seed_or_fresh(seed))
    factors = tf.floor(survival_prob + noise) / survival_prob
    return inputs * tf.cast(factors, inputs.dtype)


class Stem(keras.layers.Layer):
    """The first convolution, stride 2."""

    def __init__(self, filters: int, norm_arguments: dict, **kwargs):
        super().__init__(name="stem", **kwargs)
        self.convolution = Convolution(filters, 3, 2, name="conv2d", dtype=kwargs.get("dtype"))
        self.norm = DualBatchNormalization(
            name="tpu_batch_normalization", dtype=kwargs.get("dtype"), **norm_arguments
        )

    def build(self, input_shape):
        build_in_scopes(
            [
                (self.convolution, input_shape),
                (self.norm, [None, None, None, self.convolution.filters]),
            ]
        )
        self.built = True

    def call(self, inputs, training=False, branch=MAIN, update_statistics=True):
        mode = dict(training=training, branch=branch, update_statistics=update_statistics)
        return activations.swish(
            convolve_and_normalize(self.convolution, self.norm, inputs, **mode)
        )


class MBConvBlock(keras.layers.Layer):
    """Mobile inverted bottleneck: expand 1×1, depthwise, squeeze-excite gate, project 1×1, and the shortcut where shapes
    allow it."""

    def __init__(self, block: Block, norm_arguments: dict, name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        self.block = block
        dtype = kwargs.get("dtype")
        filters = block.input_filters * block.expand_ratio
        # The official names count up over what a block has: without an expansion the projection is "conv2d".
        convolution_names = iter(["conv2d", "conv2d_1"])
        norm_names = iter(
            ["tpu_batch_normalization", "tpu_batch_normalization_1", "tpu_batch_normalization_2"]
        )

        def make_norm():
            return DualBatchNormalization(name=next(norm_names), dtype=dtype, **norm_arguments)

        self.expand = self.expand_norm = None
        if block.expand_ratio != 1:
            self.expand = Convolution(filters, 1, name=next(convolution_names), dtype=dtype)
            self.expand_norm = make_norm()
        self.depthwise = DepthwiseConvolution(
            block.kernel_size, block.strides, name="depthwise_conv2d", dtype=dtype
        )
        self.depthwise_norm = make_norm()
        self.gated_swish = GatedSwish(block.squeeze_filters, filters, name="se", dtype=dtype)
        self.project = Convolution(
            block.output_filters, 1, name=next(convolution_names), dtype=dtype
        )
        self.project_norm = make_norm()

    def build(self, input_shape):
        expanded = [None, None, None, self.block.input_filters * self.block.expand_ratio]
        projected = [None, None, None, self.block.output_filters]
        parts = (
            []
            if self.expand is None
            else [(self.expand, input_shape), (self.expand_norm, expanded)]
        )
        parts += [
            (self.depthwise, expanded),
            (self.depthwise_norm, expanded),
            (self.gated_swish, expanded),
        ]
        parts += [(self.project, expanded), (self.project_norm, projected)]
        build_in_scopes(parts)
        self.built = True

    def call(
        self,
        inputs,
        training=False,
        branch=MAIN,
        update_statistics=True,
        seed: Optional[tf.Tensor] = None,
    ):
        mode = dict(training=training, branch=branch, update_statistics=update_statistics)
        x = inputs
        if self.expand is not None:
            x = activations.swish(convolve_and_normalize(self.expand, self.expand_norm, x, **mode))
        x = self.gated_swish(convolve_and_normalize(self.depthwise, self.depthwise_norm, x, **mode))
        x = convolve_and_normalize(self.project, self.project_norm, x, **mode)
        if not self.block.residual:
            return x
        if training and self.block.survival_prob < 1.0:
            x = drop_residual(x, self.block.survival_prob, seed)
        return x + inputs


class Head(keras.layers.Layer):
    """The last 1×1 convolution, the mean over the image, dropout and the classifier."""

    def __init__(
        self, filters: int, num_classes: int, dropout_rate: float, norm_arguments: dict, **kwargs
    ):
        super().__init__(name="head", **kwargs)
        self.dropout_rate = dropout_rate
        self.convolution = Convolution(filters, 1, name="conv2d", dtype=kwargs.get("dtype"))
        self.norm = DualBatchNormalization(
            name="tpu_batch_normalization", dtype=kwargs.get("dtype"), **norm_arguments
        )
        self.classifier = keras.layers.Dense(
            num_classes, kernel_initializer=classifier_initializer(), name="dense", dtype=tf.float32
        )

    def build(self, input_shape):
        filters = self.convolution.filters
        parts = [
            (self.convolution, input_shape),
            (self.norm, [None, None, None, filters]),
            (self.classifier, [None, filters]),
        ]
        build_in_scopes(parts)
        self.built = True

    def call(
        self,
        inputs,
        training=False,
        branch=MAIN,
        update_statistics=True,
        seed: Optional[tf.Tensor] = None,
    ):
        """Returns logits, float32 [batch, num_classes], and endpoints: "pooled_features", float32 [batch, filters], and
        "head_1x1", the last feature map."""
        mode = dict(training=training, branch=branch, update_statistics=update_statistics)
        x = activations.swish(convolve_and_normalize(self.convolution, self.norm, inputs, **mode))
        pooled = tf.cast(activations.spatial_mean(x), tf.float32)
        dropped = pooled
        if training and self.dropout_rate > 0.0:
            dropped = randomness.dropout(pooled, self.dropout_rate, randomness.seed_or_fresh(seed))
        return self.classifier(dropped), {"pooled_features": pooled, "head_1x1": x}

    @property
    def below_classifier(self) -> list[keras.layers.Layer]:
        """What of the head is no classifier, and stays as it is where only the classifier is trained."""
        return [self.convolution, self.norm]
