"""EfficientNet B0–B8 and L2, or any width, depth and resolution, with AdvProp's auxiliary batch norms.

    model = EfficientNet("b0", num_classes=1000, aux_branches=1)
    logits = model(images)                                        # inference: pixels 0…255 in, main branch
    logits = model(images, training=True, branch="aux", seed=seed)
    endpoints = model.features(images)                            # {"reduction_1": …, …, "features": …}

Architecture: Tan & Le, ICML 2019, and the official `efficientnet_model`; variable names are the official ones.
"""

from typing import Optional

import tensorflow as tf

from efficientnet_advprop.models import scaling
from efficientnet_advprop.models.layers import Head, MBConvBlock, Stem
from efficientnet_advprop.models.normalization import MAIN, branch_index
from tpu_utils import randomness

# Pixels x in [0, 255] become (x − mean) / deviation. AdvProp's checkpoints want [−1, 1], all others ImageNet's mean and
# deviation.
NORMALIZATIONS = {
    "advprop": ([127.5] * 3, [127.5] * 3),
    "imagenet": ([0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]),
    "none": ([0.0] * 3, [1.0] * 3),
}
COMPUTE_DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@tf.keras.utils.register_keras_serializable("efficientnet_advprop")
class EfficientNet(tf.keras.Model):
    """An EfficientNet whose every batch norm has one main and `aux_branches` auxiliary branches.

    All variables exist when the constructor returns.

    Args:
        variant: "b0" … "b8" or "l2", a row of `scaling.VARIANTS`.
        num_classes: size of the logits, ≥ 1.
        aux_branches: auxiliary batch norms beside the main ones; 0 is a plain EfficientNet.
        width_coefficient, depth_coefficient, dropout_rate: override the variant's; None keeps it.
        survival_prob: stochastic depth's flag, in (0, 1]; 1 switches it off (official default 0.8).
        normalization: of pixels: "advprop" (x·2/255 − 1), "imagenet" (mean and standard deviation) or "none".
        compute_dtype: of activations: "float32", "bfloat16" or "float16"; variables and logits are float32.
        batch_norm_momentum, batch_norm_epsilon, batch_norm_group_size: see `DualBatchNormalization`.
        name: scope of the variables; default "efficientnet-<variant>", the official one.

    Raises:
        ValueError: an argument that is out of its range, with its name.
    """

    def __init__(
        self,
        variant: str = "b0",
        num_classes: int = 1000,
        aux_branches: int = 1,
        width_coefficient: Optional[float] = None,
        depth_coefficient: Optional[float] = None,
        dropout_rate: Optional[float] = None,
        survival_prob: float = 0.8,
        normalization: str = "advprop",
        compute_dtype: str = "float32",
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        batch_norm_group_size: Optional[int] = None,
        name: Optional[str] = None,
    ):
        _check_choice("variant", variant, scaling.VARIANTS)
        _check_choice("normalization", normalization, NORMALIZATIONS)
        _check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` is {num_classes!r}, but must be a whole number ≥ 1.")
        if not 0.0 < survival_prob <= 1.0:
            raise ValueError(f"`survival_prob` is {survival_prob!r}, but must lie in (0, 1]; 1 switches stochastic depth off.")
        row = scaling.VARIANTS[variant]
        width = row.width_coefficient if width_coefficient is None else width_coefficient
        depth = row.depth_coefficient if depth_coefficient is None else depth_coefficient
        dropout = row.dropout_rate if dropout_rate is None else dropout_rate
        if width <= 0 or depth <= 0:
            raise ValueError(f"`width_coefficient` is {width!r} and `depth_coefficient` {depth!r}, but both must be positive.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"`dropout_rate` is {dropout!r}, but must lie in [0, 1).")
        super().__init__(name=name or f"efficientnet-{variant}")
        self.variant, self.num_classes, self.aux_branches = variant, num_classes, aux_branches
        self.image_size = row.image_size
        self.normalization, self.activation_dtype = normalization, compute_dtype
        self._constructor_arguments = dict(
            variant=variant, num_classes=num_classes, aux_branches=aux_branches, width_coefficient=width_coefficient,
            depth_coefficient=depth_coefficient, dropout_rate=dropout_rate, survival_prob=survival_prob,
            normalization=normalization, compute_dtype=compute_dtype, batch_norm_momentum=batch_norm_momentum,
            batch_norm_epsilon=batch_norm_epsilon, batch_norm_group_size=batch_norm_group_size, name=self.name,
        )  # fmt: skip
        norm_arguments = dict(
            aux_branches=aux_branches, momentum=batch_norm_momentum, epsilon=batch_norm_epsilon,
            group_size=batch_norm_group_size,
        )  # fmt: skip
        policy = tf.keras.mixed_precision.Policy(COMPUTE_DTYPES[compute_dtype])
        blocks = scaling.scaled_blocks(width, depth, survival_prob)
        self.stem = Stem(scaling.round_filters(scaling.STEM_FILTERS, width), norm_arguments, dtype=policy)
        self.blocks = [MBConvBlock(block, norm_arguments, f"blocks_{i}", dtype=policy) for i, block in enumerate(blocks)]
        head_filters = scaling.round_filters(scaling.HEAD_FILTERS, width)
        self.head = Head(head_filters, num_classes, dropout, norm_arguments, dtype=policy)
        self.build([None, None, None, 3])

    def build(self, input_shape):
        """Creates all variables, in the official order."""
        if self.built:
            return
        channels = self.stem.convolution.filters
        parts = [(self.stem, 3)]
        for block in self.blocks:
            parts.append((block, channels))
            channels = block.block.output_filters
        parts.append((self.head, channels))
        with tf.name_scope(self.name):
            for layer, filters in parts:
                with tf.name_scope(layer.name):
                    layer.build(tf.TensorShape([None, None, None, filters]))
        self.built = True

    def call(self, images, training=False, branch: str = MAIN, update_statistics: bool = True, seed=None):
        """Logits.

        Args:
            images: [batch, height, width, 3], any numeric dtype, pixels in [0, 255], RGB.
            training: Python bool; True uses the batch's moments, dropout and stochastic depth.
            branch: whose batch norms: "main", "aux" (= "aux_1"), "aux_2", …
            update_statistics: with `training=True`, whether the branch's running statistics move.
            seed: int32 [2], decides dropout and stochastic depth; None draws one (not reproducible after a restart).

        Returns:
            float32 [batch, num_classes].

        Raises:
            ValueError: `images` have another shape, or there is no such branch.
        """
        return self._forward(images, training, branch, update_statistics, seed)[0]

    def features(self, images, branch: str = MAIN) -> dict[str, tf.Tensor]:
        """Feature maps in inference mode, in the compute dtype, before each reduction of resolution.

        Returns:
            "stem", "reduction_1" … "reduction_5" (at 1/2 … 1/32 of the resolution), "features" (the last block's output),
            "head_1x1", all [batch, h, w, channels], and "pooled_features", float32 [batch, channels].
        """
        return self._forward(images, False, branch, True, None)[1]

    def _forward(self, images, training, branch, update_statistics, seed):
        images = tf.convert_to_tensor(images)
        if images.shape.rank != 4 or images.shape[-1] != 3:
            raise ValueError(f"`images` have shape {images.shape}, but must be [batch, height, width, 3], pixels in [0, 255].")
        branch_index(branch, self.aux_branches)
        if training:
            seed = randomness.seed_or_fresh(seed)
        mode = dict(training=training, branch=branch, update_statistics=update_statistics)
        mean, deviation = NORMALIZATIONS[self.normalization]
        x = (tf.cast(images, tf.float32) - tf.constant(mean)) / tf.constant(deviation)
        x = tf.cast(x, self.stem.compute_dtype)
        x = self.stem(x, **mode)
        endpoints = {"stem": x}
        reduction = 0
        for index, block in enumerate(self.blocks):
            own_seed = randomness.fold_in(seed, index) if training else None
            x = block(x, seed=own_seed, **mode)
            if index + 1 == len(self.blocks) or self.blocks[index + 1].block.strides > 1:
                reduction += 1
                endpoints[f"reduction_{reduction}"] = x
        endpoints["features"] = x
        own_seed = randomness.fold_in(seed, len(self.blocks)) if training else None
        logits, endpoints["pooled_features"], endpoints["head_1x1"] = self.head(x, seed=own_seed, **mode)
        return logits, endpoints

    def get_config(self):
        return dict(self._constructor_arguments)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}, but must be one of {', '.join(map(repr, choices))}.")
