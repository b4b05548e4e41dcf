"""The EfficientNet family as a table: what a block is, and how far each variant scales it.

Sources: Tan & Le, ICML 2019, table 1 (the B0 network) and section 3.3 (compound scaling); the
official `efficientnet_builder` for the coefficients, dropout rates and rounding rules, and
its relatives in the folders `lite`, `edgetpu` and `condconv`; EfficientNetV2 (Tan & Le, ICML
2021) is google/automl's `efficientnetv2`, from which the paper differs.
"""

import dataclasses
import math
from typing import Optional


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of `repeats` blocks; the first one has the stride and the change of width."""

    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int
    output_filters: int
    fused: bool = False  # one full 3×3 convolution in place of expansion and depthwise convolution
    skip: bool = True  # False: no shortcut, even where the shapes allow it
    routed: bool = False  # each image has its own kernels, mixed from experts


HEAD_FILTERS = 1280
STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)


@dataclasses.dataclass(frozen=True)
class Design:
    """What all variants of one family have in common before they are scaled."""

    stages: tuple[Stage, ...] = STAGES
    activation: str = "swish"  # a key of `activations.ACTIVATIONS`
    squeeze_ratio: float = 0.25  # of the block's input filters, before expansion; 0: no gates
    stem_filters: int = 32
    scales_ends: bool = True  # False: stem, head, and the first and last stage's repeats stay
    keeps_nine_tenths: bool = True  # of filters, when they are rounded
    batch_norm_momentum: float = 0.99
    num_experts: int = 0  # of routed stages
    normalization: str = "advprop"  # of pixels, a key of `network.NORMALIZATIONS`
    num_classes: int = 1000  # 1001: class 0 is the background
    serving_resize: str = "bicubic"  # in the official export; evaluation is always bicubic


EFFICIENTNET = Design()
# Tan 2020: for phones, whose accelerators lack gates, and whose 8 bits suit bounded
# activations.
LITE = Design(
    activation="relu6",
    squeeze_ratio=0.0,
    scales_ends=False,
    normalization="lite",
    serving_resize="bilinear",
)
# Gupta & Tan 2019: found by a search on the Edge TPU, where full convolutions are fast.
EDGETPU = Design(
    stages=(
        Stage(1, 3, 1, 4, 24, 24, fused=True, skip=False),
        Stage(2, 3, 2, 8, 24, 32, fused=True),
        Stage(4, 3, 2, 8, 32, 48, fused=True),
        Stage(5, 5, 2, 8, 48, 96),
        Stage(4, 5, 1, 8, 96, 144),
        Stage(2, 5, 2, 8, 144, 192),
    ),
    activation="relu",
    squeeze_ratio=0.0,
    normalization="lite",
    num_classes=1001,
    serving_resize="bilinear",
)
# Yang et al., NeurIPS 2019: B0 with kernels mixed per image in its last three stages.
CONDCONV_4E = Design(
    stages=STAGES[:4] + tuple(dataclasses.replace(stage, routed=True) for stage in STAGES[4:]),
    num_experts=4,
    normalization="lite",
)
CONDCONV_8E = dataclasses.replace(CONDCONV_4E, num_experts=8)


def _v2(stem_filters: int, *stages: tuple[int, int, int, int]) -> Design:
    """A network of EfficientNetV2, which has a design for each of its sizes: repeats, strides,
    expansion and output filters of each stage. All kernels are 3×3, the first three are fused.
    """
    rows, filters = [], stem_filters
    for repeats, strides, expand_ratio, outputs in stages:
        fused = len(rows) < 3
        rows.append(Stage(repeats, 3, strides, expand_ratio, filters, outputs, fused))
        filters = outputs
    return Design(
        stages=tuple(rows),
        stem_filters=stem_filters,
        keeps_nine_tenths=False,
        batch_norm_momentum=0.9,
        normalization="v2",
    )


# B0 to B3, which alone are scaled, were trained like the first EfficientNets.
V2_B = dataclasses.replace(
    _v2(32, (1, 1, 1, 16), (2, 2, 4, 32), (2, 2, 4, 48), (3, 2, 4, 96), (5, 1, 6, 112),
        (8, 2, 6, 192)),
    normalization="imagenet",
)  # fmt: skip
V2_S = _v2(24, (2, 1, 1, 24), (4, 2, 4, 48), (4, 2, 4, 64), (6, 2, 4, 128), (9, 1, 6, 160),
           (15, 2, 6, 256))  # fmt: skip
V2_M = _v2(24, (3, 1, 1, 24), (5, 2, 4, 48), (5, 2, 4, 80), (7, 2, 4, 160), (14, 1, 6, 176),
           (18, 2, 6, 304), (5, 1, 6, 512))  # fmt: skip
V2_L = _v2(32, (4, 1, 1, 32), (7, 2, 4, 64), (7, 2, 4, 96), (10, 2, 4, 192), (19, 1, 6, 224),
           (25, 2, 6, 384), (7, 1, 6, 640))  # fmt: skip
V2_XL = _v2(32, (4, 1, 1, 32), (8, 2, 4, 64), (8, 2, 4, 96), (16, 2, 4, 192), (24, 1, 6, 256),
            (32, 2, 6, 512), (8, 1, 6, 640))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One variant: how much wider, deeper and larger than its family's smallest."""

    width_coefficient: float
    depth_coefficient: float
    image_size: int  # pixels; evaluation resolution, and training's but for EfficientNetV2
    dropout_rate: float  # before the classifier
    design: Design = EFFICIENTNET


