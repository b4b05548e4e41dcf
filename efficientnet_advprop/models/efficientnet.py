"""EfficientNet B0–B8, L1 and L2, Lite, EdgeTPU, CondConv and V2, or any width, depth and
resolution, with AdvProp's auxiliary batch norms.

    model = EfficientNet("b0", num_classes=1000, aux_branches=1)
    # inference: pixels 0…255 in, main branch
    logits = model(images)
    logits = model(images, training=True, branch="aux", seed=seed)
    # {"reduction_1": …, …, "features": …}
    endpoints = model.features(images)

Architecture: Tan & Le, ICML 2019, and the official `efficientnet_model`; variable names
are the official ones.
"""

from typing import Optional

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.convolutions import Convolution
from efficientnet_advprop.models.layers import ClassifierLayer, Head, Stem, make_block
from efficientnet_advprop.models.network import BlockNetwork, check_choice, check_scaling


@keras.utils.register_keras_serializable("efficientnet_advprop")
class EfficientNet(BlockNetwork):
    """An EfficientNet whose every batch norm has one main and `aux_branches` auxiliary
    branches.

    All variables exist when the constructor returns.

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
        activation_alpha, smooth_relu_gradient: see `activations.choose`.
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
        check_choice("variant", variant, scaling.VARIANTS)
        row = scaling.VARIANTS[variant]
        design = row.design
        for argument in ("num_classes", "normalization", "batch_norm_momentum"):
            if given[argument] is None:
                given[argument] = getattr(design, argument)
        super().__init__(given, scaling.VARIANTS, scaling.network_name(variant), design.activation)
        width = row.width_coefficient if width_coefficient is None else width_coefficient
        depth = row.depth_coefficient if depth_coefficient is None else depth_coefficient
        dropout = row.dropout_rate if dropout_rate is None else dropout_rate
        check_scaling(width, depth, dropout)
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
            make_block(block, self.activation, norms, f"blocks_{index}", dtype=policy)
            for index, block in enumerate(blocks)
        ]
        # The official initial classifier: uniform within ±1/√num_classes.
        uniform = keras.initializers.VarianceScaling(1.0 / 3.0, "fan_out", "uniform")
        classifier = ClassifierLayer(self.num_classes, uniform)
        self.head = Head(classifier, dropout, head_filters, self.activation, norms, dtype=policy)
        self.build([None, None, None, 3])
