"""Sharded TFRecords in the official ImageNet layout: finding, checking, counting,
writing and reading single records.

    # files train-00000-of-01024 …, checked for gaps
    split = records.open_split("/data/imagenet", "train")
    # counted once, remembered beside the shards
    split.num_records
    with records.ShardWriter("/data/mine/train-00000-of-00008") as shard:
        # label 0…num_classes-1; the file holds label + 1
        shard.write(records.make_example(jpeg_bytes, label=3))

Features of a record, as the official converter writes them: `image/encoded` (bytes) and
`image/class/label` (int64, one-based); the others are for people. Every complaint about
data is a `DataError`, which names the file, the record's index in it and the reason.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import re
import struct
import tempfile
import time
from typing import Callable, List, NamedTuple, Optional, Sequence, TypeVar

import tensorflow as tf
from absl import logging

from efficientnet_advprop.data import image_formats
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import UserError
from tpu_utils.errors import brief_message

_SHARD_NAME = re.compile(r"^(?P<prefix>[A-Za-z0-9_]+)-(?P<index>\d{5})-of-(?P<total>\d{5})$")
# A TFRecord: uint64 length, uint32 checksum of the length, the payload, uint32 checksum
# of the payload.
HEADER_BYTES, _FOOTER_BYTES = 12, 4
_READ_ATTEMPTS = 5
_T = TypeVar("_T")


class DataError(UserError, ValueError):
    """Data that cannot be used.

    The message is one line: file, index of the record in it (from 0), reason, way out.
    """

    def __init__(self, reason: str, path: Optional[str] = None, record: Optional[int] = None):
        where = (
            "" if path is None else f"{path}: " if record is None else f"{path}, record {record}: "
        )
        super().__init__(" ".join((where + reason).split()))
        self.path, self.record, self.reason = path, record, reason


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split, how many records each holds, and under which names a
    record keeps its image and label.
    """

    files: Sequence[str]
    counts: Sequence[int]
    image_feature: str = "image/encoded"
    label_feature: str = "image/class/label"
    label_offset: int = 1  # what the file's label is more than ours, which counts from 0
    broken_tails: Sequence[
        int
    ] = ()  # indices of files whose last record is cut off; it is counted, so that it is noticed
    sizes: Sequence[int] = ()  # of the files in bytes, where they are known

    @property
    def num_records(self) -> int:
        return sum(self.counts)

    def digest(self) -> str:
        """SHA-256 of what is cheap to know and tells other files from these: names,
        numbers of records, sizes.
        """
        names = [os.path.basename(path) for path in self.files]
        facts = json.dumps([names, list(self.counts), list(self.sizes)])
        return hashlib.sha256(facts.encode()).hexdigest()


class FileCount(NamedTuple):
    """`num_records` whole records; `is_whole` is False where something that is no
    record follows them.
    """

    num_records: int
    is_whole: bool


def shard_name(prefix: str, index: int, num_shards: int) -> str:
    return f"{prefix}-{index:05d}-of-{num_shards:05d}"


