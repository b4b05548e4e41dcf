import numpy as np
import pytest
from scipy import ndimage

from efficientnet_advprop.data import corruptions

RNG = np.random.RandomState(0)
IMAGE = ndimage.gaussian_filter(RNG.uniform(0, 255, [32, 32, 3]), (2, 2, 0)) * 3 - 255
IMAGE = np.clip(IMAGE, 0, 255).astype(np.uint8)
LARGE = np.kron(IMAGE, np.ones([7, 7, 1], np.uint8))
ROUGH = RNG.randint(0, 256, [96, 96, 3]).astype(np.uint8)


def corrupt(image, corruption, severity, seed=0, **options):
    return corruptions.corrupt(image, corruption, severity, seed=seed, **options).astype(float)


def test_the_fifteen_of_imagenet_c():
    assert " ".join(corruptions.CORRUPTIONS) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow"
        " frost fog brightness contrast elastic_transform pixelate jpeg_compression"
    )


@pytest.mark.parametrize("corruption", corruptions.CORRUPTIONS)
def test_form_seed_and_originals(corruption):
    for severity in corruptions.SEVERITIES:
        original = IMAGE.copy()
        first = corruptions.corrupt(original, corruption, severity, seed=3)
        assert first.dtype == np.uint8 and first.shape == IMAGE.shape and (first != IMAGE).any()
        np.testing.assert_array_equal(original, IMAGE)
        np.testing.assert_array_equal(first, corrupt(IMAGE, corruption, severity, seed=3))
    assert corruptions.corrupt(IMAGE[:20], corruption, 3, seed=0).shape == (20, 32, 3)


@pytest.mark.parametrize(
    "name, value",
    [
        ("corruption", "rain"),
        ("severity", 0),
        ("severity", 6),
        ("parameters", "mnist"),
        ("image", IMAGE / 255),
    ],
)
def test_wrong_arguments_are_named(name, value):
    arguments = {"image": IMAGE, "corruption": "fog", "severity": 1, "parameters": "cifar"}
    with pytest.raises(ValueError, match=f"`{name}` is"):
        corrupt(**{**arguments, name: value})


GRAY = np.full([64, 64, 3], 128, np.uint8)


def test_noise_has_the_published_strength():
    for severity, scale in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        noise = corrupt(GRAY, "gaussian_noise", severity) - 128
        assert abs(noise.std() / (255 * scale) - 1) < 0.03
    large = corrupt(GRAY, "gaussian_noise", 1, parameters="imagenet") - 128
    assert abs(large.std() / (255 * 0.08) - 1) < 0.03
    for severity, photons in enumerate((60, 25, 12, 5, 3), 1):
        shot = corrupt(GRAY // 2, "shot_noise", severity, parameters="imagenet") / 255
        if severity < 4:  # beyond, white clips the distribution
            # Poisson: variance = mean / photons.
            assert abs(shot.std() / np.sqrt(64 / 255 / photons) - 1) < 0.05
    for severity, amount in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        impulse = corrupt(GRAY, "impulse_noise", severity)
        assert abs((impulse != 128).mean() - amount) < 5 * np.sqrt(amount / impulse.size)
        assert set(np.unique(impulse)) == {0, 128, 255}


def test_contrast_and_brightness_have_closed_forms():
    halved = corrupt(IMAGE, "contrast", 2) / 255
    means = (IMAGE / 255).mean(axis=(0, 1))
    np.testing.assert_allclose(halved, (IMAGE / 255 - means) * 0.5 + means, atol=1 / 255)
    colored = np.zeros([4, 4, 3], np.uint8)
    colored[...] = (100, 50, 0)
    # HSV: the value 100 rises by 0.2 · 255 = 51, hue and saturation stay.
    brighter = corrupt(colored, "brightness", 4).reshape(-1, 3)
    np.testing.assert_array_equal(np.unique(brighter, axis=0), [[151, 75, 0]])


def test_blurs_keep_the_mean_and_flatten():
    for corruption in ("defocus_blur", "motion_blur", "zoom_blur", "glass_blur"):
        blurred = corrupt(ROUGH, corruption, 5, parameters="imagenet")
        assert abs(blurred.mean() - ROUGH.mean()) < 0.1 * ROUGH.mean()
        steps, before = (np.abs(np.diff(image, axis=0)) for image in (blurred, ROUGH.astype(float)))
        assert steps.mean() < 0.7 * before.mean()
    assert np.abs(corrupt(GRAY, "defocus_blur", 5) - 128).max() <= 1


def test_zoom_is_scipys():
    factors = np.arange(1, 1.11, 0.01)
    image = LARGE / 255

    def zoomed(factor):
        side = int(np.ceil(224 / factor))
        start = (224 - side) // 2
        center = image[start : start + side, start : start + side]
        larger = ndimage.zoom(center, (factor, factor, 1), order=1)
        start = (larger.shape[0] - 224) // 2
        return larger[start : start + 224, start : start + 224]

    expected = (image + sum(map(zoomed, factors))) / (len(factors) + 1)
    found = corrupt(LARGE, "zoom_blur", 1) / 255
    np.testing.assert_allclose(found, expected, atol=1.01 / 255)


@pytest.mark.parametrize(
    "corruption",
    [
        name
        for name in corruptions.CORRUPTIONS
        if name not in ("glass_blur", "snow", "frost", "elastic_transform")
    ],
)
def test_damage_grows_with_severity(corruption):
    weak, strong = (
        np.mean([np.abs(corrupt(LARGE, corruption, severity, seed) - LARGE) for seed in range(3)])
        for severity in (1, 5)
    )
    assert strong > 1.1 * weak
