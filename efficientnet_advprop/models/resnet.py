"""ResNet-50, -101, -152 and -200, or any width and depth, with AdvProp's auxiliary
batch norms.

Architecture: He et al., CVPR 2016 (table 1; ResNet-200: ECCV 2016), as in the official TPU
`resnet_model` ("v1.5"): a block's stride is in its 3×3 convolution, strided convolutions
have symmetric padding, the last gamma of every block starts at zero. Keras's ResNets differ
in two places, for which there are options; `keras_weights` reads their files.
"""

import dataclasses
import math
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.activations import Activation
from efficientnet_advprop.models.denoising import OPERATIONS, DenoisingBlock
from efficientnet_advprop.models.layers import (
    ClassifierLayer,
    Convolution,
    Head,
    Stem,
    Step,
    build_in_scopes,
    build_steps,
    drop_residual,
    run_steps,
)
from efficientnet_advprop.models.network import BlockNetwork, given_scaling
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.scaling import round_filters, round_repeats
from efficientnet_advprop.runtime.errors import require_choice

VARIANTS = {  # how many blocks the four stages have
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet200": (3, 24, 36, 3),
}
IMAGE_SIZE = 224  # pixels; training and evaluation resolution
STEM_FILTERS = 64
STAGES = {2: 64, 3: 128, 4: 256, 5: 512}  # as the papers number them, res2 to res5: filters
EXPANSION = 4  # times as many has the last convolution of a block
STRIDE_PLACES = ("3x3", "1x1")
POOL_PADDINGS = ("same", "symmetric")


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """One block: 1×1, 3×3 and 1×1 convolution, and a projection where the shape changes."""

    strides: int
    filters: int
    output_filters: int
    survival_prob: float  # of the residual branch in training (stochastic depth)
    first: bool  # of its stage; such a block has a projection
    last: bool  # of its stage
    stage: int  # a key of `STAGES`


def scaled_bottlenecks(
    variant: str, width: float = 1.0, depth: float = 1.0, survival_prob: float = 1.0
) -> list[Bottleneck]:
    """Returns every block, in order; all is rounded, and survives, as in an EfficientNet."""
    counts = [round_repeats(repeats, depth) for repeats in VARIANTS[variant]]
    blocks: list[Bottleneck] = []
    for (stage, full_filters), repeats in zip(STAGES.items(), counts):
        filters = round_filters(full_filters, width)
        for repeat in range(repeats):
            first, last = repeat == 0, repeat == repeats - 1
            strides = 2 if first and stage > min(STAGES) else 1
            own_survival = 1.0 - (1.0 - survival_prob) * len(blocks) / sum(counts)
            outputs = EXPANSION * filters
            blocks.append(Bottleneck(strides, filters, outputs, own_survival, first, last, stage))
    return blocks


def map_size(image_size: int, stage: int) -> int:
    """Returns the height and width of a stage's outputs: each halves them, rounding up."""
    for _ in range(stage):
        image_size = math.ceil(image_size / 2)
    return image_size


def _convolution(filters, kernel_size, strides=1, **kwargs) -> Convolution:
    # The official initial kernels: a truncated normal of variance 1 / fan_in.
    initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    return Convolution(
        filters, kernel_size, strides, symmetric_padding=True, initializer=initializer, **kwargs
    )