VARIANTS = {
    "b0": Scaling(1.0, 1.0, 224, 0.2),
    "b1": Scaling(1.0, 1.1, 240, 0.2),
    "b2": Scaling(1.1, 1.2, 260, 0.3),
    "b3": Scaling(1.2, 1.4, 300, 0.3),
    "b4": Scaling(1.4, 1.8, 380, 0.4),
    "b5": Scaling(1.6, 2.2, 456, 0.4),
    "b6": Scaling(1.8, 2.6, 528, 0.5),
    "b7": Scaling(2.0, 3.1, 600, 0.5),
    "b8": Scaling(2.2, 3.6, 672, 0.5),
    "l1": Scaling(3.9, 3.7, 600, 0.5),
    "l2": Scaling(4.3, 5.3, 800, 0.5),
    "lite0": Scaling(1.0, 1.0, 224, 0.2, LITE),
    "lite1": Scaling(1.0, 1.1, 240, 0.2, LITE),
    "lite2": Scaling(1.1, 1.2, 260, 0.3, LITE),
    "lite3": Scaling(1.2, 1.4, 280, 0.3, LITE),
    "lite4": Scaling(1.4, 1.8, 300, 0.3, LITE),
    "edgetpu-S": Scaling(1.0, 1.0, 224, 0.2, EDGETPU),
    "edgetpu-M": Scaling(1.0, 1.1, 240, 0.2, EDGETPU),
    "edgetpu-L": Scaling(1.2, 1.4, 300, 0.3, EDGETPU),
    "condconv-b0-4e": Scaling(1.0, 1.0, 224, 0.25, CONDCONV_4E),
    "condconv-b0-8e": Scaling(1.0, 1.0, 224, 0.25, CONDCONV_8E),
    "condconv-b0-8e-depth": Scaling(1.0, 1.1, 224, 0.25, CONDCONV_8E),
    "v2-b0": Scaling(1.0, 1.0, 224, 0.2, V2_B),
    "v2-b1": Scaling(1.0, 1.1, 240, 0.2, V2_B),
    "v2-b2": Scaling(1.1, 1.2, 260, 0.3, V2_B),
    "v2-b3": Scaling(1.2, 1.4, 300, 0.3, V2_B),
    "v2-s": Scaling(1.0, 1.0, 384, 0.2, V2_S),
    "v2-m": Scaling(1.0, 1.0, 480, 0.3, V2_M),
    "v2-l": Scaling(1.0, 1.0, 480, 0.4, V2_L),
    "v2-xl": Scaling(1.0, 1.0, 512, 0.4, V2_XL),
}
RELEASED_VARIANTS = tuple(f"b{index}" for index in range(9))  # AdvProp's own checkpoints


