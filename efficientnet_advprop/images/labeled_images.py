"""Labelled images wherever they lie, read once each: files by class, members of a tar
archive, TFRecords.

    # or TarImages(...), RecordImages(records.Split)
    images = FileImages(paths, labels, root=directory)
    dataset = make_dataset(images, image_size=224, crop="released", global_batch_size=100)
    for batch in dataset:
        batch["images"], batch["labels"], batch["positions"], batch["mask"]
    # "n01440764/ILSVRC2012_val_00000293.JPEG"
    images.image_id(position)

Each kind knows its images by position, 0 … num_images − 1, and yields them in an order
of its own.
"""

import concurrent.futures
import functools
import os
from typing import Callable, Optional, Protocol, Sequence, Union

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import image_formats, preprocessing, records
from efficientnet_advprop.data.digests import digest_files
from efficientnet_advprop.data.image_formats import as_decodable, as_decodable_in_graph
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.data.record_batches import make_options
from efficientnet_advprop.data.record_streams import InputHost
from efficientnet_advprop.images.tar_archives import TarMember
from efficientnet_advprop.runtime.errors import DataError, brief_message

# Nothing here needs AutoGraph, whose conversion takes most of the time until the first
# batch.
_as_it_is = tf.autograph.experimental.do_not_convert
_PARALLEL_FILES = 8
_FILE_BUFFER_BYTES = 8 << 20
_READERS = 16
_IMAGES_PER_PART = 64


class LabeledImages(Protocol):
    """What every kind can do."""

    num_images: int
    remarks: Sequence[str]  # lines for people, such as what was skipped

    def rows(self, positions: np.ndarray, count: int, index: int) -> tf.data.Dataset:
        """Yields (encoded image: string, label: int32, position: int32) of every count-th
        one, from the index-th on, of the images at `positions`, int32 and ascending.
        """

    def image_id(self, position: int) -> str:
        """Returns what the image is called, unique within the set and the same wherever the
        set lies.
        """

    def digest(self) -> str:
        """Returns what tells this set from every other, see `digests`."""

    def encoded(self, position: int) -> bytes:
        """Reads one image, for a second look, as `image_formats.as_decodable`."""


def drawn_positions(num_drawn: int, num_images: int) -> np.ndarray:
    """Returns `num_drawn` of the positions 0 … num_images − 1, evenly spaced; int32."""
    ends = np.arange(num_images + 1, dtype=np.int64) * num_drawn // num_images
    return np.flatnonzero(ends[:-1] < ends[1:]).astype(np.int32)


class FileImages:
    """Image files, local or remote; `image_id`s are relative to `root`."""

    def __init__(
        self, paths: Sequence[str], labels: Sequence[int], root: str, remarks: Sequence[str] = ()
    ):
        self.paths, self.labels, self._root = list(paths), list(labels), root
        self.remarks = remarks
        self.num_images = len(self.paths)

    def rows(self, positions: np.ndarray, count: int, index: int) -> tf.data.Dataset:
        own = positions[index::count]
        paths, labels = (
            tf.constant([values[i] for i in own], kind)
            for values, kind in ((self.paths, tf.string), (self.labels, tf.int32))
        )

        def read(path, label, position):
            return as_decodable_in_graph(tf.io.read_file(path)), label, position

        rows = tf.data.Dataset.from_tensor_slices((paths, labels, own))
        return rows.map(_as_it_is(read), num_parallel_calls=_READERS, deterministic=True)

    def image_id(self, position: int) -> str:
        return os.path.relpath(self.paths[position], self._root)

    def subset(self, rows: Sequence[int]) -> "FileImages":
        """Returns some of them, in their order."""
        paths, labels = ([values[row] for row in rows] for values in (self.paths, self.labels))
        return FileImages(paths, labels, self._root, self.remarks)

    def digest(self) -> str:
        names = map(self.image_id, range(self.num_images))
        return digest_files(list(zip(self.paths, names, self.labels)))

    def encoded(self, position: int) -> bytes:
        path = self.paths[position]
        try:
            return image_formats.read_file(path)
        except DataError as error:
            raise DataError(f"it cannot be decoded as an image ({error})", path) from error
        except tf.errors.OpError as error:
            raise DataError(f"it cannot be read ({brief_message(error)})", path) from error


class TarImages:
    """Members of an uncompressed tar archive, read where they lie; `root` is what precedes the
    `image_id`s in their names.
    """

    def __init__(
        self,
        path: str,
        members: Sequence[TarMember],
        labels: Sequence[int],
        root: str = "",
        remarks: Sequence[str] = (),
    ):
        self._path, self._members, self.labels, self._root = path, list(members), list(labels), root
        self.remarks = remarks
        self.num_images = len(self._members)

    def rows(self, positions: np.ndarray, count: int, index: int) -> tf.data.Dataset:
        def read(position, label):
            (encoded,) = call_python(
                lambda position: self.encoded(int(position)),
                [position],
                encoded=tf.TensorSpec([], tf.string),
            )
            return encoded, label, position

        own = positions[index::count]
        rows = tf.data.Dataset.from_tensor_slices((own, np.asarray(self.labels, np.int32)[own]))
        return rows.map(_as_it_is(read), num_parallel_calls=_READERS, deterministic=True)

    def image_id(self, position: int) -> str:
        return os.path.relpath(self._members[position].name, self._root or ".")

    def digest(self) -> str:
        rows = [
            (self._path, self.image_id(i), label, member.offset, member.size)
            for i, (member, label) in enumerate(zip(self._members, self.labels))
        ]
        return digest_files(rows)

    def encoded(self, position: int) -> bytes:
        member = self._members[position]
        with tf.io.gfile.GFile(self._path, "rb") as file:
            file.seek(member.offset)
            contents = file.read(member.size)
        try:
            return as_decodable(contents)
        except DataError as error:
            reason = f"it cannot be decoded as an image ({error})"
            raise DataError(reason, f"{self._path}: {member.name}") from error


