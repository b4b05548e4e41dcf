"""The folder of photographs: what is found, how it is divided, and what is said."""

import shutil

import numpy as np
import pytest
from PIL import Image

from efficientnet_advprop.fine_tuning import choices, photographs
from efficientnet_advprop.runtime.errors import DataError, UsageError

CLASSES = ("Äpfel rot", "blaue Kreise", "grün")


def draw(path, seed):
    """A photograph of smooth noise, which no other one is near."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "Meine Fotos"
    for label, name in enumerate(CLASSES):
        for number in range(20):
            draw(root / name / f"bild {number}.png", 100 * label + number)
    return root


def names(part):
    return {f"{source.synset}/{source.name}" for source in part}


def test_every_image_stands_in_one_part_and_every_class_in_each(folder):
    found = photographs.look(str(folder))
    assert found.class_names == sorted(CLASSES)
    parts = {part: names(images) for part, images in found.parts.items()}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 60
    for images in found.parts.values():
        assert {source.label for source in images} == set(range(3))


def test_adding_and_renaming_images_moves_no_other_one(folder):
    before = photographs.look(str(folder)).parts
    for number in range(15):
        draw(folder / CLASSES[0] / f"neu {number}.png", 1000 + number)
    (folder / CLASSES[1] / "bild 3.png").rename(folder / CLASSES[1] / "z.png")
    after = photographs.look(str(folder)).parts
    renamed = f"{CLASSES[1]}/bild 3.png"
    for part, images in before.items():
        assert names(images) - {renamed} <= names(after[part])
        if renamed in names(images):
            assert f"{CLASSES[1]}/z.png" in names(after[part])


def test_near_identical_copies_stay_together(folder):
    originals = photographs.look(str(folder)).parts
    for part in originals:
        source = originals[part][0]
        copy = folder / source.synset / f"copy of {part}.jpg"
        with Image.open(source.path) as image:
            image.resize((80, 60)).save(copy, quality=90)
    found = photographs.look(str(folder)).parts
    for part in originals:
        copied = f"{originals[part][0].synset}/{originals[part][0].name}"
        (where,) = [name for name, images in found.items() if copied in names(images)]
        assert any(f"copy of {part}.jpg" in one for one in names(found[where]))


def test_what_is_odd_is_said(folder):
    (folder / CLASSES[0] / "kaputt.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (folder / CLASSES[0] / "notiz.txt").write_text("x")
    shutil.copy(folder / CLASSES[0] / "bild 1.png", folder / CLASSES[1] / "doppelt.png")
    for number in range(6, 20):
        (folder / CLASSES[2] / f"bild {number}.png").unlink()
    notes = "\n".join(photographs.look(str(folder)).notes)
    for word in ("kaputt.jpg", "notiz.txt", "more than one class", f"{CLASSES[2]} ("):
        assert word in notes


def test_folders_that_cannot_be_divided_are_refused(tmp_path, folder):
    with pytest.raises(UsageError, match="`folder` is"):
        photographs.look(str(tmp_path / "none"))
    shutil.copytree(folder / CLASSES[0], tmp_path / "one" / CLASSES[0])
    with pytest.raises(UsageError, match=CLASSES[0]):
        photographs.look(str(tmp_path / "one"))
    for number in range(2, 20):
        (folder / CLASSES[2] / f"bild {number}.png").unlink()
    with pytest.raises(DataError, match=CLASSES[2]):
        photographs.look(str(folder))
    for image in (folder / CLASSES[1]).iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match=CLASSES[1]):
        photographs.look(str(folder))


def test_folders_that_are_divided_stay_so(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "divided" / "train")
    drawn = photographs.look(str(tmp_path / "divided")).parts  # of train/ alone
    assert sum(map(len, drawn.values())) == 60 and all(drawn.values())
    shutil.copytree(folder, tmp_path / "divided" / "validation")
    found = photographs.look(str(tmp_path / "divided"))
    assert {part: len(images) for part, images in found.parts.items()} == dict.fromkeys(
        photographs.PARTS, 60
    )


@pytest.mark.parametrize("num_train", [6, 41, 1000, 1001, 60_000])
@pytest.mark.parametrize("checkpoint", [None, "b0-advprop"])
def test_no_choice_makes_few_updates_or_shows_an_image_twice_in_a_step(num_train, checkpoint):
    for method in ("vanilla", "advprop", "fine_grained"):
        config = choices.choose(method, num_train=num_train, num_classes=3, checkpoint=checkpoint)
        config.validate()
        batch = config.training.global_batch_size
        assert batch <= num_train
        updates = int(config.training.num_epochs * num_train / batch)
        assert updates >= (300 if checkpoint else 600)
        assert config.data.eval_crop == "none" and config.data.crop == "pad"
