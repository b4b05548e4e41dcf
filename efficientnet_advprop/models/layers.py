"""Convolutions that can take a batch norm in, and the parts of an EfficientNet made of
them.

In training mode a batch norm follows its convolution. In inference mode it is a fixed
scale and offset per channel, so it goes into the kernel and a bias: no pass over the
activations is left of it. The attack runs in this mode K times a step.

Variables carry the official TF1 names below the model's scope
(`blocks_3/conv2d_1/kernel`, `stem/tpu_batch_normalization/gamma`).
"""

import functools
from typing import Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import activations
from efficientnet_advprop.models.activations import Activation, ActivationChoice
from efficientnet_advprop.models.convolutions import add_offset, convolve_1x1
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.routed_layers import (
    RoutedDepthwiseConvolution,
    RoutedPointwiseConvolution,
    Routing,
)
from efficientnet_advprop.models.scaling import Block
from tpu_utils.replicas import randomness


def kernel_initializer() -> keras.initializers.Initializer:
    """The official initial kernels: a plain (not truncated) normal of variance 2 /
    fan_out.

    One object gives one draw: ask anew.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def classifier_initializer() -> keras.initializers.Initializer:
    """The official initial classifier: uniform within ±1/√num_classes."""
    return keras.initializers.VarianceScaling(1.0 / 3.0, "fan_out", "uniform")


def build_in_scopes(shapes) -> None:
    """Builds sublayers, each inside a name scope of its own name.

    `shapes`: (layer, input shape) pairs; an activation without variables is passed
    over.
    """
    for layer, shape in shapes:
        if isinstance(layer, Activation):
            continue
        with tf.name_scope(layer.name):
            layer.build(tf.TensorShape(shape))


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
            scale, offset: float32 [filters]; what a folded batch norm multiplies and
                adds per output channel.

        Returns:
            A tensor [batch, ⌈height/strides⌉, ⌈width/strides⌉, filters] in the compute
            dtype.
        """
        kernel = tf.cast(self.kernel if scale is None else self.kernel * scale, self.compute_dtype)
        if self.kernel_size == self.strides == 1:
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
        kernel = self.depthwise_kernel if scale is None else self.depthwise_kernel * scale[:, None]
        strides = [1, self.strides, self.strides, 1]
        outputs = tf.nn.depthwise_conv2d(
            inputs, tf.cast(kernel, self.compute_dtype), strides, "SAME"
        )
        return add_offset(outputs, offset)


class PointwiseWeights(keras.layers.Layer):
    """Kernel and bias of a 1×1 convolution of a pooled (1×1) image, which is a matrix
    product; the caller does it.
    """

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


class GatedActivation(keras.layers.Layer):
    """The activation of an MBConv block's depthwise convolution, and the squeeze-excite
    gate on it, which has the same function inside.
    """

    def __init__(self, squeeze_filters: int, filters: int, activation: ActivationChoice, **kwargs):
        super().__init__(**kwargs)
        self.reduce = PointwiseWeights(squeeze_filters, name="conv2d")
        self.expand = PointwiseWeights(filters, name="conv2d_1")
        self.activation = activation.make("activation", dtype=kwargs.get("dtype"))
        self.squeezed_activation = activation.make("activation_1", dtype=kwargs.get("dtype"))

    def build(self, input_shape):
        build_in_scopes(
            [
                (self.reduce, input_shape),
                (self.expand, [None, self.reduce.units]),
                (self.activation, input_shape),
                (self.squeezed_activation, [None, self.reduce.units]),
            ]
        )
        self.built = True

    def call(self, inputs, training=False):
        """[batch, height, width, channels] → the same, in the same dtype."""
        weights = [*self.reduce(inputs.dtype), *self.expand(inputs.dtype)]
        if self.activation.choice.name == "swish":
            return activations.gated_swish(inputs, *weights)
        x = self.activation(inputs, training=training)
        gates = activations.squeeze_excite(
            activations.spatial_mean(x),
            *weights,
            activation=functools.partial(self.squeezed_activation, training=training),
        )
        return x * gates[:, None, None, :]


