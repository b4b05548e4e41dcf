"""Random trees of folders: `prepare` and `folder:` agree with each other and with the
tree, or one message says why not.

What a tree means is worked out here from how it was made, without the code under test:
the classes are the visible folders, in the order of their names, or of their numbers;
each holds its visible image files.
"""

import os
import pathlib
import tempfile
import unicodedata
from typing import Iterator, Optional

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from PIL import Image

from efficientnet_advprop.data import records
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.images import image_sources, record_conversion
from efficientnet_advprop.images.class_numbers import match_classes
from efficientnet_advprop.images.image_folders import label_folder
from efficientnet_advprop.images.labeled_images import FileImages, find_unreadable

SIZE = 4
# name of a kind → (suffix, how Pillow saves it, whether it is taken)
KINDS = {
    "png": (".png", dict(format="PNG"), True),
    "capitals": (".JPG", dict(format="JPEG"), True),
    "jfif": (".jfif", dict(format="JPEG"), True),
    "webp": (".webp", dict(format="WEBP", lossless=True), True),
    "palette": (".bmp", dict(format="BMP"), True),
    "wrong name": (".jpeg", dict(format="PNG"), True),
    "tiff": (".tif", dict(format="TIFF"), False),
    "text": (".txt", None, False),
    "no suffix": ("", None, False),
    "broken": (".png", None, True),  # taken for an image, which it is not
}
FOLDER_NAMES = st.one_of(
    st.sampled_from(
        ["cat", "dog", "Zebra", "a b", "[x]", "*", "Käfer", "Ka\u0308fer", "...", "x.png"]
    ),
    st.sampled_from([".hidden", ".ipynb_checkpoints", "n01440764", "n02099601"]),
    st.integers(0, 12).map(str),
    st.integers(0, 12).map(lambda number: f"{number:02d}"),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=4
    ).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200),
)
RARELY = st.sampled_from([False] * 7 + [True])
TAKEN = [name for name, (_, options, is_taken) in KINDS.items() if is_taken and options]
# Kind, hidden, one folder deeper.
FILES = st.lists(
    st.tuples(st.sampled_from([*TAKEN * 3, *KINDS]), RARELY, RARELY), min_size=1, max_size=3
)
NUMBERED = st.integers(1, 11).flatmap(
    lambda count: st.integers(0, 1).map(lambda first: [str(first + i) for i in range(count)])
)
TREES = st.one_of(
    st.dictionaries(FOLDER_NAMES, FILES, max_size=4),
    st.dictionaries(FOLDER_NAMES, st.one_of(FILES, st.just([])), max_size=4),
    NUMBERED.map(lambda names: {name: [("png", False, False)] for name in names}),
)


def write_tree(root: pathlib.Path, tree: dict, colours: Iterator[int]) -> dict[str, list[str]]:
    """Writes a tree; the paths of the images that count, by class folder, broken ones included."""
    expected = {}
    for folder, contents in tree.items():
        (root / folder).mkdir(parents=True)
        taken = []
        for index, (kind, is_hidden, is_deeper) in enumerate(contents):
            suffix, options, is_taken = KINDS[kind]
            place = root / folder / "deeper" if is_deeper else root / folder
            place.mkdir(exist_ok=True)
            path = place / f"{'.' if is_hidden else ''}{index}{suffix}"
            if options is None:
                path.write_bytes(b"no image")
            else:
                image = Image.new("RGB", (SIZE, SIZE), (next(colours), 100, 100))
                if kind == "palette":
                    image = image.quantize(4)
                image.save(path, **options)
            if is_taken and not is_hidden and not is_deeper:
                taken.append(str(path))
        if not folder.startswith("."):
            expected[folder] = sorted(taken)
    return expected


def order_of(expected: dict) -> Optional[list[str]]:
    """The class names by label; None where two folders would be one class."""
    names = [unicodedata.normalize("NFC", folder) for folder in expected]
    is_number = bool(names) and all(name.isascii() and name.isdigit() for name in names)
    keys = [int(name) if is_number else name for name in names]
    if len(set(keys)) < len(keys):
        return None
    return [name for _, name in sorted(zip(keys, names))]


