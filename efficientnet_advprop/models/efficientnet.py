"""EfficientNet B0–B8, L1 and L2, Lite, EdgeTPU, CondConv and V2, or any width, depth and
resolution, with AdvProp's auxiliary batch norms.

Architecture: Tan & Le, ICML 2019, and the official `efficientnet_model`; variables
carry the official TF1 names below the model's scope (`blocks_3/conv2d_1/kernel`).
"""

import functools
from typing import Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.activations import (
    Activation,
    gated_swish,
    spatial_mean,
    squeeze_excite,
)
from efficientnet_advprop.models.condconv import (
    RoutedDepthwiseConvolution,
    RoutedPointwiseConvolution,
    Routing,
)
from efficientnet_advprop.models.layers import (
    ClassifierLayer,
    Convolution,
    DepthwiseConvolution,
    Head,
    Stem,
    Step,
    build_in_scopes,
    build_steps,
    drop_residual,
    kernel_initializer,
    run_steps,
)
from efficientnet_advprop.models.network import BlockNetwork, given_scaling
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.scaling import Block
from efficientnet_advprop.runtime.errors import require_choice
from efficientnet_advprop.runtime.pass_mode import current_pass, weights


class PointwiseWeights(keras.layers.Layer):
    """Kernel and bias of a 1×1 convolution of a pooled (1×1) image: a matrix product, which
    the caller does.
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
    """The activation behind a depthwise convolution, and the squeeze-excite gate on it, which
    has the same function inside.
    """

    def __init__(self, squeeze_filters: int, filters: int, activation: Activation, **kwargs):
        super().__init__(**kwargs)
        self.reduce = PointwiseWeights(squeeze_filters, name="conv2d")
        self.expand = PointwiseWeights(filters, name="conv2d_1")
        self.activation_name = activation.name
        self.activation = activation.make("activation", dtype=kwargs.get("dtype"))
        self.squeezed_activation = activation.make("activation_1", dtype=kwargs.get("dtype"))

    def build(self, input_shape):
        squeezed = [None, self.reduce.units]
        build_in_scopes([(self.reduce, input_shape), (self.expand, squeezed)])
        build_in_scopes([(self.activation, input_shape), (self.squeezed_activation, squeezed)])
        self.built = True

    def call(self, inputs, training=False):
        matrices = [*self.reduce(inputs.dtype), *self.expand(inputs.dtype)]
        if self.activation_name == "swish" and not current_pass().constant_weights:
            return gated_swish(inputs, *matrices)
        x = self.activation(inputs, training=training)
        gates = squeeze_excite(
            spatial_mean(x),
            *matrices,
            activation=functools.partial(self.squeezed_activation, training=training),
        )
        return x * gates[:, None, None, :]


class InvertedBottleneck(keras.layers.Layer):
    """Widen, convolve, project back by 1×1, and the shortcut where shapes allow it.

    A subclass makes the layers; of expansion, depthwise convolution and projection it may
    lack the first two.
    """

    def __init__(self, block: Block, activation: Activation, norms: dict, name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        self.block, self.dtype_argument = block, kwargs.get("dtype")
        self._norm_arguments = dict(norms)
        self._num_norms = 0
        self.routing = self.expand = self.depthwise = self.project_activation = None
        self.make_layers(activation)

    def make_layers(self, activation: Activation) -> None:
        raise NotImplementedError

    def make_norm(self) -> DualBatchNormalization:
        name = _counted("tpu_batch_normalization", self._num_norms)
        self._num_norms += 1
        return DualBatchNormalization(name=name, dtype=self.dtype_argument, **self._norm_arguments)

    @property
    def steps(self) -> list[Step]:
        steps = []
        if self.expand is not None:
            steps.append((self.expand, self.expand_norm, self.expand_activation))
        if self.depthwise is not None:
            steps.append((self.depthwise, self.depthwise_norm, self.depthwise_activation))
        return [*steps, (self.project, self.project_norm, self.project_activation)]

    def build(self, input_shape):
        build_in_scopes([(self.routing, input_shape)])
        build_steps(self.steps, input_shape)
        self.built = True

    def call(self, inputs, training=False, seed=None, with_end_points: bool = False):
        """Returns the output; `with_end_points` also {"expansion_output": what is projected}."""
        routing = {} if self.routing is None else {"routing": self.routing(inputs)}
        x, expanded = run_steps(self.steps, inputs, training, **routing)
        if self.block.residual:
            if training and self.block.survival_prob < 1.0:
                x = drop_residual(x, self.block.survival_prob, seed)
            x = x + inputs
        return (x, {"expansion_output": expanded}) if with_end_points else x


class MBConvBlock(InvertedBottleneck):
    """Mobile inverted bottleneck: expand 1×1, depthwise, squeeze-excite gate, project 1×1.

    In a routed block all three convolutions have kernels of each image's own.
    """

    def make_layers(self, activation):
        block, num_experts, dtype = self.block, self.block.num_experts, self.dtype_argument
        names = _names_of_convolutions(block)

        def make_pointwise(filters):
            if not num_experts:
                return Convolution(filters, 1, name=next(names), dtype=dtype)
            return RoutedPointwiseConvolution(filters, num_experts, name=next(names), dtype=dtype)

        if num_experts:
            self.routing = Routing(num_experts, name="dense")
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


class FusedMBConvBlock(InvertedBottleneck):
    """One full 3×3 convolution, which has the stride, in place of expansion and depthwise one.

    Without expansion (EfficientNetV2's first stage) it is the only convolution, and an
    activation follows. Gupta & Tan 2019, "EfficientNet-EdgeTPU"; Tan & Le 2021.
    """

    def make_layers(self, activation):
        block, dtype = self.block, self.dtype_argument
        geometry = (block.kernel_size, block.strides)
        if block.expand_ratio == 1:
            self.project = Convolution(block.output_filters, *geometry, name="conv2d", dtype=dtype)
            self.project_activation = activation.make("activation", dtype=dtype)
        else:
            self.expand = Convolution(block.expanded_filters, *geometry, name="conv2d", dtype=dtype)
            self.expand_norm = self.make_norm()
            self.expand_activation = activation.make("activation", dtype=dtype)
            self.project = Convolution(block.output_filters, 1, name="conv2d_1", dtype=dtype)
        self.project_norm = self.make_norm()


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


@keras.utils.register_keras_serializable("efficientnet_advprop")
class EfficientNet(BlockNetwork):
    """An EfficientNet whose every batch norm has one main and `aux_branches` auxiliary
    branches. All variables exist when the constructor returns.

    Args:
        variant: "b0" … "b8", "l1", "l2", "lite0" … "lite4", "edgetpu-S", "-M", "-L",
            "condconv-b0-4e", "-8e", "-8e-depth", "v2-b0" … "v2-b3", "v2-s", "v2-m",
            "v2-l", "v2-xl", a row of `scaling.VARIANTS`.
        num_classes: size of the logits, ≥ 1; None is the variant's own: 1000, with the
            EdgeTPU ones 1001, of which class 0 is the background.
        aux_branches: auxiliary batch norms beside the main ones; 0 is a plain
            EfficientNet.
        width_coefficient, depth_coefficient, dropout_rate: override the variant's; None
            keeps it.
        survival_prob: stochastic depth's flag, in (0, 1]; 1 switches it off (official
            default 0.8).
        normalization: of pixels: "advprop" (x·2/255 − 1), "imagenet" (mean and standard
            deviation), "lite" ((x − 127) / 128), "v2" ((x − 128) / 128), "caffe" or
            "none"; None is the variant's own.
        compute_dtype: of activations: "float32", "bfloat16" or "float16"; variables and
            logits are float32.
        batch_norm_momentum: None is the variant's own, 0.99, with EfficientNetV2 0.9.
        batch_norm_epsilon, batch_norm_group_size, aux_shares: see
            `DualBatchNormalization`.
        recomputed_blocks: the first so many blocks keep no activations for the backward
            pass but compute them again in it: less memory for more arithmetic, the same
            numbers. The first ones have the highest resolution.
        activation: a key of `activations.ACTIVATIONS`, or "silu"; None is the variant's
            own. The gates of squeeze-excite have it too.
        activation_alpha, smooth_relu_gradient: see `activations.Activation`.
        name: scope of the variables; default "efficientnet-<variant>", the official
            one.

    Raises:
        ValueError: an argument that is out of its range, with its name.
    """

    def __init__(
        self,
        variant: str = "b0",
        num_classes: Optional[int] = None,
        aux_branches: int = 1,
        width_coefficient: Optional[float] = None,
        depth_coefficient: Optional[float] = None,
        dropout_rate: Optional[float] = None,
        survival_prob: float = 0.8,
        normalization: Optional[str] = None,
        compute_dtype: str = "float32",
        batch_norm_momentum: Optional[float] = None,
        batch_norm_epsilon: float = 1e-3,
        batch_norm_group_size: Optional[int] = None,
        recomputed_blocks: int = 0,
        aux_shares: str = "none",
        activation: Optional[str] = None,
        activation_alpha: Optional[float] = None,
        smooth_relu_gradient: str = "none",
        name: Optional[str] = None,
    ):
        given = dict(locals())
        require_choice("variant", variant, scaling.VARIANTS)
        row = scaling.VARIANTS[variant]
        design = row.design
        for argument in ("num_classes", "normalization", "batch_norm_momentum"):
            if given[argument] is None:
                given[argument] = getattr(design, argument)
        super().__init__(given, scaling.VARIANTS, scaling.network_name(variant), design.activation)
        width, depth, dropout = given_scaling(
            given, row.width_coefficient, row.depth_coefficient, row.dropout_rate
        )
        self.image_size = row.image_size
        norms, policy = self.norm_arguments, self.dtype_policy_of_layers
        stem_filters, head_filters = scaling.end_filters(design, width)
        self.stem = Stem(
            Convolution(stem_filters, 3, 2, name="conv2d", dtype=policy),
            "tpu_batch_normalization",
            self.activation,
            norms,
            dtype=policy,
        )
        blocks = scaling.scaled_blocks(width, depth, survival_prob, design)
        self.blocks = [
            (FusedMBConvBlock if block.fused else MBConvBlock)(
                block, self.activation, norms, f"blocks_{index}", dtype=policy
            )
            for index, block in enumerate(blocks)
        ]
        # The official initial classifier: uniform within ±1/√num_classes.
        uniform = keras.initializers.VarianceScaling(1.0 / 3.0, "fan_out", "uniform")
        classifier = ClassifierLayer(self.num_classes, uniform)
        self.head = Head(classifier, dropout, head_filters, self.activation, norms, dtype=policy)
        self.build([None, None, None, 3])
