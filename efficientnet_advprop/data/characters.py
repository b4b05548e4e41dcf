"""An embedded data set that is harder than the digits: characters of matplotlib's fonts,
rendered as coloured, textured and cluttered images.

    CHARACTERS.ensure("/tmp/characters")           # train: 6,400 images, validation: 2,048
    image, label = render("train", 5)              # uint8 [48, 48, 3], and 5, the class "F"

Nothing is downloaded: the fonts (DejaVu, STIX, Computer Modern) come with matplotlib,
everything else is drawn from random numbers. The two splits share no font family and no
kind of texture, so a network must know the shapes. Each image depends on its split and
number alone, so that a longer set begins with the images of a shorter one.
"""

import functools
import os
from typing import Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from efficientnet_advprop.data.embedded_set import EmbeddedSet

IMAGE_SIZE = 48
# Without I, O, 0 and 1, which some fonts draw alike.
CLASSES = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
NUM_IMAGES = {"train": 6400, "validation": 2048}

_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
    "cmr10": ("",),
    "cmtt10": ("",),
    "cmss10": ("",),
    "cmb10": ("",),
}
FONT_FAMILIES = {
    "train": ("DejaVuSans", "DejaVuSerif", "cmr10", "cmtt10"),
    "validation": ("DejaVuSansMono", "STIXGeneral", "cmss10", "cmb10"),
}
_SCALE = 2  # glyphs and strokes are drawn so many times larger, then shrunk
_DRAWING_SIZE = IMAGE_SIZE * _SCALE
_FONT_SIZE = 40 * _SCALE
_ROWS, _COLUMNS = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
_LUMA = np.array([0.299, 0.587, 0.114])
# Characters are lighter than their background, in all images alike: were it so in half of
# them, or by the colours of each, networks of these sizes would learn nothing in their
# first thousand updates.
_DARK, _LIGHT = (0.0, 100.0), (155.0, 255.0)


def _noise(random: np.random.Generator) -> np.ndarray:
    """Smooth noise."""
    cells = int(random.integers(3, 9))
    grid = Image.fromarray(random.integers(0, 256, [cells, cells]).astype(np.uint8))
    smooth = grid.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 255.0


def _axes(angle: float) -> Tuple[np.ndarray, np.ndarray]:
    """Each pixel's coordinates along a direction and across it, in pixels."""
    along = np.cos(angle) * _COLUMNS + np.sin(angle) * _ROWS
    return along, np.cos(angle) * _ROWS - np.sin(angle) * _COLUMNS


def _plane(random: np.random.Generator) -> np.ndarray:
    """The coordinate along a random direction."""
    return _axes(random.uniform(0.0, np.pi))[0]


def _stripes(random: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(_plane(random) * 2 * np.pi / random.uniform(4.0, 16.0))


def _gradient(random: np.random.Generator) -> np.ndarray:
    plane = _plane(random)
    return (plane - plane.min()) / np.ptp(plane)


def _checks(random: np.random.Generator) -> np.ndarray:
    period = random.uniform(5.0, 14.0)
    along, across = _axes(random.uniform(0.0, np.pi / 2))
    return ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float32)


def _rings(random: np.random.Generator) -> np.ndarray:
    middle = random.uniform(-0.5, 1.5, 2) * IMAGE_SIZE
    radius = np.hypot(_ROWS - middle[0], _COLUMNS - middle[1])
    return 0.5 + 0.5 * np.sin(radius * 2 * np.pi / random.uniform(5.0, 16.0))


def _blotches(random: np.random.Generator) -> np.ndarray:
    """Islands with sharp edges."""
    return (_noise(random) > 0.5).astype(np.float32)


TEXTURES = {"train": (_noise, _stripes, _gradient), "validation": (_checks, _rings, _blotches)}


def _base_color(random: np.random.Generator, lowest: float, highest: float) -> np.ndarray:
    """A colour of a luma between two, float [3]."""
    while True:
        color = random.uniform(0.0, 255.0, 3)
        if lowest <= color @ _LUMA <= highest:
            return color


def _textured(color: np.ndarray, split: str, random: np.random.Generator) -> np.ndarray:
    """A surface around a colour; float32 [size, size, 3]."""
    kinds = TEXTURES[split]
    pattern = kinds[random.integers(len(kinds))](random)
    change = random.uniform(-1.0, 1.0, 3) * random.uniform(10.0, 50.0)
    return color + (pattern[..., None] - 0.5) * change


