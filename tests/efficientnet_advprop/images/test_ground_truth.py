"""The flat folder of ImageNet's validation images, and the files that say their classes."""

import numpy as np
import pytest
import scipy.io
import tensorflow as tf

from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation.suites import imagenet_suites
from efficientnet_advprop.images import ground_truth
from efficientnet_advprop.images.class_numbers import imagenet_ids

LABELS = [65, 970, 0, 999]
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "ILSVRC2012_img_val"
    directory.mkdir()
    picture = tf.io.encode_jpeg(np.zeros([8, 8, 3], np.uint8)).numpy()
    for number in range(1, 5):
        (directory / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(picture)
    return directory


def write_meta(path):
    """A kit whose numbers count the classes from the last one down, and a group of classes."""
    rows = [(number, name) for number, name in enumerate(reversed(imagenet_ids()), 1)]
    rows.append((1001, "n00001740"))
    kind = [("ILSVRC2012_ID", object), ("WNID", object)]
    scipy.io.savemat(path, {"synsets": np.array(rows, dtype=kind)})


@pytest.mark.parametrize("form", ["labels", "ids", "kit"])
def test_every_form_of_the_file_gives_the_same_labels(folder, form):
    if form == "labels":
        lines = LABELS
    elif form == "ids":
        lines = [imagenet_ids()[label] for label in LABELS]
    else:
        lines = [1000 - label for label in LABELS]
        write_meta(folder.parent / "meta.mat")
    (folder.parent / TRUTH).write_text("\n".join(map(str, lines)) + "\n")
    paths, labels = ground_truth.list_flat_validation(str(folder))
    assert labels == LABELS
    assert [path[-13:] for path in paths] == [f"{number:08d}.JPEG" for number in range(1, 5)]
    where, list_images = imagenet_suites.find("imagenet", str(folder.parent))
    images = list_images()
    assert where == str(folder) and images.labels == LABELS
    assert images.image_id(0) == "ILSVRC2012_val_00000001.JPEG"


def test_a_missing_image_moves_no_label(folder):
    (folder / TRUTH).write_text("\n".join(map(str, LABELS)))
    (folder / "ILSVRC2012_val_00000002.JPEG").unlink()
    assert ground_truth.list_flat_validation(str(folder))[1] == [65, 0, 999]


@pytest.mark.parametrize(
    "contents, words",
    [
        (None, "no file says their classes; put one of"),
        ("490\n361\n171\n1000\n", "numbers from 171 to 1000.*meta.mat tells"),
        ("1\n2\n3\n4\n", "numbers from 1 to 4"),  # labels or numbers of the kit? Nobody knows
        ("0\n1\n2\n1000\n", "numbers from 0 to 1000"),
        ("0\n1\n", "holds 'ILSVRC2012_val_00000003.JPEG'"),
        ("cat\n1\n2\n3\n", "must have a line for each image"),
        ("n01440764\nn99999999\nn01440764\nn01440764\n", "holds n99999999"),
        ("", "must have a line for each image"),
        ("0\n1\n2\n3\n".encode("utf-16"), "no text in UTF-8"),
    ],
)
def test_files_of_which_nobody_can_tell_are_refused(folder, contents, words):
    if contents is not None:
        text = contents if isinstance(contents, bytes) else contents.encode()
        (folder / TRUTH).write_bytes(text)
    with pytest.raises(DataError, match=words):
        ground_truth.list_flat_validation(str(folder))


def test_a_table_that_is_not_the_kits(folder):
    (folder / TRUTH).write_text("1000\n1\n2\n3\n")
    (folder / "meta.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no table of the development kit"):
        ground_truth.list_flat_validation(str(folder))
    scipy.io.savemat(
        folder / "meta.mat",
        {"synsets": np.array([(1, "n01440764")], [("ILSVRC2012_ID", object), ("WNID", object)])},
    )
    with pytest.raises(DataError, match="is no table|does not name ImageNet's 1000 classes"):
        ground_truth.list_flat_validation(str(folder))


@pytest.mark.parametrize("name", ["holiday.jpg", "ILSVRC2012_val_00000000.JPEG"])
def test_other_images_in_the_folder_are_named(folder, name):
    (folder / TRUTH).write_text("\n".join(map(str, LABELS)))
    (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"holds '{name}'"):
        ground_truth.list_flat_validation(str(folder))