def convolve_and_normalize(
    convolution, norm: DualBatchNormalization, inputs: tf.Tensor, training: bool
) -> tf.Tensor:
    """Applies a convolution and its batch norm, which goes into the kernel in inference
    mode, or if it is frozen.
    """
    if norm.uses_batch_moments(training):
        return norm(convolution(inputs), training=training)
    return convolution(inputs, *norm.affine())


def drop_residual(inputs: tf.Tensor, survival_prob: float, seed: Optional[tf.Tensor]) -> tf.Tensor:
    """Stochastic depth (official `drop_connect`): each image's branch is kept with
    `survival_prob` and then divided by it.

    Args:
        inputs: float tensor [batch, height, width, channels].
        survival_prob: in (0, 1].
        seed: int32 [2], of stateless random numbers; None draws one, as Keras needs
            where it traces a layer on its own to save it.
    """
    noise = randomness.uniform([tf.shape(inputs)[0], 1, 1, 1], randomness.seed_or_fresh(seed))
    factors = tf.floor(survival_prob + noise) / survival_prob
    return inputs * tf.cast(factors, inputs.dtype)


class Stem(keras.layers.Layer):
    """The first convolution of a network, its batch norm and activation.

    Args:
        convolution: of stride 2.
        norm_name: what checkpoints call the batch norm.
    """

    def __init__(
        self,
        convolution: Convolution,
        norm_name: str,
        activation: ActivationChoice,
        norm_arguments: dict,
        **kwargs,
    ):
        super().__init__(name="stem", **kwargs)
        self.activation = activation.make("activation", dtype=kwargs.get("dtype"))
        self.convolution = convolution
        self.norm = DualBatchNormalization(
            name=norm_name, dtype=kwargs.get("dtype"), **norm_arguments
        )

    def build(self, input_shape):
        build_in_scopes(
            [
                (self.convolution, input_shape),
                (self.norm, [None, None, None, self.convolution.filters]),
                (self.activation, [None, None, None, self.convolution.filters]),
            ]
        )
        self.built = True

    def call(self, inputs, training=False):
        x = convolve_and_normalize(self.convolution, self.norm, inputs, training)
        return self.activation(x, training=training)


