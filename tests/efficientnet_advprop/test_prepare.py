"""`prepare` as a program: classes by number and by name, what is passed over, and what
ends it by one message.
"""

import json
import re

import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.config.experiment import DataConfig
from efficientnet_advprop.data import records, sources
from efficientnet_advprop.data.class_names import write_class_names
from efficientnet_advprop.runtime.errors import UsageError
from tests.conftest import run_program


def write_split(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (9 * index, 99, 9)).save(root / name / f"{name}{index}.png")


def prepare(cwd, *options):
    folders = ["--image_folder=images [1]", "--output_dir=records [1]"]
    shards = ["--train_shards=1", "--validation_shards=1"]
    return run_program("prepare", *folders, *shards, *options, cwd=cwd)


def labels_in(folder, prefix):
    """Class name → label in the file, which counts from 1."""
    found = {}
    for path in records.find_shards(str(folder), prefix):
        for row in tf.data.TFRecordDataset(path).as_numpy_iterator():
            features = tf.train.Example.FromString(row).features.feature
            name = features["image/class/synset"].bytes_list.value[0].decode()
            found.setdefault(name, set()).add(features["image/class/label"].int64_list.value[0])
    return found


def test_both_splits_are_numbered_alike(tmp_path):
    """With numbered folders, a hidden one in one split only, and a class that validation lacks."""
    images = tmp_path / "images [1]"
    write_split(images / "train", {"10": 2, "9": 3, "1": 1, ".ipynb_checkpoints": 1})
    write_split(images / "validation", {"9": 1, "10": 1})
    (images / "train" / "9" / "scan.tif").touch()
    (images / "validation" / "beside.jpg").touch()
    done = prepare(tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "records [1]"
    assert labels_in(folder, "train") == {"1": {1}, "9": {2}, "10": {3}}
    assert labels_in(folder, "validation") == {"9": {2}, "10": {3}}
    names = json.loads((folder / "labels_map.txt").read_text())
    assert names == {"0": "1", "1": "9", "2": "10"}
    for line in (
        "'1' becomes label 0, '10' label 2",
        "1 of other kinds than .jpg, .jpeg, .jpe, .jfif, .png, .gif, .bmp, .webp: 9/scan.tif",
        "1 beside the class folders: beside.jpg",
        "no images of 1 of 3 classes: 1",
    ):
        assert line in done.stdout
    data = DataConfig()
    assert sources.find_class_names(data, str(folder), 3) == ["1", "9", "10"]
    with pytest.raises(UsageError, match="Set --config.model.num_classes=3"):
        sources.find_class_names(data, str(folder), 1000)

    # Again, with one class more: nothing may be mixed.
    write_split(images / "train", {"0": 1})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = prepare(tmp_path)
    assert done.returncode == 2 and "class 0, '1' there and '0' here" in done.stderr
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_empty_class_is_one_message(tmp_path):
    """Which, numbered in one split only, would shift all labels after it."""
    write_split(tmp_path / "images [1]" / "train", {"a": 1, "aa": 0, "b": 1})
    write_split(tmp_path / "images [1]" / "validation", {"a": 1, "b": 1})
    done = prepare(tmp_path)
    # TensorFlow 2.21 greets on stderr whatever its log level; the rest is one line of
    # ours.
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(messages) == 1 and "Traceback" not in done.stderr
    assert re.search("/train' has 1 of 3 .* without an image .*: aa. Put images", done.stderr)
    assert not (tmp_path / "records [1]").exists()


@pytest.mark.slow
def test_a_folder_of_classes_is_divided_and_checked(tmp_path):
    write_split(tmp_path / "photos", {"cat": 8, "dog": 12})
    folders = ["--image_folder=photos", "--output_dir=out"]
    done = run_program("prepare", *folders, cwd=tmp_path)
    assert done.returncode == 2 and "`--validation_fraction=0.2`" in done.stderr
    assert not (tmp_path / "out").exists()
    fractions = ["--validation_fraction=0.25", "--test_fraction=0.125"]
    done = run_program("prepare", *folders, *fractions, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    splits = [
        records.open_split(str(tmp_path / "out"), name)
        for name in records.find_prefixes(str(tmp_path / "out"))
    ]
    assert [len(split.files) for split in splits] == [1, 1, 1]
    assert sum(split.num_records for split in splits) == 20
    assert run_program("prepare", "--check=out", cwd=tmp_path).returncode == 0
    path = splits[1].files[0]
    contents = bytearray(open(path, "rb").read())
    for offset in records.scan_file(path)[0][3:5]:
        contents[offset + 40] ^= 1
    open(path, "wb").write(contents)
    done = run_program("prepare", "--check=out", cwd=tmp_path)
    assert done.returncode == 1 and "holds 2 bad records" in done.stderr
    assert all(
        f"{name}, record {i}: " in done.stdout for name in ["train-00000-of-00001"] for i in (3, 4)
    )


def test_names_travel_with_the_source(tmp_path):
    digits = DataConfig(source="digits")
    assert sources.find_class_names(digits, str(tmp_path), 10) == [str(i) for i in range(10)]
    assert sources.find_class_names(DataConfig(), str(tmp_path), 10) is None
    assert sources.find_class_names(DataConfig(), "synthetic", 10) is None


def test_a_background_class_comes_before_those_of_the_data(tmp_path):
    write_class_names(str(tmp_path), [f"c{label}" for label in range(1000)])
    names = sources.find_class_names(DataConfig(), str(tmp_path), 1001)
    assert names[:2] == ["background", "c0"] and len(names) == 1001