class RecordImages:
    """TFRecords, see `records.open_split`; labels from `num_classes` on are bad records."""

    def __init__(self, split: records.Split, num_classes: int):
        self._split, self._num_classes = split, num_classes
        self._starts = np.concatenate([[0], np.cumsum(split.counts)]).astype(np.int32)
        self.num_images = split.num_records
        self.remarks = ()

    def rows(self, positions: np.ndarray, count: int, index: int) -> tf.data.Dataset:
        def read(path, start):
            numbers = tf.data.Dataset.counter(start, dtype=tf.int32)
            rows = tf.data.TFRecordDataset(path, buffer_size=_FILE_BUFFER_BYTES)
            return tf.data.Dataset.zip((rows, numbers))

        files = tf.data.Dataset.from_tensor_slices((list(self._split.files), self._starts[:-1]))
        rows = files.interleave(
            _as_it_is(read),
            cycle_length=min(_PARALLEL_FILES, len(self._split.files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if len(positions) < self.num_images:
            is_wanted = tf.constant(np.isin(np.arange(self.num_images), positions))
            rows = rows.filter(_as_it_is(lambda row, position: tf.gather(is_wanted, position)))
        return rows.shard(count, index).map(_as_it_is(self._parse))

    def _parse(self, row, position):
        encoded, label = records.parse(row, self._split)
        with tf.control_dependencies(
            [tf.debugging.Assert((label >= 0) & (label < self._num_classes), ["label", label])]
        ):
            return encoded, tf.identity(label), position

    def _address(self, position: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, position, side="right")) - 1
        return file, position - int(self._starts[file])

    def image_id(self, position: int) -> str:
        file, record = self._address(position)
        return f"{os.path.basename(self._split.files[file])}:{record}"

    def digest(self) -> str:
        return self._split.digest()

    def encoded(self, position: int) -> bytes:
        file, record = self._address(position)
        error = records.find_problem(self._split, file, record, self._num_classes)
        if error is not None:
            raise error
        row = records.read_record(self._split.files[file], record)
        return records.parse(row, self._split)[0].numpy()


def find_unreadable(images: LabeledImages, start: int = 0) -> Optional[DataError]:
    """Returns the first image at or after a position that cannot be read or decoded, with
    the reason; None if all can.
    """

    def problem(position):
        try:
            image_formats.decode(images.encoded(position))
        except DataError as error:
            return error
        except tf.errors.OpError as error:
            reason = brief_message(error)
            return DataError(
                f"it cannot be decoded as an image ({reason})", images.image_id(position)
            )
        return None

    # In small parts, so that an image near `start` is found within seconds.
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for first in range(start, images.num_images, _IMAGES_PER_PART):
            part = range(first, min(first + _IMAGES_PER_PART, images.num_images))
            found = next((error for error in pool.map(problem, part) if error is not None), None)
            if found is not None:
                return found
    return None


@functools.lru_cache(maxsize=16)
def _preprocessing(image_size: int, crop) -> Callable[[tf.Tensor], tf.Tensor]:
    # Traced once for all test sets: to trace it for each takes as long as to classify a
    # small one.
    return tf.function(
        lambda encoded: preprocessing.preprocess_for_eval(encoded, image_size, crop),
        autograph=False,
    )


def make_dataset(
    images: LabeledImages,
    *,
    image_size: int,
    crop: Union[str, float],
    global_batch_size: int,
    input_context: Optional[tf.distribute.InputContext] = None,
    num_drawn: Optional[int] = None,
    change: Optional[Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = None,
    chosen: Optional[np.ndarray] = None,
) -> tf.data.Dataset:
    """Makes one pass over the images: every one once over all input pipelines, and from
    each of them the same number of batches.

    Args:
        images: which.
        image_size, crop: see `preprocessing.preprocess_for_eval`.
        global_batch_size: images over all replicas; divisible by their number.
        input_context: given by `strategy.distribute_datasets_from_function`; None is
            one input pipeline for one replica.
        num_drawn: so many images, evenly over the positions; None: all.
        change: (encoded image, position) → another encoded image, for instance a
            corrupted one.
        chosen: only the images at these positions; instead of `num_drawn`.

    Returns:
        {"images": float32 [replica_batch, image_size, image_size, 3], "labels": int32
        [replica_batch], "positions": int32 [replica_batch], "mask": float32
        [replica_batch]} of static shapes; the mask is 0 where the batch is filled up.
        Iterating raises a `tf.errors.OpError` at an image that cannot be read;
        `find_unreadable` says which.
    """
    host = InputHost.of(input_context)
    replica_batch = host.replica_batch(global_batch_size)
    if chosen is None:
        chosen = drawn_positions(num_drawn or images.num_images, images.num_images)
    positions = np.sort(chosen).astype(np.int32)
    num_batches = -(-len(positions) // global_batch_size) * host.num_replicas
    num_blanks = num_batches * replica_batch - len(positions[host.index :: host.count])

    def prepare(encoded, label, position):
        if change is not None:
            encoded = change(encoded, position)
        pixels = _preprocessing(image_size, crop)(encoded)
        return {"images": pixels, "labels": label, "positions": position, "mask": tf.constant(1.0)}

    rows = images.rows(positions, host.count, host.index)
    prepared = rows.map(_as_it_is(prepare), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    blank = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), prepared.element_spec
    )
    blanks = tf.data.Dataset.from_tensors(blank).repeat(num_blanks)
    batches = prepared.concatenate(blanks).batch(replica_batch, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(make_options())
