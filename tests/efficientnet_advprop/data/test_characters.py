"""The rendered characters: what is drawn, and what the two splits share."""

import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from efficientnet_advprop.config.experiment import EMBEDDED, DataConfig
from efficientnet_advprop.data import characters, records, sources
from efficientnet_advprop.data.embedded_sets import EMBEDDED_SETS, of_suite
from efficientnet_advprop.evaluation.suites import registry
from efficientnet_advprop.evaluation.suites.test_sets import SuiteError, SuiteSettings

SPLITS = ("train", "validation")


def test_the_config_names_the_sets_that_there_are():
    assert tuple(EMBEDDED_SETS) == EMBEDDED
    assert of_suite("digits_c") is EMBEDDED_SETS["digits"]
    assert of_suite("imagenet_c") is None


@pytest.mark.parametrize("split", SPLITS)
def test_every_font_draws_every_class_differently(split):
    for font in characters.fonts(split):
        masks = [font.getmask(character) for character in characters.CLASSES]
        drawn = {(mask.size, np.asarray(mask).tobytes()) for mask in masks}
        assert len(drawn) == len(characters.CLASSES), font.path
        assert all(np.asarray(mask).any() for mask in masks)


def test_splits_share_no_font_and_no_texture():
    fonts = [{font.path for font in characters.fonts(split)} for split in SPLITS]
    textures = [set(characters.TEXTURES[split]) for split in SPLITS]
    assert len(fonts[0]) == len(fonts[1]) == 10 and not fonts[0] & fonts[1]
    assert not textures[0] & textures[1]


def test_an_image_depends_on_its_split_and_number_alone():
    seen = set()
    for split, index in itertools.product(SPLITS, range(4)):
        image, label = characters.render(split, index)
        assert image.shape == (48, 48, 3) and image.dtype == np.uint8 and label == index
        again, _ = characters.render(split, index)
        np.testing.assert_array_equal(image, again)
        seen.add(image.tobytes())
    assert len(seen) == 8
    assert characters.render("train", 32 * 5 + 7)[1] == 7


def test_the_classes_can_be_learnt_across_the_splits():
    """A linear classifier of pixels beats chance (3 %) on other fonts, and is far from
    solving them.
    """

    def make(split, count):
        images, labels = zip(*(characters.render(split, index) for index in range(count)))
        gray = np.stack(images).astype(np.float32).mean(-1).reshape(count, 16, 3, 16, 3)
        gray = gray.mean((2, 4)).reshape(count, -1)
        # Dark on bright and bright on dark alike.
        return np.abs(gray - np.median(gray, 1, keepdims=True)) / 255.0, labels

    model = LogisticRegression(C=1.0, max_iter=200).fit(*make("train", 1600))
    assert 0.12 < model.score(*make("validation", 640)) < 0.6


def test_the_suite_and_the_records_have_the_same_images(tmp_path, monkeypatch):
    few = dataclasses.replace(
        characters.CHARACTERS,
        num_validation=40,
        load=lambda split: tuple(
            map(np.array, zip(*(characters.render(split, index) for index in range(40))))
        ),
    )
    monkeypatch.setitem(EMBEDDED_SETS, "characters", few)
    folder = str(tmp_path / "characters")
    settings = SuiteSettings(folder, 32, 48, "none")
    clean, *corrupted = registry.open_suites(["characters", "characters_c/fog"], settings)
    assert [test_set.name for test_set in corrupted] == [
        f"characters_c/fog/{severity}" for severity in (1, 2, 3, 4, 5)
    ]
    images = clean.find_images()
    assert images.num_images == 40
    first = records.open_split(folder, "validation").files[0]
    features = records.read_record(first, 1)
    assert b"validation-00004.png" in features
    data = DataConfig(source="characters")
    assert sources.open_split(data, folder, "train").num_records == 40
    assert sources.find_class_names(data, folder, 32) == list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789")
    with pytest.raises(SuiteError, match="the network has 10 classes, not 32"):
        registry.open_suites(["characters"], dataclasses.replace(settings, num_classes=10))


@pytest.mark.parametrize("split", SPLITS)
def test_a_character_is_lighter_than_its_background(split):
    weights = np.array([0.299, 0.587, 0.114])
    luma = np.stack([characters.render(split, index)[0] @ weights for index in range(96)])
    frame = np.concatenate([luma[:, :4], luma[:, -4:]], 1)
    assert np.all(luma[:, 12:36, 12:36].mean((1, 2)) > frame.mean((1, 2)))
