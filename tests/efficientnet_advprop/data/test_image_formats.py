"""Every format gives the pixels that were put into it, in every reader, or is refused by its name."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.data import image_formats, preprocessing
from efficientnet_advprop.data.image_formats import as_decodable, is_image
from efficientnet_advprop.images import corrupted_images, record_conversion
from efficientnet_advprop.runtime.errors import DataError
from efficientnet_advprop.serving import encoded_images
from examples import pixels as example_pixels

SIZE = 24
# Levels that a palette of eight colours can hold, in a gradient, so that JPEG's
# rounding is small.
RAMP = np.linspace(0, 7, SIZE).round().astype(np.uint8)
PALETTE = np.array([[36 * i, 255 - 36 * i, 30 + 20 * i] for i in range(8)], np.uint8)
INDICES = np.broadcast_to(RAMP[:, None], [SIZE, SIZE])
COLOURS = PALETTE[INDICES]  # uint8 [SIZE, SIZE, 3]
GRAY = np.repeat(36 * INDICES[..., None], 3, axis=-1).astype(np.uint8)
ALPHA = np.full([SIZE, SIZE, 1], 99, np.uint8)


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_palette():
    image = Image.fromarray(np.ascontiguousarray(INDICES), "P")
    image.putpalette(PALETTE.tobytes())
    return image


def bmp_with_palette_of_four_bits():
    """Written by hand: Pillow cannot."""
    packed = (INDICES[::-1, 0::2] << 4 | INDICES[::-1, 1::2]).tobytes()
    palette = np.zeros([16, 4], np.uint8)
    palette[:8, :3] = PALETTE[:, ::-1]
    start = 14 + 40 + palette.size
    head = b"BM" + struct.pack("<IHHI", start + len(packed), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, SIZE, SIZE, 1, 4, 0, len(packed), 0, 0, 16, 0)
    return head + info + palette.tobytes() + packed


COLOUR_IMAGE = Image.fromarray(COLOURS)
TRANSPARENT_IMAGE = Image.fromarray(np.concatenate([COLOURS, ALPHA], -1))
ANIMATED = {"save_all": True, "append_images": [COLOUR_IMAGE.rotate(90)]}
FINE = {"quality": 100, "subsampling": 0}
LEVELS16 = (GRAY[..., 0].astype(np.uint16) << 8) + 200  # the lower bits are dropped, not rounded
# name → (file, its pixels, how far a reader may be off: 0 but for JPEG's and WebP's
# rounding)
FORMATS = {
    "png": (save(COLOUR_IMAGE, "PNG"), COLOURS, 0),
    "png_gray": (save(Image.fromarray(GRAY[..., 0]), "PNG"), GRAY, 0),
    "png_gray_16": (save(Image.fromarray(LEVELS16), "PNG"), GRAY, 0),
    "png_rgb_16": (tf.io.encode_png(COLOURS.astype(np.uint16) * 256 + 200).numpy(), COLOURS, 0),
    "png_gray_alpha": (save(Image.fromarray(GRAY[..., 0]).convert("LA"), "PNG"), GRAY, 0),
    "png_rgb_alpha": (save(TRANSPARENT_IMAGE, "PNG"), COLOURS, 0),
    "png_palette": (save(with_palette(), "PNG"), COLOURS, 0),
    "png_palette_transparent": (save(with_palette(), "PNG", transparency=3), COLOURS, 0),
    "gif": (save(with_palette(), "GIF"), COLOURS, 0),
    "gif_animated": (save(with_palette(), "GIF", **ANIMATED), COLOURS, 0),
    "gif_transparent": (
        save(with_palette(), "GIF", transparency=3),
        np.where((INDICES == 3)[..., None], 0, COLOURS),
        0,
    ),
    "bmp": (save(COLOUR_IMAGE, "BMP"), COLOURS, 0),
    "bmp_gray": (save(Image.fromarray(GRAY[..., 0]), "BMP"), GRAY, 0),
    "bmp_palette": (save(with_palette(), "BMP"), COLOURS, 0),
    "bmp_palette_4": (bmp_with_palette_of_four_bits(), COLOURS, 0),
    "bmp_1": (save(Image.fromarray(GRAY[..., 0] > 127), "BMP"), 255 * (GRAY > 127), 0),
    "bmp_32": (save(TRANSPARENT_IMAGE, "BMP"), COLOURS, 0),
    "bmp_padded": (save(COLOUR_IMAGE, "BMP") + b"\0\0", COLOURS, 0),  # as Photoshop writes them
    "webp": (save(COLOUR_IMAGE, "WEBP", lossless=True), COLOURS, 0),
    "webp_alpha": (save(TRANSPARENT_IMAGE, "WEBP", lossless=True, exact=True), COLOURS, 0),
    "webp_animated": (save(COLOUR_IMAGE, "WEBP", lossless=True, **ANIMATED), COLOURS, 0),
    "jpeg": (save(COLOUR_IMAGE, "JPEG", **FINE), COLOURS, 6),
    "jpeg_progressive": (save(COLOUR_IMAGE, "JPEG", **FINE, progressive=True), COLOURS, 6),
    "jpeg_gray": (save(Image.fromarray(GRAY[..., 0]), "JPEG", quality=100), GRAY, 6),
    "jpeg_cmyk": (save(COLOUR_IMAGE.convert("CMYK"), "JPEG", **FINE), COLOURS, 8),
}
REFUSED = {
    "TIFF": save(COLOUR_IMAGE, "TIFF"),
    "JPEG 2000": save(COLOUR_IMAGE, "JPEG2000"),
    "ICO": save(COLOUR_IMAGE, "ICO"),
    "empty": b"",
    "unknown": b"no image at all",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def difference(pixels, expected):
    pixels = np.asarray(pixels, np.float64)
    assert pixels.shape == expected.shape
    return np.abs(pixels - expected).max()


def read_by_files(encoded, tmp_path):
    (tmp_path / "image.any").write_bytes(encoded)
    return image_formats.decode(image_formats.read_file(str(tmp_path / "image.any")))


def read_by_prepare(encoded, tmp_path):
    return image_formats.decode(record_conversion.without_loss(encoded))


def read_by_example(encoded, tmp_path):
    (tmp_path / "image.any").write_bytes(encoded)
    return example_pixels.load_pixels(str(tmp_path / "image.any"), SIZE, None)


READERS = {"files": read_by_files, "prepare": read_by_prepare, "example": read_by_example}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_sees_the_same_pixels(name, reader, tmp_path):
    encoded, expected, tolerance = FORMATS[name]
    assert difference(READERS[reader](encoded, tmp_path), expected) <= tolerance


def test_a_data_set_sees_the_same_pixels():
    rows = tf.data.Dataset.from_tensor_slices([encoded for encoded, *_ in FORMATS.values()])
    rows = rows.map(image_formats.as_decodable_in_graph)
    rows = rows.map(lambda row: preprocessing.preprocess_for_eval(row, SIZE, "none"))
    for pixels, (name, (_, expected, tolerance)) in zip(rows, FORMATS.items(), strict=True):
        assert difference(pixels, expected) <= tolerance, name


@pytest.mark.parametrize("name", FORMATS)
def test_corrupted_images_start_from_the_same_pixels(name, monkeypatch):
    """What `imagenet_c_made` hands to the corruption, at its own size."""
    seen = []

    def remember(pixels, corruption, severity, seed):
        seen.append(pixels)
        return pixels

    monkeypatch.setattr(corrupted_images.corruptions, "corrupt", remember)
    encoded, expected, tolerance = FORMATS[name]
    corrupted_images.corrupt_encoded(record_conversion.without_loss(encoded), "fog", 1, seed=0)
    enlarged = np.asarray(
        Image.fromarray(expected.astype(np.uint8)).resize((256, 256), Image.Resampling.BILINEAR)
    )
    assert difference(seen[0], enlarged[16:240, 16:240]) <= tolerance


@pytest.mark.parametrize("name", REFUSED)
def test_other_formats_are_refused(name):
    with pytest.raises(DataError, match="JPEG, PNG, GIF, BMP or WebP"):
        record_conversion.without_loss(REFUSED[name])
    with pytest.raises(tf.errors.InvalidArgumentError):
        image_formats.decode(REFUSED[name])


def test_a_data_set_refuses_them_too():
    rows = tf.data.Dataset.from_tensor_slices(list(REFUSED.values()))
    iterator = iter(rows.map(image_formats.as_decodable_in_graph))
    for _ in REFUSED:
        with pytest.raises(tf.errors.InvalidArgumentError, match="JPEG, PNG, GIF, BMP or WebP"):
            next(iterator)


@pytest.mark.parametrize("quality, subsampling", [(100, 0), (75, 2)])
def test_a_served_graph_and_pillow_agree_to_the_level(quality, subsampling, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, [12, 15, 3], np.uint8)
    image = Image.fromarray(pixels).resize((120, 96), Image.Resampling.BICUBIC)
    path = tmp_path / "image.jpg"
    image.save(path, quality=quality, subsampling=subsampling)
    served, errors = encoded_images.decode_batch(tf.constant([path.read_bytes()]), 64, "released")
    client = example_pixels.load_pixels(str(path), 64, 64 / 96)
    assert list(errors.numpy()) == [b""] and np.abs(served[0].numpy() - client).max() <= 1


@pytest.mark.parametrize("crop", ["v2", "v2-ft"])
def test_a_client_prepares_for_efficientnetv2(crop, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, [91, 120, 3], np.uint8)
    (tmp_path / "image.png").write_bytes(save(Image.fromarray(pixels), "PNG"))
    fraction = preprocessing.crop_fraction(64, crop)
    settings = {"crop": crop, "image_size": 64, "crop_fraction": fraction}
    client = example_pixels.load_as_told(str(tmp_path / "image.png"), settings)
    encoded = (tmp_path / "image.png").read_bytes()
    wanted = preprocessing.preprocess_for_eval(encoded, 64, crop).numpy()
    np.testing.assert_allclose(client, wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["bmp_palette", "bmp_palette_4", "bmp_1", "bmp_gray", "webp"])
def test_a_graph_without_python_refuses_what_it_would_read_wrong(name):
    with pytest.raises(tf.errors.InvalidArgumentError, match="no JPEG, PNG or GIF"):
        image_formats.decode(FORMATS[name][0])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damaged_files_are_errors(kind):
    encoded = save(COLOUR_IMAGE, kind)[:-60]
    with pytest.raises((DataError, tf.errors.InvalidArgumentError)):
        image_formats.decode(as_decodable(encoded))


def test_above_pillows_limit_is_one_message(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE * SIZE // 2 - 1)
    for name in ("bmp_palette", "webp"):
        with pytest.raises(DataError, match="more than 574 pixels"):
            as_decodable(FORMATS[name][0])
    assert as_decodable(FORMATS["png"][0]) == FORMATS["png"][0]  # not read by Pillow


def test_names():
    for name in ("a.jpg", "a.JPEG", "b/c.Png", "x.jfif", "x.jpe", "x.gif", "x.bmp", "x.WebP"):
        assert is_image(name)
    for name in ("a.tif", "a.txt", "jpg", "a.jpg.txt", ".a.jpg", "b/._c.png", "a.png~"):
        assert not is_image(name)
