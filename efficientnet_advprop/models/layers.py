"""What both families are made of: convolutions that can take a batch norm in, stem and head.

In training mode a batch norm follows its convolution. In inference mode it is a fixed
scale and offset per channel, so it goes into the kernel and a bias: no pass over the
activations is left of it. The attack runs in this mode K times a step.
"""

from typing import Callable, Iterable, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.activations import Activation, spatial_mean
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.pass_mode import current_pass, weights
from tpu_utils import randomness


def kernel_initializer() -> keras.initializers.Initializer:
    """Returns the official one: a plain (not truncated) normal of variance 2 / fan_out."""
    # A new one for each kernel: one object gives one draw.
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def build_in_scopes(shapes: Iterable) -> None:
    """Builds sublayers, (layer or None, input shape) each, inside name scopes of their names."""
    for layer, shape in shapes:
        if isinstance(layer, keras.layers.Layer):  # an `Activation` has no variables
            with tf.name_scope(layer.name):
                layer.build(tf.TensorShape(shape))


# A convolution, its batch norm, and the activation behind it, if there is one.
Step = tuple[keras.layers.Layer, DualBatchNormalization, Optional[Callable]]


def build_steps(steps: Iterable[Step], shape) -> tf.TensorShape:
    """Builds the layers of steps that follow each other, and returns their outputs' shape."""
    for convolution, norm, activation in steps:
        build_in_scopes([(convolution, shape)])
        shape = [None, None, None, getattr(convolution, "filters", shape[-1])]
        build_in_scopes([(norm, shape), (activation, shape)])
    return tf.TensorShape(shape)


def run_steps(steps: Iterable[Step], x: tf.Tensor, training: bool, **routing):
    """Returns the outputs of steps that follow each other, and the inputs of the last one.

    A batch norm goes into its convolution's kernel in inference mode, or if it is frozen.
    """
    inputs = x
    for convolution, norm, activation in steps:
        inputs = x
        if norm.uses_batch_moments(training):
            x = norm(convolution(inputs, **routing), training=training)
        else:
            x = convolution(inputs, *norm.affine(), **routing)
        if activation is not None:
            x = activation(x, training=training)
    return x, inputs


def add_offset(outputs: tf.Tensor, offset: Optional[tf.Tensor]) -> tf.Tensor:
    """Adds `offset` [channels] of any float dtype, unless it is None."""
    return outputs if offset is None else tf.nn.bias_add(outputs, tf.cast(offset, outputs.dtype))


