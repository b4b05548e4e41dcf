"""Converts between the labels of a data set and the class indices of a network.

As in the official programs, a network of 1001 classes has ImageNet's 1000 classes and,
as class 0, a background class, to which no image belongs. All checkpoints of
EfficientNet-EdgeTPU have it.
"""

BACKGROUND = "background"  # the name of class 0 where there is one
_WITH_BACKGROUND = 1001


def background_offset(num_classes: int) -> int:
    """Returns class index − label: 1 if class 0 is the background, otherwise 0."""
    return int(num_classes == _WITH_BACKGROUND)
