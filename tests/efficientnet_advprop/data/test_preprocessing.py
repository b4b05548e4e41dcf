import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.models.network import normalize_pixels
from tests.conftest import golden

SEED = tf.constant([3, 5], tf.int64)


@pytest.fixture(scope="module")
def official():
    return golden("preprocess.npz")


@pytest.mark.parametrize("in_map", [False, True])
@pytest.mark.parametrize(
    "key, size",
    [
        ("vga", 64),
        ("vga", 224),
        ("odd", 64),
        ("tall", 64),
        ("wide", 64),
        ("small", 64),
        ("small", 75),
        ("gray", 64),
    ],
)
def test_eval_is_bit_exact(official, key, size, in_map):
    encoded = official[f"jpeg_{key}"].tobytes()
    if in_map:
        dataset = tf.data.Dataset.from_tensors(encoded).map(
            lambda e: preprocessing.preprocess_for_eval(e, size, crop="0.875")
        )
        image = next(iter(dataset)).numpy()
    else:
        image = preprocessing.preprocess_for_eval(encoded, size, crop=0.875).numpy()
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, official[f"out_{key}_{size}"])


def test_released_crop_is_the_0875_one_at_224_pixels_and_differs_elsewhere(official):
    encoded = official["jpeg_vga"].tobytes()
    np.testing.assert_array_equal(
        preprocessing.preprocess_for_eval(encoded, 224), official["out_vga_224"]
    )
    assert preprocessing.crop_fraction(600, "released") == 600 / 632
    assert preprocessing.crop_fraction(260, "0.875") == 260 / 297
    assert (preprocessing.preprocess_for_eval(encoded, 64).numpy() != official["out_vga_64"]).any()


@pytest.mark.parametrize("crop", ["all", 0, 1.5, None])
def test_wrong_crop_is_named(crop):
    with pytest.raises(ValueError, match="`crop` is"):
        preprocessing.crop_fraction(224, crop)


@pytest.mark.parametrize("width, height", [(300, 411), (500, 333), (256, 256), (130, 90)])
def test_torchvisions_crop_is_that_of_pillow(width, height):
    """torchvision 0.20: `Resize(256)` cuts the longer side to whole pixels,
    `CenterCrop(224)` rounds half a pixel to even.
    """
    pixels = np.random.default_rng(width).integers(0, 256, [height // 6, width // 6, 3], np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    shorter = min(width, height)
    size = (256 * width // shorter, 256 * height // shorter)
    left, top = (round((edge - 224) / 2.0) for edge in size)
    wanted = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    file = io.BytesIO()
    image.save(file, "PNG")
    found = preprocessing.preprocess_for_eval(file.getvalue(), 224, preprocessing.TORCHVISION)
    differences = np.abs(found.numpy() - np.asarray(wanted, np.float32))
    # Pillow rounds between the two directions too; how often that shows depends on its
    # version.
    assert differences.max() <= 1.0 and differences.mean() < 0.25


def test_png_and_jpeg_go_through_the_same_pixels(official):
    pixels = tf.io.decode_jpeg(official["jpeg_odd"].tobytes(), channels=3)
    png = tf.io.encode_png(pixels)
    np.testing.assert_array_equal(
        preprocessing.preprocess_for_eval(png, 64, crop="0.875"), official["out_odd_64"]
    )
    of_jpeg = preprocessing.preprocess_for_train(official["jpeg_odd"].tobytes(), 64, seed=SEED)
    np.testing.assert_array_equal(preprocessing.preprocess_for_train(png, 64, seed=SEED), of_jpeg)


def test_train_is_a_function_of_the_seed(official):
    encoded = official["jpeg_vga"].tobytes()
    first, again = (
        preprocessing.preprocess_for_train(encoded, 64, seed=SEED).numpy() for _ in range(2)
    )
    assert first.dtype == np.uint8 and first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    others = [
        preprocessing.preprocess_for_train(encoded, 64, seed=SEED + [0, i]).numpy()
        for i in range(1, 4)
    ]
    assert all((other != first).any() for other in others)


def test_inception_windows_have_the_official_distribution():
    """Area 8–100 %, aspect 3/4–4/3; against draws of TF1's own op, which the official code calls."""
    shape = tf.constant([375, 500, 3])
    seeds = tf.data.Dataset.range(4000).map(
        lambda i: preprocessing.inception_window(
            shape, tf.stack([tf.constant(7, tf.int64), i]), 0.875
        )
    )
    ours = np.stack(list(seeds.as_numpy_iterator())).astype(float)
    tf.random.set_seed(1)

    def official_window(_):
        begin, size, _ = tf.compat.v1.image.sample_distorted_bounding_box(
            shape,
            bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], 0)

    theirs = np.stack(
        list(tf.data.Dataset.range(4000).map(official_window).as_numpy_iterator())
    ).astype(float)
    whole = (theirs[:, 2:] == [375, 500]).all(axis=1)
    theirs[whole] = [23, 86, 328, 328]  # the fallback: floor(0.875 · 375) = 328 in the centre
    for statistic in (
        lambda w: w[:, 2] * w[:, 3] / (375 * 500),
        lambda w: w[:, 3] / w[:, 2],
        lambda w: w[:, 0],
        lambda w: w[:, 1],
    ):
        a, b = statistic(ours), statistic(theirs)
        # Two means of 4,000 draws: five standard errors.
        assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / 4000)
        assert np.abs(
            np.quantile(a, [0.1, 0.5, 0.9]) - np.quantile(b, [0.1, 0.5, 0.9])
        ).max() < 0.08 * np.ptp(b)
    area, aspect = ours[:, 2] * ours[:, 3] / (375 * 500), ours[:, 3] / ours[:, 2]
    assert area.min() > 0.075 and aspect.min() > 0.74 and aspect.max() < 1.35


def test_whole_image_draw_falls_back_to_the_centre_crop():
    """An image that no window of that aspect fits: ten attempts fail, and the official
    code takes the evaluation's crop.
    """
    window = preprocessing.inception_window(tf.constant([1000, 10, 3]), SEED, 0.875)
    np.testing.assert_array_equal(window, [496, 1, 8, 8])
    # One channel in the file: no fallback.
    gray = preprocessing.inception_window(tf.constant([1000, 10, 1]), SEED, 0.875)
    np.testing.assert_array_equal(gray, [0, 0, 1000, 10])


def test_flip_and_pad_have_their_probabilities():
    ramp = np.tile(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 1, 3))
    encoded = tf.io.encode_png(ramp)
    flipped = [
        bool(preprocessing.preprocess_for_train(encoded, 32, seed=[1, i], crop="none")[0, 0, 0] > 0)
        for i in range(400)
    ]
    assert 160 < sum(flipped) < 240  # four standard deviations
    shifts = [
        preprocessing.preprocess_for_train(
            tf.io.encode_png(ramp + 4),
            32,
            seed=[1, i],
            crop="pad",
            crop_padding=2,
            horizontal_flip=False,
        ).numpy()
        for i in range(200)
    ]
    first_columns = np.bincount(
        [
            int((image[16, :, 0] == 0).sum() * (1 if image[16, 0, 0] == 0 else -1) + 2)
            for image in shifts
        ],
        minlength=5,
    )
    assert (first_columns > 15).all()  # shifts −2 … 2, 40 of each expected
    np.testing.assert_array_equal(
        preprocessing.preprocess_for_train(
            encoded, 32, seed=SEED, crop="none", horizontal_flip=False
        ),
        ramp,
    )