@tf.custom_gradient
def convolve_1x1(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves with a kernel [1, 1, channels, filters] of the same dtype."""

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
    """A 2-D convolution, of odd size, without a bias of its own.

    `symmetric_padding` is of (kernel_size − 1) / 2 zeros on every side, as ResNets have;
    False is "SAME", which differs where a stride above 1 meets an even size.
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
        """[batch, height, width, channels] → [batch, ⌈height/strides⌉, ⌈width/strides⌉,
        filters] in the compute dtype.

        `scale`, float32 [filters] or [channels, filters], and `offset` [filters] are of a
        batch norm in inference mode: the kernel is multiplied by the one, the other added.
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
    """A depthwise 2-D convolution of multiplier 1, padding "SAME"."""

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
        kernel = self.depthwise_kernel
        kernel = weights(lambda: kernel if scale is None else kernel * scale[:, None])
        strides = [1, self.strides, self.strides, 1]
        kernel = tf.cast(kernel, self.compute_dtype)
        outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, "SAME")
        return add_offset(outputs, offset)


def drop_residual(inputs: tf.Tensor, survival_prob: float, seed: Optional[tf.Tensor]) -> tf.Tensor:
    """Keeps each image's residual branch with `survival_prob`, and then divides it by
    that: stochastic depth (official `drop_connect`).
    """
    # Without a seed one is drawn, as Keras needs where it traces a layer alone to save it.
    noise = randomness.uniform([tf.shape(inputs)[0], 1, 1, 1], randomness.seed_or_fresh(seed))
    factors = tf.floor(survival_prob + noise) / survival_prob
    return inputs * tf.cast(factors, inputs.dtype)


class Stem(keras.layers.Layer):
    """The first convolution of a network, its batch norm, of official name, and activation."""

    def __init__(
        self,
        convolution: Convolution,
        norm_name: str,
        activation: Activation,
        norms: dict,
        **kwargs,
    ):
        super().__init__(name="stem", **kwargs)
        dtype = kwargs.get("dtype")
        self.activation = activation.make("activation", dtype=dtype)
        self.convolution = convolution
        self.norm = DualBatchNormalization(name=norm_name, dtype=dtype, **norms)

    def build(self, input_shape):
        build_steps([(self.convolution, self.norm, self.activation)], input_shape)
        self.built = True

    def call(self, inputs, training=False, deviation=None):
        """In inference mode with a `deviation` [channels], the kernel divides the inputs by it."""
        if deviation is None:
            step = (self.convolution, self.norm, self.activation)
            return run_steps([step], inputs, training)[0]
        scale, offset = self.norm.affine()
        x = self.convolution(inputs, scale / deviation[:, None], offset)
        return self.activation(x, training=training)


class ClassifierLayer(keras.layers.Dense):
    """The last layer: [batch, channels] → float32 logits [batch, num_classes]."""

    def __init__(self, num_classes: int, initializer: keras.initializers.Initializer):
        super().__init__(
            num_classes, kernel_initializer=initializer, name="dense", dtype=tf.float32
        )

    def call(self, inputs):
        kernel, bias = weights(lambda: (self.kernel, self.bias))
        return tf.nn.bias_add(tf.linalg.matmul(inputs, kernel), bias)


class Head(keras.layers.Layer):
    """The mean over the image, dropout and the classifier; in an EfficientNet below them a
    1×1 convolution with these `filters`, `activation` and `norms`.
    """

    def __init__(
        self,
        classifier: ClassifierLayer,
        dropout_rate: float,
        filters: Optional[int] = None,
        activation: Optional[Activation] = None,
        norms: Optional[dict] = None,
        **kwargs,
    ):
        super().__init__(name="head", **kwargs)
        self.dropout_rate = dropout_rate
        self.convolution = self.norm = self.activation = None
        if filters is not None:
            dtype = kwargs.get("dtype")
            self.activation = activation.make("activation", dtype=dtype)
            self.convolution = Convolution(filters, 1, name="conv2d", dtype=dtype)
            self.norm = DualBatchNormalization(name="tpu_batch_normalization", dtype=dtype, **norms)
        self.classifier = classifier

    def build(self, input_shape):
        outputs = build_steps(self._steps, input_shape)
        build_in_scopes([(self.classifier, [None, outputs[-1]])])
        self.built = True

    @property
    def _steps(self) -> list[Step]:
        return [] if self.convolution is None else [(self.convolution, self.norm, self.activation)]

    def call(self, inputs, training=False, seed: Optional[tf.Tensor] = None):
        """Returns logits, float32 [batch, num_classes], and endpoints: "pooled_features",
        float32 [batch, channels], and "head_1x1", the convolution's feature map.
        """
        x, _ = run_steps(self._steps, inputs, training)
        pooled = tf.cast(spatial_mean(x), tf.float32)
        end_points = {} if self.convolution is None else {"head_1x1": x}
        end_points["pooled_features"] = pooled
        if training and self.dropout_rate > 0.0:
            pooled = randomness.dropout(pooled, self.dropout_rate, randomness.seed_or_fresh(seed))
        return self.classifier(pooled), end_points

    @property
    def below_classifier(self) -> list[keras.layers.Layer]:
        """What stays as it is where only the classifier is trained."""
        return [] if self.convolution is None else [self.convolution, self.norm]
