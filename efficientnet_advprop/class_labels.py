"""What the numbers of a network's classes stand for.

    offset = background_offset(model.num_classes)                # logits[label + offset]

The official programs have one rule: a network of 1001 classes has ImageNet's 1000 and, before
them, the background, which no image is of. All of EfficientNet-EdgeTPU's checkpoints are such.
"""

BACKGROUND = "background"  # the name of class 0 where there is one
_WITH_BACKGROUND = 1001


def background_offset(num_classes: int) -> int:
    """How far a network's class is from the data set's label: 1 where class 0 is the background, else 0."""
    return int(num_classes == _WITH_BACKGROUND)
