"""The EfficientNet family as a table: what a block is, and how far each variant scales it.

Nothing here imports TensorFlow; `efficientnet.py` interprets the table. Sources: Tan & Le, ICML 2019, table 1 (the B0
network) and section 3.3 (compound scaling); the official `efficientnet_builder` for the coefficients, dropout rates and
rounding rules.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One variant: how much wider, deeper and larger than B0."""

    width_coefficient: float
    depth_coefficient: float
    image_size: int  # pixels; training and evaluation resolution
    dropout_rate: float  # before the classifier


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
    "l2": Scaling(4.3, 5.3, 800, 0.5),
}
RELEASED_VARIANTS = tuple(
    variant for variant in VARIANTS if variant != "l2"
)  # those of AdvProp's own checkpoints, B0 to B8


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of `repeats` MBConv blocks; the first one has the stride and the change of width."""

    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int
    output_filters: int


STEM_FILTERS = 32
HEAD_FILTERS = 1280
SQUEEZE_RATIO = 0.25  # of the block's input filters, before expansion
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
class Block:
    """One MBConv block, scaled."""

    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int
    output_filters: int
    squeeze_filters: int
    survival_prob: float  # of the residual branch in training (stochastic depth)

    @property
    def residual(self) -> bool:
        return self.strides == 1 and self.input_filters == self.output_filters


def round_filters(filters: int, width_coefficient: float, divisor: int = 8) -> int:
    """Scales a number of channels and rounds it to a multiple of `divisor`, never more than 10 % down."""
    scaled = filters * width_coefficient
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth_coefficient: float) -> int:
    """Scales a number of blocks, rounding up."""
    return math.ceil(depth_coefficient * repeats)


def scaled_blocks(
    width_coefficient: float, depth_coefficient: float, survival_prob: float
) -> tuple[Block, ...]:
    """Every block of a scaled network, in order.

    `survival_prob` is the official flag: block i of N survives with probability 1 − (1 − survival_prob)·i/N, so that the
    first block always survives and the last one does not quite reach `survival_prob`.
    """
    counts = [round_repeats(stage.repeats, depth_coefficient) for stage in STAGES]
    total = sum(counts)
    blocks: list[Block] = []
    for stage, repeats in zip(STAGES, counts):
        output_filters = round_filters(stage.output_filters, width_coefficient)
        for repeat in range(repeats):
            first = repeat == 0
            input_filters = (
                round_filters(stage.input_filters, width_coefficient) if first else output_filters
            )
            blocks.append(
                Block(
                    kernel_size=stage.kernel_size,
                    strides=stage.strides if first else 1,
                    expand_ratio=stage.expand_ratio,
                    input_filters=input_filters,
                    output_filters=output_filters,
                    squeeze_filters=max(1, int(input_filters * SQUEEZE_RATIO)),
                    survival_prob=1.0 - (1.0 - survival_prob) * len(blocks) / total,
                )
            )
    return tuple(blocks)
