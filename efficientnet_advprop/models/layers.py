"""The parts of an EfficientNet: stem, blocks and head.

Variables carry the official TF1 names below the model's scope
(`blocks_3/conv2d_1/kernel`, `stem/tpu_batch_normalization/gamma`).
"""

import functools
from typing import Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import activations
from efficientnet_advprop.models.activations import Activation, ActivationChoice
from efficientnet_advprop.models.condconv import (
    RoutedDepthwiseConvolution,
    RoutedPointwiseConvolution,
    Routing,
)
from efficientnet_advprop.models.convolutions import (
    Convolution,
    DepthwiseConvolution,
    build_in_scopes,
    convolve_and_normalize,
    kernel_initializer,
)
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.scaling import Block
from efficientnet_advprop.runtime.pass_mode import current_pass, weights
from tpu_utils import randomness


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
        """Returns the kernel as a matrix [channels, units] and the bias, in `dtype`."""
        kernel, bias = weights(lambda: (self.kernel[0, 0], self.bias))
        return tf.cast(kernel, dtype), tf.cast(bias, dtype)


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
        squeezed = [None, self.reduce.units]
        build_in_scopes([(self.reduce, input_shape), (self.expand, squeezed)])
        build_in_scopes([(self.activation, input_shape), (self.squeezed_activation, squeezed)])
        self.built = True

    def call(self, inputs, training=False):
        """[batch, height, width, channels] → the same, in the same dtype."""
        matrices = [*self.reduce(inputs.dtype), *self.expand(inputs.dtype)]
        if self.activation.choice.name == "swish" and not current_pass().constant_weights:
            return activations.gated_swish(inputs, *matrices)
        x = self.activation(inputs, training=training)
        gates = activations.squeeze_excite(
            activations.spatial_mean(x),
            *matrices,
            activation=functools.partial(self.squeezed_activation, training=training),
        )
        return x * gates[:, None, None, :]


