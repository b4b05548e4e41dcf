"""Each corruption against the benchmark authors' own code, on one photograph at 224
pixels: `tests/corruption_reference.py`.

Given the same random numbers every pixel may differ by one level of 255 at most: the
authors' code computes partly in float32, and fractions are cut off. `frost`, whose
photographs are not here, is held to the statistics of theirs.
"""

import numpy as np
import pytest

from efficientnet_advprop.data import corruptions
from tests.conftest import golden

REFERENCE = golden("corruptions.npz")
# Deviations allowed: of a pixel, in levels; of their mean over a window; of the mean of
# the whole image.
PIXEL, WINDOW_MEAN, IMAGE_MEAN = 1, 0.05, 0.05
FROST_BRIGHTNESS, FROST_CONTRAST, FROST_STEPS = 0.10, 0.10, 0.20  # relative


class _LegacyDraws:
    """NumPy's legacy generator in the form of the new one, drawing in the order of the
    authors' code.
    """

    def __init__(self, seed):
        self._draws = np.random.RandomState(seed)
        self.normal, self.uniform, self.poisson = (
            self._draws.normal,
            self._draws.uniform,
            self._draws.poisson,
        )
        self.random = self._draws.random_sample

    def integers(self, low, high, size):
        """Of glass blur alone: a pair per pixel from the last one back to the first,
        those at the border left out.
        """
        height, width = (side - 2 * high for side in size[:2])
        shifts = np.zeros(size, np.int64)
        inner = self._draws.randint(low, high, size=(height, width, 2))
        shifts[high : high + height, high : high + width] = inner[::-1, ::-1]
        return shifts


@pytest.mark.parametrize(
    "corruption", [name for name in corruptions.CORRUPTIONS if name != "frost"]
)
def test_same_draws_same_pixels(corruption, monkeypatch):
    for severity in corruptions.SEVERITIES:
        seed = REFERENCE[f"{corruption}/seeds"][severity - 1]
        monkeypatch.setattr(np.random, "default_rng", lambda _, seed=seed: _LegacyDraws(seed))
        output = corruptions.corrupt(
            REFERENCE["image"], corruption, severity, seed=0, parameters="imagenet"
        )
        for number, (top, bottom, left, right) in enumerate(REFERENCE["windows"]):
            expected = REFERENCE[f"{corruption}/{number}"][severity - 1].astype(np.int64)
            differences = np.abs(output[top:bottom, left:right] - expected)
            assert differences.max() <= PIXEL and differences.mean() <= WINDOW_MEAN, (
                severity,
                number,
            )
        assert abs(output.mean() - REFERENCE[f"{corruption}/mean"][severity - 1]) <= IMAGE_MEAN, (
            severity
        )


def test_frost_is_as_bright_as_contrasting_and_as_grainy_as_the_photographs():
    black = np.zeros([224, 224, 3], np.uint8)
    for severity, expected in zip(corruptions.SEVERITIES, REFERENCE["frost/statistics"]):
        layers = np.stack(
            [corruptions.corrupt(black, "frost", severity, seed=draw) for draw in range(20)]
        ).astype(np.float64)
        np.testing.assert_allclose(layers.mean(axis=(0, 1, 2)), expected[:3], rtol=FROST_BRIGHTNESS)
        assert layers.std() == pytest.approx(expected[3], rel=FROST_CONTRAST)
        assert np.abs(np.diff(layers, axis=1)).mean() == pytest.approx(expected[4], rel=FROST_STEPS)


def test_frost_is_added_to_the_dimmed_image():
    # The layer is the same upon any image: frosted minus frosted black is the image's
    # share, up to the cut-off fractions.
    image, black = (np.full([64, 96, 3], level, np.uint8) for level in (100, 0))
    for severity, share in enumerate((1, 0.8, 0.7, 0.65, 0.6), 1):
        arguments = dict(severity=severity, seed=3, parameters="imagenet")
        layer, frosted = (
            corruptions.corrupt(under, "frost", **arguments).astype(int) for under in (black, image)
        )
        unclipped = frosted < 255
        assert np.abs(frosted - layer - 100 * share)[unclipped].max() <= 1