@dataclasses.dataclass(frozen=True)
class Block:
    """One block, scaled."""

    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int  # of what really comes in
    expanded_filters: int
    output_filters: int
    squeeze_filters: int  # 0: no gates
    survival_prob: float  # of the residual branch in training (stochastic depth)
    fused: bool = False
    skip: bool = True
    num_experts: int = 0  # 0: the same kernels for all images
    routed_index: Optional[int] = None  # how many routed blocks come before this routed one

    @property
    def residual(self) -> bool:
        return self.skip and self.strides == 1 and self.input_filters == self.output_filters


def network_name(variant: str) -> str:
    """Returns the official name, the scope of variables: "efficientnet-b0", "efficientnetv2-s"."""
    return f"efficientnet{'' if variant.startswith('v2-') else '-'}{variant}"


def round_filters(
    filters: int, width_coefficient: float, divisor: int = 8, keeps_nine_tenths: bool = True
) -> int:
    """Scales a number of channels and rounds it to a multiple of `divisor`, with
    `keeps_nine_tenths` never more than 10 % down.
    """
    scaled = filters * width_coefficient
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if keeps_nine_tenths and rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth_coefficient: float) -> int:
    """Scales a number of blocks, rounding up."""
    return math.ceil(depth_coefficient * repeats)


def end_filters(design: Design, width_coefficient: float) -> tuple[int, int]:
    """Returns how many filters stem and head have."""
    width = width_coefficient if design.scales_ends else 1.0
    rule = design.keeps_nine_tenths
    return (
        round_filters(design.stem_filters, width, keeps_nine_tenths=rule),
        round_filters(HEAD_FILTERS, width, keeps_nine_tenths=rule),
    )


def scaled_repeats(design: Design, depth_coefficient: float) -> list[int]:
    """Returns how many blocks each stage has."""
    repeats = [round_repeats(stage.repeats, depth_coefficient) for stage in design.stages]
    if not design.scales_ends:
        repeats[0], repeats[-1] = design.stages[0].repeats, design.stages[-1].repeats
    return repeats


def scaled_blocks(
    width_coefficient: float,
    depth_coefficient: float,
    survival_prob: float,
    design: Design = EFFICIENTNET,
) -> tuple[Block, ...]:
    """Returns every block of a scaled network, in order.

    `survival_prob` is the official flag: block i of N survives with probability
    1 − (1 − survival_prob)·i/N, so that the first block always survives.
    """
    counts = scaled_repeats(design, depth_coefficient)
    blocks: list[Block] = []
    num_routed = 0
    # The stem's filters need not be those that the first stage names: its expansion is
    # counted from the stage's, as in the official code, unless it has none.
    filters, _ = end_filters(design, width_coefficient)
    for stage, repeats in zip(design.stages, counts):
        nominal_filters, output_filters = (
            round_filters(number, width_coefficient, keeps_nine_tenths=design.keeps_nine_tenths)
            for number in (stage.input_filters, stage.output_filters)
        )
        for repeat in range(repeats):
            expands = stage.fused or stage.expand_ratio != 1
            blocks.append(
                Block(
                    kernel_size=stage.kernel_size,
                    strides=stage.strides if repeat == 0 else 1,
                    expand_ratio=stage.expand_ratio,
                    input_filters=filters,
                    expanded_filters=nominal_filters * stage.expand_ratio if expands else filters,
                    output_filters=output_filters,
                    squeeze_filters=_squeeze_filters(design, stage, nominal_filters),
                    survival_prob=1.0 - (1.0 - survival_prob) * len(blocks) / sum(counts),
                    fused=stage.fused,
                    skip=stage.skip,
                    num_experts=design.num_experts if stage.routed else 0,
                    routed_index=num_routed if stage.routed else None,
                )
            )
            num_routed += stage.routed
            filters = nominal_filters = output_filters
    return tuple(blocks)


def _squeeze_filters(design: Design, stage: Stage, input_filters: int) -> int:
    has_gates = design.squeeze_ratio and not stage.fused
    return max(1, int(input_filters * design.squeeze_ratio)) if has_gates else 0
