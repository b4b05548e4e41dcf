"""The records of a split in the order in which one host reads them, epoch after epoch,
each under its position in the stream.

    stream = RecordStream(split, input_context, seed=0, shuffle_buffer=16384)
    for position, (file, record, serialized) in stream.elements(first_position): ...

The order is a pure function of (seed, epoch), so a stream starts anywhere: whole epochs
are jumped over, and up to the place within one the records are read but not decoded.
Several hosts split the files where those divide evenly and the records otherwise.
"""

import hashlib
from typing import Callable, List, Optional, Tuple

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.data import records
from efficientnet_advprop.data.python_calls import call_python

_PARALLEL_FILES = 16
# What is remote comes in requests, of which there should be few; a local file's buffer
# should stay in the processor's cache.
_REMOTE_BUFFER_BYTES, _LOCAL_BUFFER_BYTES = 8 << 20, 256 << 10


def derive_seed(seed: int, purpose: str) -> int:
    """Returns a 63-bit seed of its own for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


class RecordStream:
    """The records of one split that one host trains on, epoch after epoch, each under its
    position in the stream.

    An epoch always has `epoch_size` elements, whatever becomes of the files: a record
    that cannot be read is an empty string in its place.
    """

    def __init__(
        self,
        split: records.Split,
        context: tf.distribute.InputContext,
        seed: int,
        shuffle_buffer: int,
        *,
        cache: bool = False,
    ):
        count, index = context.num_input_pipelines, context.input_pipeline_id
        self.split, self._host = split, (count, index)
        self._by_file = len(split.files) % count == 0
        own_files = list(range(len(split.files)))
        if self._by_file:
            own_files = own_files[index::count]
        self._files = tf.constant([split.files[i] for i in own_files])
        self._counts = tf.constant([split.counts[i] for i in own_files], tf.int64)
        self._ids = tf.constant(own_files, tf.int64)
        total = sum(split.counts[i] for i in own_files)
        self.epoch_size = total if self._by_file else len(range(index, total, count))
        self._seed, self._shuffle_buffer, self._cache = seed, shuffle_buffer, cache
        self._buffer_bytes = (
            _REMOTE_BUFFER_BYTES if "://" in split.files[0] else _LOCAL_BUFFER_BYTES
        )

    def _read_file(self, index: tf.Tensor) -> tf.data.Dataset:
        """Yields (file, record, bytes) of every record of a file; b"" from the first one
        on that cannot be read.
        """
        path = self._files[index]
        (is_there,) = call_python(_wait_for_file, [path], is_there=tf.TensorSpec([], tf.bool))
        rows = tf.data.TFRecordDataset(
            tf.boolean_mask([path], is_there[tf.newaxis]), buffer_size=self._buffer_bytes
        )
        rows = (
            rows.ignore_errors()
            .concatenate(tf.data.Dataset.from_tensors(b"").repeat())
            .take(self._counts[index])
        )
        return tf.data.Dataset.zip((*self._numbers(index), rows))

    def _numbers(self, index: tf.Tensor) -> Tuple[tf.data.Dataset, tf.data.Dataset]:
        file = tf.data.Dataset.from_tensors(self._ids[index]).repeat()
        return file, tf.data.Dataset.range(self._counts[index])

    def _read_numbers(self, index: tf.Tensor) -> tf.data.Dataset:
        """Does as `_read_file`, without the bytes and without the file."""
        return tf.data.Dataset.zip(self._numbers(index))

    def _one_pass(self, order: tf.Tensor, read: Callable) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(order).interleave(
            read,
            cycle_length=min(_PARALLEL_FILES, len(self._files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if not self._by_file:
            dataset = dataset.shard(*self._host)
        return dataset

    def elements(
        self, first_position: tf.Tensor, read: Optional[Callable] = None
    ) -> tf.data.Dataset:
        """Yields the endless stream from a position on: (position int64, (file int64, record
        int64, bytes string)).
        """
        read = read or self._read_file
        num_files = len(self._files)
        in_order = self._one_pass(tf.range(num_files), read)
        if self._cache:
            in_order = in_order.cache()

        def epoch_elements(epoch: tf.Tensor) -> tf.data.Dataset:
            # This sets the seed of this function's graph alone. Without it the order
            # would depend on the user's own `tf.random.set_seed`, and 0 there would be
            # an error. The value is that of earlier training runs, which go on.
            tf.random.set_seed(self._seed + 1)
            if self._cache:
                dataset = in_order
            else:
                seed = tf.constant(derive_seed(self._seed, "files"), tf.int64)
                order = tf.random.experimental.stateless_shuffle(
                    tf.range(num_files), seed=tf.stack([seed, epoch])
                )
                dataset = self._one_pass(order, read)
            return dataset.shuffle(
                self._shuffle_buffer,
                seed=derive_seed(self._seed, "records") // 2 + epoch,
                reshuffle_each_iteration=False,
            )

        stream = tf.data.Dataset.counter(first_position // self.epoch_size).flat_map(epoch_elements)
        return tf.data.Dataset.zip(
            (tf.data.Dataset.counter(first_position), stream.skip(first_position % self.epoch_size))
        )

    def identify(self, position: int, num_positions: int) -> List[Tuple[int, int]]:
        """Returns which file (an index of `split.files`) and which record of it stand at
        the positions from one on; reads no file.
        """
        elements = self.elements(tf.constant(position, tf.int64), self._read_numbers)
        elements = elements.take(num_positions)
        return [(int(file), int(record)) for _, (file, record) in elements]

    def reread(self, file: np.ndarray, record: np.ndarray) -> bytes:
        """Reads a record by its own address, slowly and stubbornly; b"" if it cannot be had."""
        try:
            return records.read_record(self.split.files[int(file)], int(record))
        except (records.DataError, tf.errors.OpError, OSError):
            return b""


def _wait_for_file(path: bytes) -> bool:
    """Whether a file can be opened, after some waiting for a file system if need be."""
    path = path.decode()
    try:
        records.retry_reads(lambda: tf.io.gfile.stat(path), f"Opening {path}")
        return True
    except (tf.errors.OpError, OSError) as error:
        logging.error("%s cannot be opened: %s", path, error)
        return False