def retry_reads(function: Callable[[], _T], what: str) -> _T:
    """Calls `function`, again after 1, 2, 4 and 8 seconds while a file system says that
    it is unavailable.
    """
    for attempt in range(_READ_ATTEMPTS):
        try:
            return function()
        except (
            tf.errors.UnavailableError,
            tf.errors.DeadlineExceededError,
            tf.errors.AbortedError,
            tf.errors.InternalError,
            tf.errors.UnknownError,
            tf.errors.ResourceExhaustedError,
        ) as error:
            if attempt + 1 == _READ_ATTEMPTS:
                raise
            logging.warning(
                "%s failed (%s); next try in %d s.", what, brief_message(error), 2**attempt
            )
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def find_shards(data_dir: str, prefix: str) -> List[str]:
    """The paths of `<prefix>-00000-of-<n>` …, in order.

    Raises:
        DataError: the folder is missing, holds no such file, lacks a shard of the
            numbered set, or holds two sets of `prefix`.
    """
    if not data_dir:
        raise DataError("`data_dir` is empty; give the folder that holds the TFRecords.")
    if not retry_reads(lambda: tf.io.gfile.isdir(data_dir), f"Looking at {data_dir}"):
        raise DataError(f"`data_dir` is {data_dir!r}, but there is no such folder.")
    names = retry_reads(lambda: files.list_folder(data_dir), f"Listing {data_dir}")
    matches = [
        match
        for match in map(_SHARD_NAME.match, sorted(names))
        if match and match["prefix"] == prefix
    ]
    if not matches:
        raise DataError(
            f"`data_dir` is {data_dir!r}, which holds no file {shard_name(prefix, 0, 1024)!r} or"
            " the like; `python -m efficientnet_advprop.prepare` makes them."
        )
    totals = sorted({int(match["total"]) for match in matches})
    if len(totals) > 1:
        raise DataError(
            f"{data_dir} mixes several sets of {prefix!r} files: of"
            f" {' and of '.join(map(str, totals))}; keep one of them."
        )
    present = {int(match["index"]) for match in matches}
    missing = [index for index in range(totals[0]) if index not in present]
    if missing:
        shown = ", ".join(shard_name(prefix, index, totals[0]) for index in missing[:3])
        raise DataError(
            f"{data_dir} lacks {len(missing)} of {totals[0]} {prefix!r} files"
            f" ({shown}{' …' if len(missing) > 3 else ''}); copy or write them again."
        )
    if len(present) > totals[0]:
        raise DataError(
            f"{data_dir} holds {prefix!r} files numbered beyond their own total of {totals[0]};"
            " remove them."
        )
    return [
        os.path.join(data_dir, match["prefix"] + match.string[match.end("prefix") :])
        for match in matches
    ]


def has_shards(data_dir: str, prefix: str) -> bool:
    """Whether a folder is there and holds `<prefix>-?????-of-?????` files, whole or
    not.
    """
    if not tf.io.gfile.isdir(data_dir):
        return False
    found = map(_SHARD_NAME.match, files.list_folder(data_dir))
    return any(match is not None and match["prefix"] == prefix for match in found)


@functools.lru_cache(maxsize=16)
def _record_offsets_at_size(path: str, size: int) -> List[int]:
    del size  # a file that has changed is read anew
    return record_offsets(path)[0]


def record_offsets(path: str) -> "tuple[List[int], bool]":
    """Where each whole record of a file begins, read from the lengths alone, and
    whether the file ends with the last of them.
    """
    offsets, position = [], 0
    with tf.io.gfile.GFile(path, "rb") as file:
        size = file.size()
        while position < size:
            file.seek(position)
            header = file.read(HEADER_BYTES)
            if len(header) < HEADER_BYTES:
                return offsets, False
            end = position + HEADER_BYTES + struct.unpack("<Q", header[:8])[0] + _FOOTER_BYTES
            if end > size:
                return offsets, False
            offsets.append(position)
            position = end
    return offsets, True


def count_records(path: str) -> FileCount:
    """Counts a file's records without reading them: from length to length."""
    # A local file goes through Python's own, which seeks several times faster than a
    # GFile.
    if "://" in path:
        offsets, is_whole = record_offsets(path)
        return FileCount(len(offsets), is_whole)
    num_records, position, size = 0, 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while position < size:
            file.seek(position)
            header = file.read(HEADER_BYTES)
            end = (
                size + 1
                if len(header) < HEADER_BYTES
                else (
                    position + HEADER_BYTES + int.from_bytes(header[:8], "little") + _FOOTER_BYTES
                )
            )
            if end > size:
                return FileCount(num_records, False)
            num_records, position = num_records + 1, end
    return FileCount(num_records, True)


def _counts_path(data_dir: str, prefix: str) -> str:
    # Not `<prefix>-…`: the official code reads whatever matches `train-*`.
    return os.path.join(data_dir, f"record_counts_{prefix}.json")