def test_without_augmentation_pixels_are_rounded_and_with_it_cut_off(official):
    encoded = official["jpeg_vga"].tobytes()
    window = preprocessing.inception_window(tf.image.extract_jpeg_shape(encoded), SEED, 64 / 96)
    pixels = preprocessing.resize(
        tf.image.decode_and_crop_jpeg(encoded, window, channels=3), 64
    ).numpy()
    plain = preprocessing.preprocess_for_train(
        encoded, 64, seed=SEED, horizontal_flip=False
    ).numpy()
    np.testing.assert_array_equal(plain, np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    cut = preprocessing.preprocess_for_train(
        encoded, 64, seed=SEED, horizontal_flip=False, augment=lambda image, seed: image
    ).numpy()
    np.testing.assert_array_equal(cut, np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("key", ["vga", "odd", "tall", "gray"])
def test_the_four_ways_of_efficientnetv2_are_the_official_ones(official, key):
    """`new`, `v1` and `ft` of the official code, normalised as it does; of large images it
    has every 16th or 8th pixel, and a patch.
    """
    wanted, encoded = golden("preprocess_v2.npz"), official[f"jpeg_{key}"].tobytes()
    ways = {"new": ("v2", "v2"), "v1": ("released", "imagenet"), "ft": ("v2-ft", "advprop")}
    for branch, (crop, normalization) in ways.items():
        for size in (48, 224, 384):
            name = f"out_{key}_{size}_{branch}"
            found = [file for file in wanted.files if file.startswith(name)]
            if not found:
                continue
            image = preprocessing.preprocess_for_eval(encoded, size, crop)
            pixels = normalize_pixels(image, normalization).numpy()
            for file in found:
                part = pixels
                if file.endswith("_patch"):
                    part = pixels[size // 2 : size // 2 + 12, size // 3 : size // 3 + 12]
                elif "_every" in file:
                    step = int(file.rsplit("_every", 1)[1])
                    part = pixels[::step, ::step]
                np.testing.assert_allclose(part, wanted[file], rtol=0, atol=2e-6, err_msg=file)


def test_efficientnet_v2_crops_5_to_100_percent_bilinearly():
    """Of red = x and green = y, bilinear resizing tells the window: n pixels out of w have
    their centres w / n apart.
    """
    side, size = 200, 8
    ramp = np.arange(side, dtype=np.uint8)
    blue = np.zeros([side, side], np.uint8)
    pixels = np.stack([*np.meshgrid(ramp, ramp), blue], axis=-1)
    encoded = tf.io.encode_png(pixels)
    areas = []
    for seed in range(60):
        found = preprocessing._train_pixels(encoded, size, tf.constant([seed, 1]), "v2", 0)
        steps = np.diff(found[..., 0], axis=1), np.diff(found[..., 1], axis=0)
        assert all(np.ptp(step) < 1e-3 for step in steps)  # a ramp stays one
        width, height = (step.mean() * size for step in steps)
        areas.append(width * height / side**2)
        assert 0.73 < width / height < 1.36  # whole pixels
    assert 0.048 < min(areas) < 0.08 and 0.85 < max(areas) <= 1.0
