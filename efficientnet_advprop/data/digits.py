"""The embedded data set of scikit-learn's handwritten digits.

    DIGITS.ensure("/tmp/digits")                   # train: 797 images, validation: 1,000

1,797 real handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition of
Handwritten Digits, UCI, CC BY 4.0), 8×8 in 17 grays, come with scikit-learn. Here each
is enlarged to 32×32 RGB (bicubic) and kept as a PNG. Enough test images are held out
that a percentage is sure to ±1.4 at 95 % accuracy (two standard deviations).
"""

from typing import Tuple

import numpy as np
from PIL import Image

from efficientnet_advprop.data.embedded_set import EmbeddedSet

IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_VALIDATION = 1000
_SPLIT_SEED = 0


def _interleave_classes(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorders so that every leading part holds the classes as evenly as there are
    images of them.
    """
    rank = np.zeros(len(indices), np.int64)
    for label in range(NUM_CLASSES):
        of_class = np.flatnonzero(labels[indices] == label)
        rank[of_class] = np.arange(len(of_class))
    return indices[np.lexsort((labels[indices], rank))]


def load_digits(split: str) -> Tuple[np.ndarray, np.ndarray]:
    """The images (uint8 [n, 32, 32, 3]) and labels (int64 [n]) of "train" or
    "validation", in the order of the records.
    """
    from sklearn import datasets  # imported here: only this data set needs scikit-learn

    source = datasets.load_digits()
    order = _interleave_classes(
        np.random.RandomState(_SPLIT_SEED).permutation(len(source.target)), source.target
    )
    chosen = order[:NUM_VALIDATION] if split == "validation" else order[NUM_VALIDATION:]
    chosen = _interleave_classes(chosen, source.target)
    images = np.stack(
        [
            np.asarray(
                Image.fromarray((digit * (255 / 16)).round().astype(np.uint8)).resize(
                    (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
                )
            )
            for digit in source.images[chosen]
        ]
    )
    return np.repeat(images[..., None], 3, axis=-1), source.target[chosen].astype(np.int64)


DIGITS = EmbeddedSet(
    name="digits",
    words="the handwritten digits",
    class_names=tuple(map(str, range(NUM_CLASSES))),
    image_size=IMAGE_SIZE,
    num_validation=NUM_VALIDATION,
    load=load_digits,
)