def save_counts(data_dir: str, prefix: str, sizes: Sequence[int], counts: Sequence[int]) -> None:
    """Remembers the record counts beside the shards, with each file's size in bytes to
    notice a changed one.
    """
    table = {
        shard_name(prefix, i, len(counts)): {"bytes": int(sizes[i]), "records": int(counts[i])}
        for i in range(len(counts))
    }
    files.write_atomically(_counts_path(data_dir, prefix), json.dumps(table, indent=1).encode())


def open_split(data_dir: str, prefix: str, *, tolerate_broken_tails: bool = False) -> Split:
    """Finds, checks and counts the shards of a split.

    Counting costs a seek per record the first time; the counts then stay in
    `record_counts_<prefix>.json` where that can be written.

    Args:
        data_dir: the folder, local or remote.
        prefix: "train", "validation" or another first part of the file names.
        tolerate_broken_tails: count a record that is cut off at the end of a file
            rather than complain about it: its reader will.

    Raises:
        DataError: see `find_shards`; also a file that ends in the middle of a record,
            and a split without records.
    """
    files = find_shards(data_dir, prefix)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        sizes = list(
            pool.map(
                lambda path: retry_reads(
                    lambda: tf.io.gfile.stat(path).length, f"Looking at {path}"
                ),
                files,
            )
        )
        known = {}
        counts_path = _counts_path(data_dir, prefix)
        if retry_reads(lambda: tf.io.gfile.exists(counts_path), f"Looking for {counts_path}"):
            try:
                with tf.io.gfile.GFile(counts_path) as file:
                    known = json.load(file)
            except (ValueError, tf.errors.OpError) as error:
                logging.warning("%s cannot be read (%s); counting again.", counts_path, error)

        def count(path: str, size: int) -> FileCount:
            entry = known.get(os.path.basename(path)) if isinstance(known, dict) else None
            if (
                isinstance(entry, dict)
                and entry.get("bytes") == size
                and isinstance(entry.get("records"), int)
            ):
                return FileCount(entry["records"], True)
            return retry_reads(lambda: count_records(path), f"Counting {path}")

        if len(known) != len(files):
            logging.info("Counting the records of %d files in %s.", len(files), data_dir)
        results = list(pool.map(count, files, sizes))
    broken = [index for index, result in enumerate(results) if not result.is_whole]
    if broken and not tolerate_broken_tails:
        raise DataError(
            "the file ends in the middle of this record; copy or write the file again "
            "(or allow for it with `config.data.max_bad_records`).",
            files[broken[0]],
            results[broken[0]].num_records,
        )
    counts = [result.num_records + (not result.is_whole) for result in results]
    if not sum(counts):
        raise DataError(f"the {prefix!r} files of {data_dir} hold no record at all.")
    if not broken and len(known) != len(files):
        try:
            save_counts(data_dir, prefix, sizes, counts)
        except (tf.errors.OpError, OSError) as error:
            logging.info("The record counts are not kept in %s: %s", data_dir, error)
    return Split(files, counts, broken_tails=broken, sizes=sizes)


class ShardWriter:
    """A context manager that writes one TFRecord file, which appears under its name
    when it is complete, and only then.

    Attributes:
        num_records: how many have been written so far.
    """

    def __init__(self, path: str):
        self.path, self.num_records = path, 0
        self._temporary = files.temporary_path(path)

    def __enter__(self) -> "ShardWriter":
        self._writer = tf.io.TFRecordWriter(self._temporary)
        return self

    def write(self, record: bytes) -> None:
        self._writer.write(record)
        self.num_records += 1

    def __exit__(self, error_type, error, traceback) -> None:
        try:
            self._writer.close()
            if error_type is None:
                tf.io.gfile.rename(self._temporary, self.path, overwrite=True)
        finally:
            if tf.io.gfile.exists(self._temporary):
                tf.io.gfile.remove(self._temporary)


