"""Makes tests/data/corruptions.npz: what the benchmark's own code makes of one
photograph, for `test_corruptions.py`.

    python3.8 -m venv reference
    reference/bin/pip install imagenet-c==0.0.3 imagecorruptions==1.1.2 numpy==1.23.5 scipy==1.9.3 scikit-image==0.18.3 \\
        # Wand wants ImageMagick 6's library MagickWand
        pillow==10.4.0 opencv-python-headless Wand
    reference/bin/python tests/corruption_reference.py photograph.png tests/data/corruptions.npz

It runs in an environment of its own and imports nothing of this project. `imagenet-c`
is the package of ImageNet-C's authors, with ImageMagick behind motion blur and snow; it
comes without its photographs of frost, which `imagecorruptions` has. The random numbers
are those of NumPy's legacy generator, whose stream is the same in all versions: seeded
alike, it lets the test demand the same pixels even of random corruptions. Two windows
of each output are kept, one in the middle and one in a corner, and statistics of the
frost. The photograph, 224×224 pixels, is kept as `image`.
"""

import sys

import imagecorruptions
import imagenet_c
import numpy as np
from PIL import Image

SIZE = 224  # pixels; the authors' code knows no other
WINDOWS = np.array([[96, 136, 80, 120], [0, 20, 204, 224]])  # rows from, to, columns from, to
NAMES = imagecorruptions.get_corruption_names("common")
SEVERITIES = (1, 2, 3, 4, 5)
NUM_FROST_DRAWS = 40


def seed_of(name, severity):
    return 10 * NAMES.index(name) + severity


def frost_statistics(severity):
    """Over draws of frost upon black: mean by channel, standard deviation, and mean
    step between neighbours; pixels of 255.
    """
    layers = []
    for draw in range(NUM_FROST_DRAWS):
        np.random.seed(1000 * draw + severity)
        layers.append(
            imagecorruptions.corrupt(np.zeros([SIZE, SIZE, 3], np.uint8), severity, "frost").astype(
                np.float64
            )
        )
    layers = np.stack(layers)
    return [*layers.mean(axis=(0, 1, 2)), layers.std(), np.abs(np.diff(layers, axis=1)).mean()]


def main(photograph, destination):
    with Image.open(photograph) as file:
        image = np.asarray(file.convert("RGB"))
    assert image.shape == (SIZE, SIZE, 3), image.shape
    arrays = {"image": image, "windows": WINDOWS}
    for name in NAMES:
        if name == "frost":
            continue
        by_severity = []
        for severity in SEVERITIES:
            np.random.seed(seed_of(name, severity))
            by_severity.append(imagenet_c.corrupt(image, severity, name))
        for number, (top, bottom, left, right) in enumerate(WINDOWS):
            arrays["%s/%d" % (name, number)] = np.stack(
                [output[top:bottom, left:right] for output in by_severity]
            )
        arrays[name + "/seeds"] = np.array([seed_of(name, severity) for severity in SEVERITIES])
        arrays[name + "/mean"] = np.array([output.mean() for output in by_severity])
    arrays["frost/statistics"] = np.array([frost_statistics(severity) for severity in SEVERITIES])
    np.savez_compressed(destination, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