class BottleneckBlock(keras.layers.Layer):
    """relu(shortcut + norm(1×1(relu(norm(3×3(relu(norm(1×1(x))))))))), the shortcut
    being x or norm(1×1(x)); or another activation in place of relu.

    Behind it, where `denoise` names an operation, a `DenoisingBlock`.
    """

    def __init__(
        self,
        block: Bottleneck,
        stride_in: str,
        activation: Activation,
        norm_arguments: dict,
        name: str,
        denoise: Optional[str] = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.block = block
        dtype = kwargs.get("dtype")
        reduce_strides = block.strides if stride_in == "1x1" else 1

        def make_norm(own_name, **options):
            return DualBatchNormalization(name=own_name, dtype=dtype, **norm_arguments, **options)

        self.shortcut = self.shortcut_norm = None
        if block.first:
            self.shortcut = _convolution(
                block.output_filters, 1, block.strides, name="shortcut_conv2d", dtype=dtype
            )
            self.shortcut_norm = make_norm("shortcut_batch_normalization")
        self.reduce = _convolution(block.filters, 1, reduce_strides, name="conv2d", dtype=dtype)
        self.reduce_norm = make_norm("batch_normalization")
        self.spatial = _convolution(
            block.filters, 3, block.strides // reduce_strides, name="conv2d_1", dtype=dtype
        )
        self.spatial_norm = make_norm("batch_normalization_1")
        self.expand = _convolution(block.output_filters, 1, name="conv2d_2", dtype=dtype)
        self.expand_norm = make_norm("batch_normalization_2", gamma_initializer="zeros")
        self.reduce_activation = activation.make("activation", dtype=dtype)
        self.spatial_activation = activation.make("activation_1", dtype=dtype)
        self.output_activation = activation.make("activation_2", dtype=dtype)
        self.denoising = None
        if denoise is not None:
            self.denoising = DenoisingBlock(
                denoise, block.output_filters, norm_arguments, "denoise", dtype=dtype
            )

    @property
    def steps(self) -> list[Step]:
        return [
            (self.reduce, self.reduce_norm, self.reduce_activation),
            (self.spatial, self.spatial_norm, self.spatial_activation),
            (self.expand, self.expand_norm, None),
        ]

    @property
    def shortcut_steps(self) -> list[Step]:
        return [] if self.shortcut is None else [(self.shortcut, self.shortcut_norm, None)]

    def build(self, input_shape):
        build_steps(self.shortcut_steps, input_shape)
        outputs = build_steps(self.steps, input_shape)
        build_in_scopes([(self.output_activation, outputs), (self.denoising, outputs)])
        self.built = True

    def call(self, inputs, training=False, seed=None, with_end_points: bool = False):
        """Returns the output; `with_end_points` also {}: nothing inside has an official name."""
        shortcut, _ = run_steps(self.shortcut_steps, inputs, training)
        x, _ = run_steps(self.steps, inputs, training)
        if training and self.block.survival_prob < 1.0:
            x = drop_residual(x, self.block.survival_prob, seed)
        x = self.output_activation(x + shortcut, training=training)
        if self.denoising is not None:
            x = self.denoising(x, training=training)
        return (x, {}) if with_end_points else x


@keras.utils.register_keras_serializable("efficientnet_advprop")
class ResNet(BlockNetwork):
    """A ResNet whose every batch norm has one main and `aux_branches` auxiliary branches.

    Args:
        variant: a key of `VARIANTS`.
        width_coefficient, depth_coefficient: multiply filters and blocks; None is 1.
        dropout_rate: before the classifier; None is 0, as official.
        survival_prob: stochastic depth's flag, in (0, 1]; 1, as official, switches it
            off.
        normalization: of pixels, a key of `network.NORMALIZATIONS`: "imagenet" is
            official, "advprop" that of Fast AdvProp, "caffe" Keras's.
        stride_in: the convolution of a stage's first block that has its stride: "3x3"
            (official) or "1x1" (Keras).
        pool_padding: of the max-pooling: "same" (official) or "symmetric", one pixel on
            every side (Keras and PyTorch).
        activation: a key of `activations.ACTIVATIONS`, or "silu"; None is "relu".
        denoise: the operation of the denoising blocks, a key of `denoising.OPERATIONS`,
            or "none".
        denoise_stages: behind which stages there is one, of 2, 3, 4 and 5; all, as in
            the paper, unless told.
        name: scope of the variables; default: the variant.

    All others are those of `EfficientNet`.

    Raises:
        ValueError: an argument that is out of its range, with its name.
    """

    stem_is_a_reduction = True

    def __init__(
        self,
        variant: str = "resnet50",
        num_classes: int = 1000,
        aux_branches: int = 1,
        width_coefficient: Optional[float] = None,
        depth_coefficient: Optional[float] = None,
        dropout_rate: Optional[float] = None,
        survival_prob: float = 1.0,
        normalization: str = "imagenet",
        compute_dtype: str = "float32",
        batch_norm_momentum: float = 0.9,
        batch_norm_epsilon: float = 1e-5,
        batch_norm_group_size: Optional[int] = None,
        recomputed_blocks: int = 0,
        aux_shares: str = "none",
        stride_in: str = "3x3",
        pool_padding: str = "same",
        activation: Optional[str] = None,
        activation_alpha: Optional[float] = None,
        smooth_relu_gradient: str = "none",
        denoise: str = "none",
        denoise_stages: Sequence[int] = tuple(STAGES),
        name: Optional[str] = None,
    ):
        given = {**locals(), "denoise_stages": tuple(denoise_stages)}
        super().__init__(given, VARIANTS, variant, "relu")
        require_choice("stride_in", stride_in, STRIDE_PLACES)
        require_choice("pool_padding", pool_padding, POOL_PADDINGS)
        require_choice("denoise", denoise, ("none", *OPERATIONS))
        for stage in denoise_stages:
            require_choice("denoise_stages", stage, STAGES)
        width, depth, dropout = given_scaling(given, 1.0, 1.0, 0.0)
        self.image_size = IMAGE_SIZE
        self.stride_in, self.pool_padding = stride_in, pool_padding
        norms, policy = self.norm_arguments, self.dtype_policy_of_layers
        stem_filters = round_filters(STEM_FILTERS, width)
        self.stem = Stem(
            _convolution(stem_filters, 7, 2, name="conv2d", dtype=policy),
            "batch_normalization",
            self.activation,
            norms,
            dtype=policy,
        )
        blocks = scaled_bottlenecks(variant, width, depth, survival_prob)
        denoised_stages = () if denoise == "none" else denoise_stages
        self.blocks = [
            BottleneckBlock(
                block,
                stride_in,
                self.activation,
                norms,
                f"blocks_{i}",
                denoise if block.last and block.stage in denoised_stages else None,
                dtype=policy,
            )
            for i, block in enumerate(blocks)
        ]
        classifier = ClassifierLayer(num_classes, keras.initializers.RandomNormal(stddev=0.01))
        self.head = Head(classifier, dropout, dtype=policy)
        self.build([None, None, None, 3])

    def pool(self, x: tf.Tensor) -> tf.Tensor:
        """Max-pools the stem's outputs, 3×3 with stride 2."""
        if self.pool_padding == "same":
            return tf.nn.max_pool2d(x, 3, 2, "SAME")
        # Behind a relu, padding with zeros is padding with the least value.
        least = 0.0 if self.activation.name in ("relu", "relu6") else x.dtype.min
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=least)
        return tf.nn.max_pool2d(x, 3, 2, "VALID")
