"""Which network a file's shapes are of: a row of the table, or one of a family's
networks scaled in another way.
"""

import dataclasses
import re
from typing import Callable, Collection, Optional

from efficientnet_advprop.models import scaling

Shape = Optional[tuple[int, ...]]
# Widths and depths that are tried for a network outside of the table: 0.05, 0.1, …, 6.
_COEFFICIENTS = [step / 20 for step in range(1, 121)]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The network that a file's shapes are of."""

    variant: str  # its family's first, where the coefficients are no row's
    width_coefficient: Optional[float]  # None: the variant's own
    depth_coefficient: Optional[float]
    num_classes: Optional[int]  # None: the file has no classifier

    def __str__(self):
        if self.width_coefficient is None:
            return scaling.network_name(self.variant)
        is_plain = scaling.VARIANTS[self.variant].design == scaling.EFFICIENTNET
        like = f"a network like {scaling.network_name(self.variant)}"
        network = "an EfficientNet" if is_plain else like
        return f"{network} of width {self.width_coefficient:g} and depth {self.depth_coefficient:g}"

    @property
    def activation(self) -> str:
        """The family's own activation, which shapes do not tell."""
        return scaling.VARIANTS[self.variant].design.activation

    def constructor(self) -> str:
        """Returns the Python call that builds it, with any number of classes."""
        if self.width_coefficient is None:
            return f'EfficientNet("{self.variant}")'
        sizes = f"width_coefficient={self.width_coefficient:g}"
        sizes += f", depth_coefficient={self.depth_coefficient:g}"
        return f'EfficientNet("{self.variant}", {sizes})'


# What tells one block from another: its kind ("plain", "fused" or "routed"), kernel size,
# expanded, squeeze and output filters, and number of experts.
_BlockShape = tuple[str, int, int, int, int, int]


def recognize(names: Collection[str], shape_of: Callable[[str], Shape]) -> Optional[Architecture]:
    """Returns the row, or the coefficients, under which the table gives a file's shapes;
    None where no network of any family fits.

    Args:
        names: of the variables, without scope: "blocks_3/conv2d/kernel".
        shape_of: the shape of one; None where there is none of that name.
    """
    stem, head = shape_of("stem/conv2d/kernel"), shape_of("head/conv2d/kernel")
    num_blocks = len({name.split("/")[0] for name in names if name.startswith("blocks_")})
    blocks = [_block_in_file(f"blocks_{index}", names, shape_of) for index in range(num_blocks)]
    if not stem or not head or None in blocks:
        return None
    classifier = shape_of("head/dense/kernel")
    num_classes = classifier[-1] if classifier else None
    found = (stem[-1], head[-1], blocks)
    for variant, row in scaling.VARIANTS.items():
        if _of_table(row.design, row.width_coefficient, row.depth_coefficient) == found:
            return Architecture(variant, None, None, num_classes)
    first_of_family = {row.design: name for name, row in reversed(scaling.VARIANTS.items())}
    for design, variant in reversed(first_of_family.items()):
        for depth in _COEFFICIENTS:
            if sum(scaling.scaled_repeats(design, depth)) != num_blocks:
                continue
            for width in _COEFFICIENTS:
                ends = scaling.end_filters(design, width)
                if ends == found[:2] and _of_table(design, width, depth) == found:
                    return Architecture(variant, width, depth, num_classes)
    return None


def _of_table(design: scaling.Design, width: float, depth: float):
    blocks = [
        (
            "routed" if block.num_experts else "fused" if block.fused else "plain",
            block.kernel_size,
            block.expanded_filters,
            block.squeeze_filters,
            block.output_filters,
            block.num_experts,
        )
        for block in scaling.scaled_blocks(width, depth, 1.0, design)
    ]
    return (*scaling.end_filters(design, width), blocks)


def _block_in_file(scope: str, names: Collection[str], shape_of) -> Optional[_BlockShape]:
    """Returns the block of a scope; None where it is none of any kind."""

    def kernel(*variables):
        shapes = [shape_of(f"{scope}/{variable}/kernel") for variable in variables]
        return next((shape for shape in shapes if shape and len(shape) == 4), None)

    routing, squeeze = shape_of(f"{scope}/dense/kernel"), kernel("se/conv2d")
    squeeze_filters = squeeze[-1] if squeeze else 0
    if routing:
        # Experts' kernels are [experts, kernel² · channels]; their names have numbers.
        pattern = re.compile(
            rf"model/{scope}/depthwise_cond_conv2d(_\d+)?/depthwise_condconv_kernel"
        )
        depthwise = next((shape_of(name) for name in names if pattern.fullmatch(name)), None)
        expanded = shape_of(f"{scope}/tpu_batch_normalization_1/gamma")
        projected = shape_of(f"{scope}/tpu_batch_normalization_2/gamma")
        if not depthwise or not expanded or not projected:
            return None
        kernel_size = round((depthwise[-1] / expanded[-1]) ** 0.5)
        return "routed", kernel_size, expanded[-1], squeeze_filters, projected[-1], routing[-1]
    depthwise = shape_of(f"{scope}/depthwise_conv2d/depthwise_kernel")
    project = kernel("conv2d_1", "conv2d")
    if depthwise and len(depthwise) == 4 and project:
        return "plain", depthwise[0], depthwise[2], squeeze_filters, project[-1], 0
    expand = kernel("conv2d")
    if not depthwise and expand and project:
        if not shape_of(f"{scope}/conv2d_1/kernel"):  # without expansion
            return "fused", expand[0], expand[2], squeeze_filters, expand[-1], 0
        return "fused", expand[0], expand[-1], squeeze_filters, project[-1], 0
    return None
