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
import contextlib
import functools
import os
import typing
from typing import Callable, Iterator, Optional, Protocol, Sequence, Union

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import image_formats, preprocessing, records, synthetic
from efficientnet_advprop.data.digests import digest_files
from efficientnet_advprop.data.image_formats import as_decodable, as_decodable_in_graph
from efficientnet_advprop.data.pipeline import make_options
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.images.tar_archives import TarMember
from efficientnet_advprop.runtime.errors import DataError, brief_message

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config.experiment import DataConfig

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

    def rows(self, positions: np.ndarray) -> tf.data.Dataset:
        """Yields (encoded image: string, label: int32, position: int32) of the images at
        `positions`, int32 and ascending.
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

    def rows(self, positions: np.ndarray) -> tf.data.Dataset:
        paths, labels = (
            tf.constant([values[i] for i in positions], kind)
            for values, kind in ((self.paths, tf.string), (self.labels, tf.int32))
        )

        def read(path, label, position):
            return as_decodable_in_graph(tf.io.read_file(path)), label, position

        rows = tf.data.Dataset.from_tensor_slices((paths, labels, positions))
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

    def rows(self, positions: np.ndarray) -> tf.data.Dataset:
        def read(position, label):
            (encoded,) = call_python(
                lambda position: self.encoded(int(position)),
                [position],
                encoded=tf.TensorSpec([], tf.string),
            )
            return encoded, label, position

        labels = np.asarray(self.labels, np.int32)[positions]
        rows = tf.data.Dataset.from_tensor_slices((positions, labels))
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

    def __init__(self, split: records.Split, num_classes: Optional[int]):
        self._split, self._num_classes = split, num_classes
        self._starts = np.concatenate([[0], np.cumsum(split.counts)]).astype(np.int32)
        self.num_images = split.num_records
        self.remarks = ()

    def rows(self, positions: np.ndarray) -> tf.data.Dataset:
        is_wanted = np.isin(np.arange(self.num_images), positions)
        parts = np.split(is_wanted, self._starts[1:-1])
        chosen = [index for index, part in enumerate(parts) if part.any()]

        def read(path, start, count):
            numbers = tf.data.Dataset.range(start, start + count, output_type=tf.int32)
            rows = tf.data.TFRecordDataset(path, buffer_size=_FILE_BUFFER_BYTES)
            # What a file lacks is an error, as an empty record.
            rows = rows.concatenate(tf.data.Dataset.from_tensors(b"").repeat())
            return tf.data.Dataset.zip((rows, numbers))

        paths = tf.constant([self._split.files[index] for index in chosen], tf.string)
        starts, counts = self._starts[:-1][chosen], np.diff(self._starts)[chosen]
        rows = tf.data.Dataset.from_tensor_slices(
            (paths, starts.astype(np.int64), counts.astype(np.int64))
        ).interleave(
            _as_it_is(read),
            cycle_length=min(_PARALLEL_FILES, max(1, len(chosen))),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if len(positions) < self.num_images:
            wanted = tf.constant(is_wanted)
            rows = rows.filter(_as_it_is(lambda row, position: tf.gather(wanted, position)))
        return rows.map(_as_it_is(self._parse))

    def _parse(self, row, position):
        return *records.parse(row, self._split, self._num_classes), position

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
    context = input_context or tf.distribute.InputContext()
    replica_batch = context.get_per_replica_batch_size(global_batch_size)
    if chosen is None:
        chosen = drawn_positions(num_drawn or images.num_images, images.num_images)
    positions = np.sort(chosen).astype(np.int32)
    num_hosts = context.num_input_pipelines
    # A run of positions to each host, which so reads few files of records.
    own = np.array_split(positions, num_hosts)[context.input_pipeline_id]
    num_batches = -(-len(positions) // global_batch_size)
    num_wanted = num_batches * replica_batch * (context.num_replicas_in_sync // num_hosts)

    def prepare(encoded, label, position):
        if change is not None:
            encoded = change(encoded, position)
        pixels = _preprocessing(image_size, crop)(encoded)
        return {"images": pixels, "labels": label, "positions": position, "mask": tf.constant(1.0)}

    rows = images.rows(own)
    prepared = rows.map(_as_it_is(prepare), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    blank = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), prepared.element_spec
    )
    blanks = tf.data.Dataset.from_tensors(blank).repeat(num_wanted - len(own))
    batches = prepared.concatenate(blanks).batch(replica_batch, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(make_options())


def make_eval_dataset(
    data: "DataConfig",
    split: records.Split,
    *,
    global_batch_size: int,
    input_context: Optional[tf.distribute.InputContext] = None,
    num_classes: Optional[int] = None,
) -> tf.data.Dataset:
    """Makes one pass over a split of a run, see `make_dataset`; of noise where it has no files."""
    if split.files:
        return make_dataset(
            RecordImages(split.for_network(num_classes), num_classes),
            image_size=data.image_size,
            crop=data.eval_crop,
            global_batch_size=global_batch_size,
            input_context=input_context,
        )
    context = input_context or tf.distribute.InputContext()
    num_batches = max(1, split.num_records // global_batch_size)
    return synthetic.make_eval_dataset(
        data.image_size,
        context.get_per_replica_batch_size(global_batch_size),
        num_batches * (context.num_replicas_in_sync // context.num_input_pipelines),
        num_classes,
    )


@contextlib.contextmanager
def naming_bad_records(split: records.Split, num_classes: Optional[int]) -> Iterator[None]:
    """Raises what `make_eval_dataset` fails by as the `DataError` that names the record."""
    try:
        yield
    except (
        tf.errors.DataLossError,
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
    ) as error:
        images = RecordImages(split.for_network(num_classes), num_classes)
        unreadable = find_unreadable(images)
        if unreadable is None:
            raise
        raise unreadable from error
