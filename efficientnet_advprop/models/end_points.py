"""The names of a network's feature maps, as the official `efficientnet_model` has them.

# [("block_0", "reduction_1"), ("block_1",), ("block_2", "reduction_2"), …]
names_of_blocks([1, 2, 1, 2])
"""

from typing import Sequence


def names_of_blocks(strides: Sequence[int], num_reductions_below: int = 0) -> list[tuple[str, ...]]:
    """What each block's output is called: by its number, and where the next block has a
    stride (or there is none) by the number of the reduction.

    Args:
        strides: of each block.
        num_reductions_below: reductions that come before the first block: 1 where a
            max-pooling follows the stem.
    """
    names = []
    reduction = num_reductions_below
    for index, strides_above in enumerate([*strides[1:], 2]):
        reduction += strides_above > 1
        names.append(
            (f"block_{index}", f"reduction_{reduction}")
            if strides_above > 1
            else (f"block_{index}",)
        )
    return names