def make_example(
    encoded: bytes,
    label: int,
    *,
    height: int = 0,
    width: int = 0,
    image_format: str = "JPEG",
    synset: str = "",
    filename: str = "",
) -> bytes:
    """A serialized record with the official features; `label` counts from 0, the stored
    one from 1.
    """

    def of_bytes(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_int(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    return tf.train.Example(
        features=tf.train.Features(
            feature={
                "image/height": of_int(height),
                "image/width": of_int(width),
                "image/colorspace": of_bytes(b"RGB"),
                "image/channels": of_int(3),
                "image/class/label": of_int(label + 1),
                "image/class/synset": of_bytes(synset.encode()),
                "image/format": of_bytes(image_format.encode()),
                "image/filename": of_bytes(os.path.basename(filename).encode()),
                "image/encoded": of_bytes(encoded),
            }
        )
    ).SerializeToString(deterministic=True)


def parse(record: tf.Tensor, split: Split) -> "tuple[tf.Tensor, tf.Tensor]":
    """A serialized record's image (scalar string, encoded) and label (scalar int32,
    from 0).

    In the graph: a lacking feature is an error.
    """
    features = tf.io.parse_single_example(
        record,
        {
            split.image_feature: tf.io.FixedLenFeature([], tf.string),
            split.label_feature: tf.io.FixedLenFeature([], tf.int64),
        },
    )
    return (
        features[split.image_feature],
        tf.cast(features[split.label_feature], tf.int32) - split.label_offset,
    )


def read_record(path: str, index: int) -> bytes:
    """One record by its index in the file, however broken its neighbours are.

    Raises:
        DataError: the file has no such whole record, or the record's checksum is wrong.
    """

    def read_frame() -> bytes:
        offsets = _record_offsets_at_size(path, tf.io.gfile.stat(path).length)
        if index >= len(offsets):
            raise DataError("the file ends in the middle of this record.", path, index)
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(offsets[index])
            return file.read(
                offsets[index + 1] - offsets[index] if index + 1 < len(offsets) else -1
            )

    frame = retry_reads(read_frame, f"Reading {path}")
    length = struct.unpack("<Q", frame[:8])[0]
    # TensorFlow's own reader checks the checksums: of a file that holds this record
    # alone.
    with tempfile.NamedTemporaryFile(suffix=".tfrecord") as alone:
        alone.write(frame[: HEADER_BYTES + length + _FOOTER_BYTES])
        alone.flush()
        try:
            return next(iter(tf.data.TFRecordDataset(alone.name))).numpy()
        except (tf.errors.DataLossError, StopIteration):
            raise DataError(
                "the record is damaged (its checksum does not fit).", path, index
            ) from None


def explain_bad_record(record: bytes, split: Split, num_classes: Optional[int]) -> Optional[str]:
    """Why a record cannot be used, in words, or None if it can."""
    if not record:
        return "the record is empty"
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's DecodeError, whose home has moved between its releases
        return f"it is no tf.train.Example ({error})"
    for name, kind in ((split.image_feature, "bytes_list"), (split.label_feature, "int64_list")):
        if len(getattr(features[name], kind).value) != 1:
            return f"it has no feature {name!r} with one value of the kind {kind!r}"
    label = features[split.label_feature].int64_list.value[0]
    if label < split.label_offset or (
        num_classes is not None and label >= num_classes + split.label_offset
    ):
        allowed = (
            f"{split.label_offset}…{num_classes - 1 + split.label_offset}"
            if num_classes
            else f"from {split.label_offset} on"
        )
        return (
            f"its label {label} is outside {allowed}, the labels of `config.model.num_classes` ="
            f" {num_classes} classes"
        )
    encoded = features[split.image_feature].bytes_list.value[0]
    if not encoded:
        return "its image is an empty file"
    problem = image_formats.find_problem(encoded)
    if problem is not None:
        return f"its image cannot be decoded ({problem})"
    try:
        image_formats.decode(encoded)
    except tf.errors.OpError as error:
        return f"its image cannot be decoded ({brief_message(error)})"
    return None


def explain_data_error(error: BaseException) -> Optional[DataError]:
    """The `DataError` behind an exception that came out of iterating a dataset, or None
    if there is none in it.
    """
    if isinstance(error, DataError):
        return error
    # As `tf.debugging.Assert` prints a string: ["DataError: …"].
    found = re.search(r"DataError: (.*?)\"?\]?$", str(error), re.MULTILINE)
    return DataError(found[1].replace("\\'", "'")) if found else None