def drop_residual(inputs: tf.Tensor, survival_prob: float, seed: Optional[tf.Tensor]) -> tf.Tensor:
    """Keeps each image's residual branch with `survival_prob`, and then divides it by
    that: stochastic depth (official `drop_connect`).

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
        dtype = kwargs.get("dtype")
        self.activation = activation.make("activation", dtype=dtype)
        self.convolution = convolution
        self.norm = DualBatchNormalization(name=norm_name, dtype=dtype, **norm_arguments)

    def build(self, input_shape):
        outputs = [None, None, None, self.convolution.filters]
        build_in_scopes([(self.convolution, input_shape)])
        build_in_scopes([(self.norm, outputs), (self.activation, outputs)])
        self.built = True

    def call(self, inputs, training=False, deviation=None):
        """Convolves, normalises and activates; in inference mode with a `deviation`
        [channels], the kernel divides the inputs by it.
        """
        if deviation is None:
            x = convolve_and_normalize(self.convolution, self.norm, inputs, training)
        else:
            scale, offset = self.norm.affine()
            x = self.convolution(inputs, scale / deviation[:, None], offset)
        return self.activation(x, training=training)


class InvertedBottleneck(keras.layers.Layer):
    """Widen, convolve, project back by 1×1, and the shortcut where there is one: what
    all EfficientNets' blocks share.

    A subclass makes `self.project` and `self.project_norm` and says how the images are
    widened.
    """

    def __init__(
        self, block: Block, activation: ActivationChoice, norm_arguments: dict, name: str, **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.block = block
        self._norm_arguments = {**norm_arguments, "dtype": kwargs.get("dtype")}
        self._num_norms = 0
        self.project_activation: Optional[Activation] = None

    def make_norm(self) -> DualBatchNormalization:
        """Returns the next batch norm, with the next official name."""
        name = _counted("tpu_batch_normalization", self._num_norms)
        self._num_norms += 1
        return DualBatchNormalization(name=name, **self._norm_arguments)

    def widening_parts(self, inputs: tf.TensorShape, expanded: list) -> list:
        """Returns (layer, shape of its input) of what `widen` uses, in order."""
        raise NotImplementedError(f"{type(self).__name__} is no block of its own.")

    def widen(self, inputs, routing, training: bool):
        """[batch, height, width, input_filters] → [batch, ⌈height/strides⌉,
        ⌈width/strides⌉, expanded_filters].
        """
        raise NotImplementedError(f"{type(self).__name__} is no block of its own.")

    def route(self, inputs) -> dict:
        """Returns what convolutions need to mix their experts, as keyword arguments."""
        del inputs
        return {}

    def build(self, input_shape):
        expanded = [None, None, None, self.block.expanded_filters]
        projected = [None, None, None, self.block.output_filters]
        build_in_scopes(self.widening_parts(input_shape, expanded))
        build_in_scopes([(self.project, expanded), (self.project_norm, projected)])
        if self.project_activation is not None:
            build_in_scopes([(self.project_activation, projected)])
        self.built = True

    def call(
        self,
        inputs,
        training=False,
        seed: Optional[tf.Tensor] = None,
        with_end_points: bool = False,
    ):
        """Returns the block's output; with `with_end_points` also {"expansion_output":
        what the projection gets}.
        """
        routing = self.route(inputs)
        expanded = self.widen(inputs, routing, training)
        project = functools.partial(self.project, **routing)
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
        self, block: Block, activation: ActivationChoice, norm_arguments: dict, name: str, **kwargs
    ):
        super().__init__(block, activation, norm_arguments, name, **kwargs)
        dtype, num_experts = kwargs.get("dtype"), block.num_experts
        names = _names_of_convolutions(block)
        self.routing = Routing(num_experts, name="dense") if num_experts else None

        def make_pointwise(filters):
            if not num_experts:
                return Convolution(filters, 1, name=next(names), dtype=dtype)
            return RoutedPointwiseConvolution(filters, num_experts, name=next(names), dtype=dtype)

        self.expand = self.expand_norm = self.expand_activation = None
        if block.expand_ratio != 1:
            self.expand = make_pointwise(block.expanded_filters)
            self.expand_norm = self.make_norm()
            self.expand_activation = activation.make("activation", dtype=dtype)
        size, strides = block.kernel_size, block.strides
        if num_experts:
            own_name = _counted("depthwise_cond_conv2d", block.routed_index)
            self.depthwise = RoutedDepthwiseConvolution(
                size, strides, num_experts, name=own_name, dtype=dtype
            )
        else:
            self.depthwise = DepthwiseConvolution(
                size, strides, name="depthwise_conv2d", dtype=dtype
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

    def widening_parts(self, inputs, expanded):
        parts = [] if self.routing is None else [(self.routing, inputs)]
        if self.expand is not None:
            parts += [(self.expand, inputs), (self.expand_norm, expanded)]
            parts += [(self.expand_activation, expanded)]
        own = (self.depthwise, self.depthwise_norm, self.depthwise_activation)
        return parts + [(layer, expanded) for layer in own]

    def route(self, inputs):
        return {} if self.routing is None else {"routing": self.routing(inputs)}

    def widen(self, inputs, routing, training):
        x = inputs
        if self.expand is not None:
            expand = functools.partial(self.expand, **routing)
            x = convolve_and_normalize(expand, self.expand_norm, x, training)
            x = self.expand_activation(x, training=training)
        depthwise = functools.partial(self.depthwise, **routing)
        x = convolve_and_normalize(depthwise, self.depthwise_norm, x, training)
        return self.depthwise_activation(x, training=training)


class FusedMBConvBlock(InvertedBottleneck):
    """One full 3×3 convolution, which has the stride, where an `MBConvBlock` has an
    expansion and a depthwise one; no gates.

    Without expansion (EfficientNetV2's first stage) it is the only convolution, and an
    activation follows. Gupta & Tan 2019, "EfficientNet-EdgeTPU"; Tan & Le 2021.
    """

    def __init__(
        self, block: Block, activation: ActivationChoice, norm_arguments: dict, name: str, **kwargs
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

    def widening_parts(self, inputs, expanded):
        if self.expand is None:
            return []
        own = (self.expand_norm, self.expand_activation)
        return [(self.expand, inputs), *((layer, expanded) for layer in own)]

    def widen(self, inputs, routing, training):
        if self.expand is None:
            return inputs
        x = convolve_and_normalize(self.expand, self.expand_norm, inputs, training)
        return self.expand_activation(x, training=training)


def make_block(
    block: Block, activation: ActivationChoice, norm_arguments: dict, name: str, **kwargs
) -> InvertedBottleneck:
    """Returns the layer that a row of `scaling.scaled_blocks` describes."""
    kind = FusedMBConvBlock if block.fused else MBConvBlock
    return kind(block, activation, norm_arguments, name, **kwargs)


def _counted(name: str, index: int) -> str:
    """TensorFlow 1's names of equal things: "conv2d", "conv2d_1", …"""
    return f"{name}_{index}" if index else name


def _names_of_convolutions(block: Block) -> Iterator[str]:
    """Returns the official names of a block's expansion and projection."""
    if not block.num_experts:
        return iter(["conv2d", "conv2d_1"])
    # They count on over the whole network, three in each block, of which the first is
    # never used.
    return iter([_counted("cond_conv2d", 3 * block.routed_index + number) for number in (1, 2)])


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
    """The mean over the image, dropout and the classifier; in an EfficientNet below
    them a 1×1 convolution.

    Args:
        classifier: of the pooled features.
        dropout_rate: in training.
        filters: of the convolution; None: there is none.
        activation, norm_arguments: of the convolution.
    """

    def __init__(
        self,
        classifier: ClassifierLayer,
        dropout_rate: float,
        filters: Optional[int] = None,
        activation: Optional[ActivationChoice] = None,
        norm_arguments: Optional[dict] = None,
        **kwargs,
    ):
        super().__init__(name="head", **kwargs)
        self.dropout_rate, self.convolution = dropout_rate, None
        if filters is not None:
            dtype = kwargs.get("dtype")
            self.activation = activation.make("activation", dtype=dtype)
            self.convolution = Convolution(filters, 1, name="conv2d", dtype=dtype)
            self.norm = DualBatchNormalization(
                name="tpu_batch_normalization", dtype=dtype, **norm_arguments
            )
        self.classifier = classifier

    def build(self, input_shape):
        channels = input_shape[-1]
        if self.convolution is not None:
            channels = self.convolution.filters
            outputs = [None, None, None, channels]
            build_in_scopes([(self.convolution, input_shape), (self.norm, outputs)])
            build_in_scopes([(self.activation, outputs)])
        build_in_scopes([(self.classifier, [None, channels])])
        self.built = True

    def call(self, inputs, training=False, seed: Optional[tf.Tensor] = None):
        """Returns logits, float32 [batch, num_classes], and endpoints:
        "pooled_features", float32 [batch, channels], and "head_1x1", the convolution's
        feature map.
        """
        x, end_points = inputs, {}
        if self.convolution is not None:
            x = convolve_and_normalize(self.convolution, self.norm, x, training)
            x = end_points["head_1x1"] = self.activation(x, training=training)
        pooled = tf.cast(activations.spatial_mean(x), tf.float32)
        end_points["pooled_features"] = pooled
        if training and self.dropout_rate > 0.0:
            pooled = randomness.dropout(pooled, self.dropout_rate, randomness.seed_or_fresh(seed))
        return self.classifier(pooled), end_points

    @property
    def below_classifier(self) -> list[keras.layers.Layer]:
        """What stays as it is where only the classifier is trained."""
        return [] if self.convolution is None else [self.convolution, self.norm]