def colour_of(encoded: bytes) -> int:
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    return int(np.round(pixels[..., 0].mean()))


SETTINGS = dict(deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))


@hypothesis.settings(max_examples=60, derandomize=True, **SETTINGS)
@hypothesis.given(tree=TREES)
def test_prepare_and_evaluation_agree_with_the_tree(tree):
    check(tree)


@pytest.mark.slow
@hypothesis.settings(max_examples=1000, print_blob=True, **SETTINGS)
@hypothesis.given(tree=TREES)
def test_they_agree_on_many_other_trees(tree):
    check(tree)


def check(tree: dict) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz [1] ü ") as folder:
        root = pathlib.Path(folder) / "tree"
        root.mkdir()
        expected = write_tree(root, tree, iter(range(10, 250, 6)))
        classes = order_of(expected)
        lines: list[str] = []
        is_usable = classes and all(expected.values())
        try:
            sources = image_sources.list_image_folder(str(root), log=lines.append)
        except DataError as error:
            assert not is_usable, f"refused, but {expected} is usable: {error}"
            assert len(str(error).splitlines()) <= 10
            if classes and any(expected.values()) and not all(expected.values()):
                assert "without an image" in str(error), error
            check_the_other_is_refused(root, max(1, len(expected)))
            hypothesis.event("refused")
            return
        assert is_usable
        assert image_sources.list_class_names(sources) == classes
        wanted = {
            path: classes.index(unicodedata.normalize("NFC", name))
            for name, paths in expected.items()
            for path in paths
        }
        assert {source.path: source.label for source in sources} == wanted
        # What is passed over is counted: every file that is there and not taken.
        num_files = sum(len(files) for _, _, files in os.walk(root))
        hidden_folders = [name for name in tree if name.startswith(".")]
        in_hidden = sum(len(tree[name]) for name in hidden_folders)
        told = sum(int(line.split("passed over: ")[1].split()[0]) for line in lines)
        assert told == num_files - in_hidden + len(hidden_folders) - len(wanted)

        # With its names known, an evaluation labels every file alike; and by its own
        # rule too, but for numbers that do not begin at 0, which it refuses.
        named = label_folder(str(root), len(classes), class_names=classes)
        assert dict(zip(named.paths, named.labels)) == wanted
        try:
            labels = match_classes(list(expected), "here", len(classes))
        except DataError as error:
            assert "named by numbers" in str(error)
            assert [int(name) for name in classes] != list(range(len(classes)))
        else:
            assert labels == {
                name: classes.index(unicodedata.normalize("NFC", name)) for name in expected
            }
        check_records(sources, wanted, named, folder)


def check_the_other_is_refused(root: pathlib.Path, num_classes: int) -> None:
    try:
        label_folder(str(root), num_classes)
    except DataError as error:
        assert len(str(error).splitlines()) <= 10
        return
    raise AssertionError("refused by `prepare`, but not by `folder:`")


def check_records(sources, wanted: dict, images: FileImages, folder: str) -> None:
    """The records hold the same colours under the same labels, or the broken files are named."""
    _, failures = record_conversion.convert(
        sources, os.path.join(folder, "out"), "train", num_shards=1
    )
    broken = [path for path in wanted if pathlib.Path(path).read_bytes() == b"no image"]
    assert len(failures) == len(broken)
    assert all(any(failure.startswith(path) for failure in failures) for path in broken)
    assert (find_unreadable(images) is not None) == bool(broken)
    hypothesis.event("with broken files" if broken else "converted")
    if broken:
        return
    split = records.open_split(os.path.join(folder, "out"), "train")
    found = []
    for row in tf.data.TFRecordDataset(list(split.files)).as_numpy_iterator():
        encoded, label = records.parse(row, split)
        found.append((int(label), colour_of(encoded.numpy())))
    seen = [(label, colour_of(images.encoded(i))) for i, label in enumerate(images.labels)]
    for (label, colour), (own_label, own_colour) in zip(sorted(found), sorted(seen), strict=True):
        assert label == own_label and abs(colour - own_colour) <= 2  # JPEG's rounding