@functools.lru_cache(maxsize=None)
def fonts(split: str) -> Tuple[ImageFont.FreeTypeFont, ...]:
    """Those of a split: four families of one to four styles."""
    import matplotlib  # for its data alone, and only this data set needs it

    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return tuple(
        ImageFont.truetype(os.path.join(folder, f"{family}{style}.ttf"), _FONT_SIZE)
        for family in FONT_FAMILIES[split]
        for style in _STYLES[family]
    )


def _coverage(drawn: Image.Image) -> np.ndarray:
    """How much of each pixel a white drawing on black covers, in [0, 1]; float32 [size,
    size].
    """
    shrunk = drawn.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float32) / 255.0


def _glyph(character: str, split: str, random: np.random.Generator, largest: float) -> np.ndarray:
    """The coverage of a character, turned, sheared, scaled by up to `largest` and moved."""
    of_split = fonts(split)
    font = of_split[random.integers(len(of_split))]
    size = _DRAWING_SIZE
    drawn = Image.new("L", (size, size))
    ImageDraw.Draw(drawn).text((size / 2, size / 2), character, 255, font, anchor="mm")
    angle, shear = np.deg2rad(random.uniform(-20.0, 20.0)), random.uniform(-0.25, 0.25)
    scale = random.uniform(0.6, 1.0) * largest
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Pillow asks where a pixel of the result comes from, hence the inverse.
    inverse = np.linalg.inv(turn @ np.array([[1.0, shear], [0.0, 1.0]]) * scale)
    middle = np.array([size / 2, size / 2])
    moved = middle + random.uniform(-0.12, 0.12, 2) * size
    offset = middle - inverse @ moved
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    turned = drawn.transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return _coverage(turned)


def _strokes(random: np.random.Generator) -> np.ndarray:
    """The coverage of a line or an arc across the image."""
    size = _DRAWING_SIZE
    drawn = Image.new("L", (size, size))
    draw = ImageDraw.Draw(drawn)
    (left, top), (right, bottom) = np.sort(random.uniform(-0.2, 1.2, [2, 2]) * size, axis=0)
    width = int(random.integers(1, 4)) * _SCALE
    if random.random() < 0.5:
        draw.line([(left, bottom if random.random() < 0.5 else top), (right, top)], 255, width)
    else:
        start = random.uniform(0.0, 360.0)
        box = (left, top, right + width, bottom + width)
        draw.arc(box, start, start + random.uniform(60.0, 300.0), 255, width)
    return _coverage(drawn)


def render(split: str, index: int) -> Tuple[np.ndarray, int]:
    """One image, uint8 [48, 48, 3], and its label, which is `index` modulo the number of
    classes.

    Args:
        split: "train" or "validation".
        index: ≥ 0; there is no last one.
    """
    random = np.random.default_rng([list(NUM_IMAGES).index(split), index])
    label = index % len(CLASSES)
    behind, before = _base_color(random, *_DARK), _base_color(random, *_LIGHT)
    image = _textured(behind, split, random)

    def paint(coverage, surface):
        return image * (1.0 - coverage[..., None]) + surface * coverage[..., None]

    for _ in range(random.integers(1, 4)):
        image = paint(0.6 * _strokes(random), random.uniform(0.0, 255.0, 3))
    # A smaller, fainter character of any class, somewhere in a corner.
    other = _glyph(CLASSES[random.integers(len(CLASSES))], split, random, 0.45)
    corner = random.choice([-1, 1], 2) * IMAGE_SIZE // 3
    image = paint(0.4 * np.roll(other, corner, (0, 1)), random.uniform(0.0, 255.0, 3))
    image = paint(_glyph(CLASSES[label], split, random, 1.0), _textured(before, split, random))
    blurred = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(random.uniform(0.0, 0.8))
    )
    return np.asarray(blurred), label


@functools.lru_cache(maxsize=1)  # of the validation images every corrupted set is made
def load_characters(split: str) -> Tuple[np.ndarray, np.ndarray]:
    """The images (uint8 [n, 48, 48, 3]) and labels (int64 [n]) of a split, in the order
    of the records.
    """
    images, labels = zip(*(render(split, index) for index in range(NUM_IMAGES[split])))
    return np.stack(images), np.array(labels, np.int64)


CHARACTERS = EmbeddedSet(
    name="characters",
    words="the rendered characters",
    class_names=tuple(CLASSES),
    image_size=IMAGE_SIZE,
    num_validation=NUM_IMAGES["validation"],
    load=load_characters,
)