class InvertedBottleneck(keras.layers.Layer):
    """Widen, convolve, project back by 1×1, and the shortcut where there is one: what
    all EfficientNets' blocks share.

    A subclass makes `self.project` and `self.project_norm` and says how the images are
    widened.
    """

    def __init__(
        self,
        block: Block,
        activation: ActivationChoice,
        norm_arguments: dict,
        name: str,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.block = block
        self._norm_arguments = {**norm_arguments, "dtype": kwargs.get("dtype")}
        self._num_norms = 0
        self.project_activation: Optional[Activation] = None

    def make_norm(self) -> DualBatchNormalization:
        """The next batch norm, with the next official name."""
        name = _counted("tpu_batch_normalization", self._num_norms)
        self._num_norms += 1
        return DualBatchNormalization(name=name, **self._norm_arguments)

    def widen(self, inputs, routing, training: bool):
        """[batch, height, width, input_filters] → [batch, ⌈height/strides⌉,
        ⌈width/strides⌉, expanded_filters].
        """
        raise NotImplementedError(
            f"{type(self).__name__} is no block of its own; use MBConvBlock or FusedMBConvBlock."
        )

    def route(self, inputs) -> Optional[tf.Tensor]:
        """What mixes the experts, one row per image; None where there are none."""
        del inputs
        return None

    def call(
        self,
        inputs,
        training=False,
        seed: Optional[tf.Tensor] = None,
        with_end_points: bool = False,
    ):
        """The block's output; with `with_end_points` also {"expansion_output": what the
        projection gets}.
        """
        routing = self.route(inputs)
        expanded = self.widen(inputs, routing, training)
        project = (
            self.project if routing is None else functools.partial(self.project, routing=routing)
        )
        x = convolve_and_normalize(project, self.project_norm, expanded, training)
        if self.project_activation is not None:
            x = self.project_activation(x, training=training)
        if self.block.residual:
            if training and self.block.survival_prob < 1.0:
                x = drop_residual(x, self.block.survival_prob, seed)
            x = x + inputs
        return (x, {"expansion_output": expanded}) if with_end_points else x


class MBConvBlock(InvertedBottleneck):
    """Mobile inverted bottleneck: expand 1×1, depthwise, squeeze-excite gate, project
    1×1, and the shortcut where shapes allow it.

    In a routed block all three convolutions have kernels of each image's own.
    """

    def __init__(
        self,
        block: Block,
        activation: ActivationChoice,
        norm_arguments: dict,
        name: str,
        **kwargs,
    ):
        super().__init__(block, activation, norm_arguments, name, **kwargs)
        dtype = kwargs.get("dtype")
        names = _names_of_convolutions(block)
        self.routing = Routing(block.num_experts, name="dense") if block.num_experts else None

        def make_pointwise(filters):
            if not block.num_experts:
                return Convolution(filters, 1, name=next(names), dtype=dtype)
            return RoutedPointwiseConvolution(
                filters, block.num_experts, kernel_initializer, name=next(names), dtype=dtype
            )

        self.expand = self.expand_norm = self.expand_activation = None
        if block.expand_ratio != 1:
            self.expand = make_pointwise(block.expanded_filters)
            self.expand_norm = self.make_norm()
            self.expand_activation = activation.make("activation", dtype=dtype)
        if block.num_experts:
            self.depthwise = RoutedDepthwiseConvolution(
                block.kernel_size, block.strides, block.num_experts, kernel_initializer,
                name=_counted("depthwise_cond_conv2d", block.routed_index), dtype=dtype,
            )  # fmt: skip
        else:
            self.depthwise = DepthwiseConvolution(
                block.kernel_size, block.strides, name="depthwise_conv2d", dtype=dtype
            )
        self.depthwise_norm = self.make_norm()
        if block.squeeze_filters:
            self.depthwise_activation = GatedActivation(
                block.squeeze_filters, block.expanded_filters, activation, name="se", dtype=dtype
            )
        else:
            self.depthwise_activation = activation.make("activation_1", dtype=dtype)
        self.project = make_pointwise(block.output_filters)
        self.project_norm = self.make_norm()

    def build(self, input_shape):
        expanded = [None, None, None, self.block.expanded_filters]
        projected = [None, None, None, self.block.output_filters]
        parts = [] if self.routing is None else [(self.routing, input_shape)]
        parts += (
            []
            if self.expand is None
            else [
                (self.expand, input_shape),
                (self.expand_norm, expanded),
                (self.expand_activation, expanded),
            ]
        )
        parts += [(self.depthwise, expanded), (self.depthwise_norm, expanded)]
        parts += [(self.depthwise_activation, expanded)]
        parts += [(self.project, expanded), (self.project_norm, projected)]
        build_in_scopes(parts)
        self.built = True

    def route(self, inputs):
        return None if self.routing is None else self.routing(inputs)

    def widen(self, inputs, routing, training):
        with_routing = {} if routing is None else {"routing": routing}
        x = inputs
        if self.expand is not None:
            expand = functools.partial(self.expand, **with_routing)
            x = convolve_and_normalize(expand, self.expand_norm, x, training)
            x = self.expand_activation(x, training=training)
        depthwise = functools.partial(self.depthwise, **with_routing)
        x = convolve_and_normalize(depthwise, self.depthwise_norm, x, training)
        return self.depthwise_activation(x, training=training)


class FusedMBConvBlock(InvertedBottleneck):
    """One full 3×3 convolution, which has the stride, where an `MBConvBlock` has an
    expansion and a depthwise one; no gates.

    Without expansion (EfficientNetV2's first stage) it is the only convolution, and an
    activation follows. Gupta & Tan 2019, "EfficientNet-EdgeTPU"; Tan & Le 2021.
    """

    def __init__(
        self,
        block: Block,
        activation: ActivationChoice,
        norm_arguments: dict,
        name: str,
        **kwargs,
    ):
        super().__init__(block, activation, norm_arguments, name, **kwargs)
        dtype = kwargs.get("dtype")
        geometry = (block.kernel_size, block.strides)
        self.expand = self.expand_norm = self.expand_activation = None
        if block.expand_ratio == 1:
            self.project = Convolution(block.output_filters, *geometry, name="conv2d", dtype=dtype)
            self.project_activation = activation.make("activation", dtype=dtype)
        else:
            self.expand = Convolution(block.expanded_filters, *geometry, name="conv2d", dtype=dtype)
            self.expand_norm = self.make_norm()
            self.expand_activation = activation.make("activation", dtype=dtype)
            self.project = Convolution(block.output_filters, 1, name="conv2d_1", dtype=dtype)
        self.project_norm = self.make_norm()

    def build(self, input_shape):
        expanded = [None, None, None, self.block.expanded_filters]
        projected = [None, None, None, self.block.output_filters]
        parts = [(self.project, expanded), (self.project_norm, projected)]
        if self.expand is not None:
            parts = [
                (self.expand, input_shape),
                (self.expand_norm, expanded),
                (self.expand_activation, expanded),
                *parts,
            ]
        else:
            parts.append((self.project_activation, projected))
        build_in_scopes(parts)
        self.built = True

    def widen(self, inputs, routing, training):
        if self.expand is None:
            return inputs
        x = convolve_and_normalize(self.expand, self.expand_norm, inputs, training)
        return self.expand_activation(x, training=training)


def make_block(
    block: Block, activation: ActivationChoice, norm_arguments: dict, name: str, **kwargs
) -> InvertedBottleneck:
    """The layer that a row of `scaling.scaled_blocks` describes."""
    kind = FusedMBConvBlock if block.fused else MBConvBlock
    return kind(block, activation, norm_arguments, name, **kwargs)


def _counted(name: str, index: int) -> str:
    """TensorFlow 1's names of equal things: "conv2d", "conv2d_1", …"""
    return f"{name}_{index}" if index else name


def _names_of_convolutions(block: Block) -> Iterator[str]:
    """The official names of a block's expansion and projection, which count what it
    has.

    Those of routed blocks count on over the whole network, which makes three in each
    block, of which the first is never used.
    """
    if not block.num_experts:
        return iter(["conv2d", "conv2d_1"])
    return iter([_counted("cond_conv2d", 3 * block.routed_index + number) for number in (1, 2)])


class Head(keras.layers.Layer):
    """The last 1×1 convolution, the mean over the image, dropout and the classifier."""

    def __init__(
        self,
        filters: int,
        num_classes: int,
        dropout_rate: float,
        activation: ActivationChoice,
        norm_arguments: dict,
        **kwargs,
    ):
        super().__init__(name="head", **kwargs)
        self.dropout_rate = dropout_rate
        self.activation = activation.make("activation", dtype=kwargs.get("dtype"))
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
            (self.activation, [None, None, None, filters]),
            (self.classifier, [None, filters]),
        ]
        build_in_scopes(parts)
        self.built = True

    def call(
        self,
        inputs,
        training=False,
        seed: Optional[tf.Tensor] = None,
    ):
        """Returns logits, float32 [batch, num_classes], and endpoints:
        "pooled_features", float32 [batch, filters], and "head_1x1", the last feature
        map.
        """
        x = convolve_and_normalize(self.convolution, self.norm, inputs, training)
        x = self.activation(x, training=training)
        pooled = tf.cast(activations.spatial_mean(x), tf.float32)
        dropped = pooled
        if training and self.dropout_rate > 0.0:
            dropped = randomness.dropout(pooled, self.dropout_rate, randomness.seed_or_fresh(seed))
        return self.classifier(dropped), {"pooled_features": pooled, "head_1x1": x}

    @property
    def below_classifier(self) -> list[keras.layers.Layer]:
        """What of the head is no classifier, and stays as it is where only the
        classifier is trained.
        """
        return [self.convolution, self.norm]
