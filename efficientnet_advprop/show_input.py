r"""Draws the training images after crop and augmentation, each row one image several
times.

    python -m efficientnet_advprop.show_input --config=configs/advprop.py:b0 \
        --data_dir=… --out=grid.png
    python -m efficientnet_advprop.show_input --config=configs/digits.py \
        --data_dir=data/digits --out=grid.png --rows=4

The first column shows the image as the evaluation sees it. If the method trains on
pairs of views, each draw shows the plain and the augmented view side by side. MixUp and
CutMix mix the images of a column. The images are read from the beginning of the
training files.
"""

import io
import os

import numpy as np
from absl import flags
from PIL import Image

from efficientnet_advprop.command_line import program
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.runtime.files import exists, write_atomically

_CONFIG = program.define_config_flag()
_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of the TFRecords")
_OUT = flags.DEFINE_string("out", None, "the picture to write, such as grid.png")
_ROWS = flags.DEFINE_integer("rows", 6, "number of images", lower_bound=1)
_COLUMNS = flags.DEFINE_integer("columns", 8, "number of draws of each image", lower_bound=1)
_GAP = 2  # pixels


def draw_grid(rows: np.ndarray) -> Image.Image:
    """Arranges uint8 [rows, columns, size, size, 3] side by side on white."""
    rows = np.pad(rows, [(0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)], constant_values=255)
    return Image.fromarray(
        rows.transpose(0, 2, 1, 3, 4).reshape(rows.shape[0] * rows.shape[2], -1, 3)
    )


def main(argv):
    del argv
    config = program.read_config(_CONFIG)
    for flag, what in ((_DATA_DIR, "the folder of the TFRecords"), (_OUT, "the picture to write")):
        if not flag.value:
            raise ConfigError(f"`--{flag.name}` is missing; give {what}.")
    image_format = Image.registered_extensions().get(os.path.splitext(_OUT.value)[1].lower())
    if image_format not in Image.SAVE:
        raise ConfigError(
            f"`--out` is {_OUT.value!r}, but its suffix must be that of a picture: "
            f"{os.path.splitext(_OUT.value)[0]}.png."
        )
    if exists(_OUT.value):  # perhaps a photograph
        raise ConfigError(f"`--out` is {_OUT.value!r}, which is there already; name another file.")
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.data import pipeline, sources

    rows = pipeline.sample_views(
        config.data,
        sources.open_split(config.data, _DATA_DIR.value, "train"),
        num_images=_ROWS.value,
        num_draws=_COLUMNS.value,
        seed=config.training.seed,
        num_classes=config.model.num_classes,
        paired_views=AUGMENTED in METHODS[config.training.method].views,
    )
    picture = io.BytesIO()
    draw_grid(rows).save(picture, image_format)
    write_atomically(_OUT.value, picture.getvalue())
    print(
        f"{_OUT.value}: {_ROWS.value} images; the evaluation's view and "
        f"{_COLUMNS.value} draws of the training's."
    )


if __name__ == "__main__":
    program.run(main)
