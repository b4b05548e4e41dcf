"""A picture of the rendered characters.

    python docs/character_images.py    # writes docs/images/characters.png

Above, images to train on; below, images to test on, in other fonts and textures.
"""

import pathlib

import numpy as np
from PIL import Image

from efficientnet_advprop.data import characters

_PATH = pathlib.Path(__file__).parent / "images" / "characters.png"
_COLUMNS, _ROWS, _SCALE, _GAP = 12, 2, 2, 4


def draw(split: str) -> np.ndarray:
    """The first images of a split, uint8 [height, width, 3]."""
    images = iter([characters.render(split, index)[0] for index in range(_COLUMNS * _ROWS)])
    return np.concatenate(
        [np.concatenate([next(images) for _ in range(_COLUMNS)], axis=1) for _ in range(_ROWS)]
    )


if __name__ == "__main__":
    parts = [draw("train"), draw("validation")]
    gap = np.full([_GAP, parts[0].shape[1], 3], 255, np.uint8)
    picture = Image.fromarray(np.concatenate([parts[0], gap, parts[1]]))
    picture.resize([_SCALE * size for size in picture.size]).save(_PATH)
