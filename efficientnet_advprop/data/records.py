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
from typing import Callable, List, Mapping, Optional, Sequence, Tuple, TypeVar

import tensorflow as tf
from absl import logging

from efficientnet_advprop.config.tables import background_offset
from efficientnet_advprop.data import image_formats
from efficientnet_advprop.data.digests import digest_rows, file_state
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import DataError, brief_message, list_names

_SHARD_NAME = re.compile(r"^(?P<prefix>[A-Za-z0-9_]+)-\d{5}-of-\d{5}$")
# A TFRecord: uint64 length, uint32 checksum of the length, the payload, uint32 checksum
# of the payload.
HEADER_BYTES, _FOOTER_BYTES = 12, 4
_READ_ATTEMPTS = 5
_READERS = 32
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split: opened once, then handed from place to place.

    Args:
        files: their paths; none of the synthetic images.
        counts: records of each file.
        image_feature, label_feature: under which names a record keeps them.
        label_offset: what the file's label is more than ours, which counts from 0.
        file_digests: of each file's contents; (): not known yet.
    """

    files: Sequence[str]
    counts: Sequence[int]
    image_feature: str = "image/encoded"
    label_feature: str = "image/class/label"
    label_offset: int = 1
    file_digests: Sequence[str] = ()

    @property
    def num_records(self) -> int:
        return sum(self.counts)

    @property
    def is_official(self) -> bool:
        """Whether the records are as `make_example` makes them."""
        return self.label_feature == Split.label_feature

    def for_network(self, num_classes: Optional[int]) -> "Split":
        """Returns the split whose labels are the network's classes: one more than the data
        set's where class 0 is the background.
        """
        offset = 0 if num_classes is None else background_offset(num_classes)
        return dataclasses.replace(self, label_offset=self.label_offset - offset)

    def select(self, indices: Sequence[int]) -> "Split":
        """Returns the split of some of the files."""
        chosen = {
            name: [values[i] for i in indices] if values else values
            for name, values in (
                ("files", self.files),
                ("counts", self.counts),
                ("file_digests", self.file_digests),
            )
        }
        return dataclasses.replace(self, **chosen)

    def digest(self) -> str:
        """Returns what tells these records from all others, wherever they lie: labels and
        images, by the checksum of each record; "" of synthetic images.
        """
        if not self.files:
            return ""
        file_digests = self.file_digests
        if not file_digests:
            with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
                file_digests = [digest for _, digest in pool.map(scan_file, self.files)]
        names = map(os.path.basename, self.files)
        return digest_rows(zip(names, self.counts, file_digests))


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
    """Returns the paths of `<prefix>-00000-of-<n>` …, in order: all of one set, or none."""
    if not data_dir or not retry_reads(lambda: tf.io.gfile.isdir(data_dir), f"Finding {data_dir}"):
        raise DataError(
            f"`data_dir` is {data_dir!r}, but there is no such folder; give the one that holds the"
            " TFRecords."
        )
    names = retry_reads(lambda: _list_shards(data_dir, prefix), f"Listing {data_dir}")
    if not names:
        raise DataError(
            f"`data_dir` is {data_dir!r}, which holds no file {shard_name(prefix, 0, 1024)!r} or"
            " the like; `python -m efficientnet_advprop.prepare` makes them."
        )
    total = int(names[0][-5:])
    wanted = [shard_name(prefix, index, total) for index in range(total)]
    if names != wanted:
        lacking, others = ([*set(a) - set(b)] for a, b in ((wanted, names), (names, wanted)))
        raise DataError(
            f"{data_dir} must hold one whole set of {prefix!r} files. Of the {total} of {names[0]}"
            f" it lacks {list_names(sorted(lacking)) or 'none'}; of other sets it has"
            f" {list_names(sorted(others)) or 'none'}. Copy or write the former, remove the latter."
        )
    return [os.path.join(data_dir, name) for name in names]


def _list_shards(data_dir: str, prefix: str) -> List[str]:
    found = map(_SHARD_NAME.match, sorted(files.list_folder(data_dir)))
    return [match.string for match in found if match is not None and match["prefix"] == prefix]


def find_prefixes(data_dir: str) -> List[str]:
    """Returns the prefixes of all files of records in a folder, such as "train", sorted."""
    if not tf.io.gfile.isdir(data_dir):
        raise DataError(f"{data_dir!r} is no folder.")
    found = map(_SHARD_NAME.match, files.list_folder(data_dir))
    return sorted({match["prefix"] for match in found if match is not None})


def has_shards(data_dir: str, prefix: str) -> bool:
    """Whether a folder holds `<prefix>-?????-of-?????` files, whole or not."""
    return tf.io.gfile.isdir(data_dir) and bool(_list_shards(data_dir, prefix))


def scan_file(path: str) -> Tuple[List[int], Optional[str]]:
    """Goes through a file from length to length, without reading the records.

    Returns:
        Where each whole record begins, and a digest of their lengths and checksums; None:
        the file does not end with the last of them.
    """
    offsets, position, digest = [], 0, hashlib.sha256()
    # A local file goes through Python's own, which seeks several times faster than a
    # GFile.
    is_remote = files.is_remote(path)
    size, _ = file_state(path)
    with tf.io.gfile.GFile(path, "rb") if is_remote else open(path, "rb", buffering=0) as file:
        header = file.read(HEADER_BYTES)
        while position < size:
            end = size + 1
            if len(header) == HEADER_BYTES:
                (length,) = struct.unpack("<Q", header[:8])
                end = position + HEADER_BYTES + length + _FOOTER_BYTES
            if end > size:
                return offsets, None
            offsets.append(position)
            file.seek(end - _FOOTER_BYTES)
            # This record's checksum, then the next one's header.
            between = file.read(_FOOTER_BYTES + HEADER_BYTES)
            digest.update(header[:8] + between[:_FOOTER_BYTES])
            position, header = end, between[_FOOTER_BYTES:]
    return offsets, digest.hexdigest()


@functools.lru_cache(maxsize=2 * _READERS)
def _offsets_in_state(path: str, state: tuple) -> List[int]:
    del state  # a file that has changed is read anew
    return scan_file(path)[0]


def _beside(data_dir: str, kind: str, prefix: str) -> str:
    # Not `<prefix>-…`: the official code reads whatever matches `train-*`.
    return os.path.join(data_dir, f"record_{kind}_{prefix}.json")


def _read_table(path: str) -> dict:
    """Returns the JSON object in a file of ours; {} where there is none, or it is damaged."""
    if not retry_reads(lambda: tf.io.gfile.exists(path), f"Looking for {path}"):
        return {}
    try:
        with tf.io.gfile.GFile(path) as file:
            table = json.load(file)
    except (ValueError, tf.errors.OpError) as error:
        logging.warning("%s cannot be read (%s).", path, error)
        return {}
    return table if isinstance(table, dict) else {}


def _write_table(path: str, table: dict) -> None:
    files.write_atomically(path, json.dumps(table, indent=1).encode())


def save_counts(data_dir: str, prefix: str, counts: Sequence[int]) -> None:
    """Remembers how many records new shards hold, so that nobody need count them."""
    names = [shard_name(prefix, shard, len(counts)) for shard in range(len(counts))]
    sizes = [file_state(os.path.join(data_dir, name))[0] for name in names]
    table = {
        name: {"bytes": size, "records": count} for name, size, count in zip(names, sizes, counts)
    }
    _write_table(_beside(data_dir, "counts", prefix), table)


def claim_shards(data_dir: str, prefix: str, sources: Mapping[str, str], what: str) -> set[str]:
    """Makes a folder's `prefix` files those of some sources, before they are written.

    Args:
        data_dir: local or remote; is made.
        prefix: "train", "validation", …
        sources: the name of each file → a digest of all that decides its contents.
        what: these contents, for the message.

    Returns:
        The names of the files that are there already; files of another set, of other
        sources, or of nobody knows which, are refused.
    """
    tf.io.gfile.makedirs(data_dir)
    path = _beside(data_dir, "sources", prefix)
    claimed, there = _read_table(path), _list_shards(data_dir, prefix)
    others = [name for name in there if name not in sources or claimed.get(name) != sources[name]]
    if others:
        raise DataError(
            f"{data_dir!r} already holds {len(others)} {prefix!r} files, such as {others[0]}, that"
            f" were not made of {what} as they are now (number of files, names, labels, sizes,"
            " times of change). Nothing is overwritten: take another folder, or remove them."
        )
    if claimed != sources:
        _write_table(path, dict(sources))
    return set(there)


def _examine(path: str, known: object) -> dict:
    """Returns a shard's entry in `record_counts_<prefix>.json`, the `known` one if the file
    is as it was then; without "digest": the file ends within a record.
    """
    size, changed = retry_reads(lambda: file_state(path), f"Looking at {path}")
    if not files.is_remote(path):
        # Copying may keep a file's other time; and to count anew costs little here.
        changed += f", {os.stat(path).st_ctime_ns}"
    if isinstance(known, dict) and known.get("bytes") == size and "records" in known:
        if known.get("changed") == changed and "digest" in known:
            return known
        if files.is_remote(path):
            # A scan takes a request for each record. Who replaces a remote file changes
            # its time.
            return {**known, "changed": changed, "digest": f"{size} bytes of {changed}"}
    offsets, digest = retry_reads(lambda: scan_file(path), f"Counting {path}")
    entry = {"bytes": size, "records": len(offsets), "changed": changed}
    return entry if digest is None else {**entry, "digest": digest}


def open_split(data_dir: str, prefix: str) -> Split:
    """Finds, checks and counts the shards of a split.

    Counting costs a seek per record the first time; the counts then stay in
    `record_counts_<prefix>.json` where that can be written.

    Args:
        data_dir: the folder, local or remote.
        prefix: "train", "validation" or another first part of the file names.
    """
    paths = find_shards(data_dir, prefix)
    names = [os.path.basename(path) for path in paths]
    counts_path = _beside(data_dir, "counts", prefix)
    known = _read_table(counts_path)
    if len(known) != len(paths) and len(paths) > _READERS:  # fewer are counted at once
        logging.info("Counting the records of %d files in %s.", len(paths), data_dir)
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        entries = list(pool.map(_examine, paths, map(known.get, names)))
    for path, entry in zip(paths, entries):
        if "digest" not in entry:
            raise DataError(
                "the file ends in the middle of this record; copy or write the file again.",
                path,
                entry["records"],
            )
    counts = [entry["records"] for entry in entries]
    if not sum(counts):
        raise DataError(f"the {prefix!r} files of {data_dir} hold no record at all.")
    table = dict(zip(names, entries))
    if table != known:
        try:
            _write_table(counts_path, table)
        except (tf.errors.OpError, OSError) as error:
            logging.info("The record counts are not kept in %s: %s", data_dir, error)
    return Split(paths, counts, file_digests=[entry["digest"] for entry in entries])


class ShardWriter:
    """A context manager that writes one TFRecord file, which appears under its name
    when it is complete, and only then.
    """

    def __init__(self, path: str):
        self.path = path
        self._temporary = files.temporary_path(path)

    def __enter__(self) -> "ShardWriter":
        self._writer = tf.io.TFRecordWriter(self._temporary)
        return self

    def write(self, record: bytes) -> None:
        self._writer.write(record)

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
    """Serializes a record with the official features; `label` counts from 0, the stored
    one from 1.
    """
    if label < 0:
        raise DataError(f"the label of {filename!r} is {label}, but must be at least 0.")

    values = {
        "image/height": height,
        "image/width": width,
        "image/colorspace": b"RGB",
        "image/channels": 3,
        "image/class/label": label + 1,
        "image/class/synset": synset.encode(),
        "image/format": image_format.encode(),
        "image/filename": os.path.basename(filename).encode(),
        "image/encoded": encoded,
    }
    example = tf.train.Example()
    for name, value in values.items():
        feature = example.features.feature[name]
        (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
    return example.SerializeToString(deterministic=True)


def parse(
    record: tf.Tensor, split: Split, num_classes: Optional[int] = None
) -> "tuple[tf.Tensor, tf.Tensor]":
    """Parses a record in a graph: its image (scalar string, encoded) and label (scalar
    int32, from 0). A lacking feature is an error, and a label from `num_classes` on, which
    None takes.
    """
    features = tf.io.parse_single_example(
        record,
        {
            split.image_feature: tf.io.FixedLenFeature([], tf.string),
            split.label_feature: tf.io.FixedLenFeature([], tf.int64),
        },
    )
    label = tf.cast(features[split.label_feature], tf.int32) - split.label_offset
    upper = tf.int32.max if num_classes is None else num_classes
    with tf.control_dependencies(
        [tf.debugging.Assert((label >= 0) & (label < upper), ["label", label])]
    ):
        return features[split.image_feature], tf.identity(label)


def read_record(path: str, index: int) -> bytes:
    """Reads one record by its index in the file, however broken its neighbours are."""

    def read_frame() -> bytes:
        offsets = _offsets_in_state(path, file_state(path))
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
    """Returns why a record cannot be used, in words; None if it can."""
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
    try:
        image_formats.decode(encoded)
    except tf.errors.OpError as error:
        return f"its image cannot be decoded ({brief_message(error)})"
    return None


def find_problem(
    split: Split, file: int, record: int, num_classes: Optional[int]
) -> Optional[DataError]:
    """Returns why a record, by the index of its file and its own, cannot be used; None if
    it can.
    """
    path = split.files[file]
    try:
        reason = explain_bad_record(read_record(path, record), split, num_classes)
    except DataError as error:
        return error
    except (tf.errors.OpError, OSError) as error:
        reason = f"it cannot be read ({error})"
    return None if reason is None else DataError(reason, path, record)


def check_folder(data_dir: str, prefix: str, num_classes: Optional[int]) -> List[DataError]:
    """Returns what is wrong with each bad record of a split, by file and record.

    Labels from `num_classes` on are bad; None takes any.
    """
    split = Split(find_shards(data_dir, prefix), ())

    def check_file(file: int) -> List[DataError]:
        path = split.files[file]
        offsets, digest = scan_file(path)
        found = [find_problem(split, file, i, num_classes) for i in range(len(offsets))]
        if digest is None:
            found.append(DataError("the file ends in the middle of it.", path, len(found)))
        return [error for error in found if error is not None]

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return [
            error for errors in pool.map(check_file, range(len(split.files))) for error in errors
        ]


def explain_data_error(error: BaseException) -> Optional[DataError]:
    """Returns the `DataError` behind an exception that came out of iterating a dataset;
    None if there is none in it.
    """
    if isinstance(error, DataError):
        return error
    # As `tf.debugging.Assert` prints a string: ["DataError: …"].
    found = re.search(r"DataError: (.*?)\"?\]?$", str(error), re.MULTILINE)
    return DataError(found[1].replace("\\'", "'")) if found else None
