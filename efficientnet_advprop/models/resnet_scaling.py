"""The ResNet family as a table: what a bottleneck block is, and how many of them each
variant has.

Nothing here imports TensorFlow; `resnet.py` interprets the table. Sources: He et al.,
CVPR 2016, table 1; for ResNet-200, He et al., ECCV 2016, and the official TPU
`resnet_model`.
"""

import dataclasses
import math

from efficientnet_advprop.models.scaling import round_filters, round_repeats


@dataclasses.dataclass(frozen=True)
class Variant:
    """How many blocks the four groups have."""

    repeats: tuple[int, int, int, int]
    image_size: int = 224  # pixels; training and evaluation resolution


VARIANTS = {
    "resnet50": Variant((3, 4, 6, 3)),
    "resnet101": Variant((3, 4, 23, 3)),
    "resnet152": Variant((3, 8, 36, 3)),
    "resnet200": Variant((3, 24, 36, 3)),
}

STEM_FILTERS = 64
GROUP_FILTERS = (64, 128, 256, 512)  # of the first two convolutions of a block
EXPANSION = 4  # times as many filters has its last one


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """One block: 1×1, 3×3 and 1×1 convolution; a projection on the shortcut where the
    shape changes.
    """

    strides: int
    input_filters: int
    filters: int
    survival_prob: float  # of the residual branch in training (stochastic depth)
    first: bool  # of its group; such a block has a projection
    last: bool  # of its group
    stage: int  # one of `STAGES`

    @property
    def output_filters(self) -> int:
        return EXPANSION * self.filters


STAGES = (2, 3, 4, 5)  # the four groups as the papers number them: res2 to res5


def map_size(image_size: int, stage: int) -> int:
    """Returns the height and width of a stage's outputs: a quarter of the image's,
    rounded up, and behind every stage above the first half of it.
    """
    size = image_size
    for _ in range(stage):
        size = math.ceil(size / 2)
    return size


def scaled_bottlenecks(
    variant: str,
    width_coefficient: float = 1.0,
    depth_coefficient: float = 1.0,
    survival_prob: float = 1.0,
) -> tuple[Bottleneck, ...]:
    """Returns every block of a network, in order; filters and repeats are rounded as in an
    EfficientNet.

    Block i of N survives with probability 1 − (1 − survival_prob)·i/N, as in an
    EfficientNet.
    """
    counts = [round_repeats(repeats, depth_coefficient) for repeats in VARIANTS[variant].repeats]
    blocks: list[Bottleneck] = []
    input_filters = round_filters(STEM_FILTERS, width_coefficient)
    for group, repeats in enumerate(counts):
        filters = round_filters(GROUP_FILTERS[group], width_coefficient)
        for repeat in range(repeats):
            first = repeat == 0
            strides = 2 if first and group > 0 else 1
            own_survival = 1.0 - (1.0 - survival_prob) * len(blocks) / sum(counts)
            last, stage = repeat == repeats - 1, STAGES[group]
            blocks.append(
                Bottleneck(strides, input_filters, filters, own_survival, first, last, stage)
            )
            input_filters = blocks[-1].output_filters
    return tuple(blocks)
