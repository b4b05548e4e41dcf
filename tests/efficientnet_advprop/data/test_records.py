import io
import json
import os

import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_advprop.data import records


def jpeg(level=100):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def unlabelled():
    """The official layout's labels begin with 1."""
    example = tf.train.Example.FromString(records.make_example(jpeg(), 0))
    example.features.feature["image/class/label"].int64_list.value[0] = 0
    return example.SerializeToString()


def write(folder, prefix, counts):
    for shard, count in enumerate(counts):
        with records.ShardWriter(
            str(folder / records.shard_name(prefix, shard, len(counts)))
        ) as writer:
            for i in range(count):
                writer.write(records.make_example(jpeg(), label=i))


def test_counts_are_those_of_tensorflows_reader(tmp_path):
    write(tmp_path, "train", [3, 0, 5])
    split = records.open_split(str(tmp_path), "train")
    assert (
        list(split.counts)
        == [sum(1 for _ in tf.data.TFRecordDataset(path)) for path in split.files]
        == [3, 0, 5]
    )
    assert split.num_records == 8
    saved = json.loads((tmp_path / "record_counts_train.json").read_text())
    assert saved["train-00002-of-00003"]["records"] == 5
    # A file that has changed since is counted anew.
    write(tmp_path, "train", [3, 1, 5])
    assert list(records.open_split(str(tmp_path), "train").counts) == [3, 1, 5]


def test_examples_have_the_official_features():
    example = tf.train.Example.FromString(
        records.make_example(jpeg(), 6, height=8, width=9, synset="n01440764", filename="a/b.JPEG")
    )
    feature = example.features.feature
    assert feature["image/class/label"].int64_list.value[0] == 7  # from 1
    assert feature["image/height"].int64_list.value[0] == 8
    assert feature["image/width"].int64_list.value[0] == 9
    assert feature["image/filename"].bytes_list.value[0] == b"b.JPEG"
    assert sorted(feature) == [
        "image/channels",
        "image/class/label",
        "image/class/synset",
        "image/colorspace",
        "image/encoded",
        "image/filename",
        "image/format",
        "image/height",
        "image/width",
    ]
    encoded, label = records.parse(example.SerializeToString(), records.Split([], []))
    assert encoded.numpy() == jpeg() and label.numpy() == 6


@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda folder: os.remove(folder / "train-00001-of-00003"),
            "lacks train-00001-of-00003; of other sets it has none",
        ),
        (
            lambda folder: (folder / "train-00000-of-00002").write_bytes(b""),
            "lacks train-00001-of-00002; of other sets it has train-00000-of-00003, train",
        ),
        (lambda folder: [os.remove(folder / name) for name in os.listdir(folder)], "holds no file"),
        (
            lambda folder: [(folder / name).write_bytes(b"") for name in os.listdir(folder)],
            "no record at all",
        ),
        (
            lambda folder: (folder / "train-00002-of-00003").write_bytes(
                (folder / "train-00002-of-00003").read_bytes()[:-1]
            ),
            "train-00002-of-00003, record 4: the file ends in the middle",
        ),
    ],
)
def test_broken_sets_are_named(tmp_path, break_it, message):
    write(tmp_path, "train", [3, 1, 5])
    break_it(tmp_path)
    with pytest.raises(records.DataError, match=message):
        records.open_split(str(tmp_path), "train")


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_missing_folder_is_named(folder):
    with pytest.raises(records.DataError, match="`data_dir` is"):
        records.open_split(folder, "train")


def test_shards_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    with pytest.raises(RuntimeError):
        with records.ShardWriter(str(path)) as writer:
            writer.write(b"one")
            raise RuntimeError("killed")
    assert os.listdir(tmp_path) == []


def test_records_are_read_around_damage(tmp_path):
    write(tmp_path, "train", [5])
    path = tmp_path / "train-00000-of-00001"
    offsets, digest = records.scan_file(str(path))
    assert digest and len(offsets) == 5
    contents = bytearray(path.read_bytes())
    contents[offsets[2] + 40] ^= 1
    path.write_bytes(contents)
    with pytest.raises(records.DataError, match="record 2: the record is damaged"):
        records.read_record(str(path), 2)
    for index in (0, 1, 3, 4):
        example = tf.train.Example.FromString(records.read_record(str(path), index))
        assert example.features.feature["image/class/label"].int64_list.value[0] == index + 1


@pytest.mark.parametrize(
    "record, reason",
    [
        (b"", "the record is empty"),
        (b"\xff\xff\xff", "no tf.train.Example"),
        (tf.train.Example().SerializeToString() or b"\n\x00", "no feature 'image/encoded'"),
        (records.make_example(jpeg(), 10), "its label 11 is outside 1…10"),
        (unlabelled(), "its label 0 is outside 1…10"),
        (records.make_example(b"", 3), "an empty file"),
        (records.make_example(jpeg()[:100], 3), "cannot be decoded"),
        (records.make_example(jpeg(), 3), None),
    ],
)
def test_bad_records_are_explained(record, reason):
    found = records.explain_bad_record(record, records.Split([], []), num_classes=10)
    assert found is None if reason is None else reason in found


def test_reads_are_tried_again(monkeypatch):
    waits, answers = (
        [],
        [
            tf.errors.UnavailableError(None, None, "busy"),
            tf.errors.UnavailableError(None, None, "busy"),
            7,
        ],
    )
    monkeypatch.setattr(records.time, "sleep", waits.append)

    def read():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert records.retry_reads(read, "Reading") == 7 and waits == [1, 2]
    answers[:] = [tf.errors.UnavailableError(None, None, "busy")] * 5
    with pytest.raises(tf.errors.UnavailableError):
        records.retry_reads(read, "Reading")
    assert waits == [1, 2, 1, 2, 4, 8]


def test_data_errors_come_back_out_of_a_graph():
    error = records.DataError("it is bad", "/data/train-00000-of-00001", 3)

    def fail(x):
        with tf.control_dependencies(
            [tf.debugging.Assert(x > 0, [tf.constant(f"DataError: {error}")])]
        ):
            return tf.identity(x)

    with pytest.raises(tf.errors.OpError) as out_of_graph:
        next(iter(tf.data.Dataset.range(1).map(fail)))
    assert (
        str(records.explain_data_error(out_of_graph.value))
        == str(error)
        == "/data/train-00000-of-00001, record 3: it is bad"
    )
    assert records.explain_data_error(ValueError("something else")) is None
