"""From a config and a folder of TFRecords to batches: the seam between the data and the trainer or evaluator.

    dataset = make_train_dataset(config.data, data_dir, global_batch_size=256, seed=0, start_batch=step)
    for batch in dataset: batch["images"], batch["labels"]     # uint8 [replica_batch, size, size, 3], int32 [replica_batch]; endless

The training stream is a pure function of (seed, position): the order of files and records in an epoch comes from (seed, epoch), an image's
augmentation from (seed, input pipeline, position in the stream). So `start_batch=k` gives the very batches that an uninterrupted run sees from
batch k on, and skipping decodes nothing. Several input pipelines (hosts) split the files where those divide evenly and the records otherwise.

A bad record (damaged, not decodable, label out of range, …) is found, named and, up to `config.data.max_bad_records` of them on each host, replaced by
the next good one; one more ends the iteration with an error whose text `records.explain_data_error` turns back into a `records.DataError`.
"""

import hashlib
import threading
import typing
from typing import Callable, Dict, Optional, Set, Tuple, Union

from absl import logging
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data import records
from efficientnet_advprop.data import sources

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config import DataConfig

_PARALLEL_FILES = 16
_FILE_BUFFER_BYTES = 8 << 20
# An element that cannot fail follows every so many records, so that a stream of nothing but bad records is noticed.
_HEARTBEAT_EVERY = 256
_REMEMBERED_MESSAGES = 20


def _key(seed: int, purpose: str) -> int:
    """A 63-bit seed of its own for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


class _Host(typing.NamedTuple):
    """Which part of the records one input pipeline reads."""

    index: int
    count: int
    num_replicas: int  # replicas it feeds

    @classmethod
    def of(cls, context: Optional[tf.distribute.InputContext]) -> "_Host":
        if context is None:
            return cls(0, 1, 1)
        return cls(context.input_pipeline_id, context.num_input_pipelines, context.num_replicas_in_sync // context.num_input_pipelines)

    def replica_batch(self, global_batch_size: int) -> int:
        num_replicas = self.num_replicas * self.count
        if global_batch_size < 1 or global_batch_size % num_replicas:
            raise ValueError(f"`global_batch_size` is {global_batch_size!r}, but must be a positive multiple of the {num_replicas} replicas.")
        return global_batch_size // num_replicas


class _Stream:
    """The records of one split that one host reads, epoch after epoch, each under its position in the stream.

    An epoch always has `epoch_size` elements, whatever becomes of the files: a record that cannot be read is an empty string in its place.
    """

    def __init__(self, split: records.Split, host: _Host, *, shuffle_seed: Optional[int] = None, shuffle_buffer: int = 0, cache: bool = False):
        self.split, self._host = split, host
        self._by_file = len(split.files) % host.count == 0
        mine = range(host.index, len(split.files), host.count) if self._by_file else range(len(split.files))
        self._files = tf.constant([split.files[i] for i in mine])
        self._counts = tf.constant([split.counts[i] for i in mine], tf.int64)
        self._ids = tf.constant(list(mine), tf.int64)
        total = sum(split.counts[i] for i in mine)
        self.epoch_size = total if self._by_file else (total - host.index + host.count - 1) // host.count
        self._shuffle_seed, self._shuffle_buffer, self._cache = shuffle_seed, shuffle_buffer, cache

    def _read_file(self, index: tf.Tensor) -> tf.data.Dataset:
        """(file, record, bytes) of every record of a file; b"" from the first one on that cannot be read."""
        path = self._files[index]
        is_there = tf.py_function(_wait_for_file, [path], tf.bool)
        is_there.set_shape([])
        rows = tf.data.TFRecordDataset(tf.boolean_mask([path], is_there[tf.newaxis]), buffer_size=_FILE_BUFFER_BYTES)
        rows = rows.ignore_errors().concatenate(tf.data.Dataset.from_tensors(b"").repeat()).take(self._counts[index])
        return rows.enumerate().map(lambda record, row: (self._ids[index], record, row))

    def _read_numbers(self, index: tf.Tensor) -> tf.data.Dataset:
        """As `_read_file`, without the bytes and without the file."""
        return tf.data.Dataset.range(self._counts[index]).map(lambda record: (self._ids[index], record))

    def _one_pass(self, order: tf.Tensor, read: Callable) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(order).interleave(
            read, cycle_length=min(_PARALLEL_FILES, len(self._files)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        if not self._by_file:
            dataset = dataset.shard(self._host.count, self._host.index)
        return dataset

    def elements(self, first_position: int, read: Optional[Callable] = None) -> tf.data.Dataset:
        """The endless stream from a position on: (position int64, (file int64, record int64, bytes string)). Unshuffled without a seed."""
        read = read or self._read_file
        num_files = len(self._files)
        in_order = self._one_pass(tf.range(num_files), read)
        if self._cache:
            in_order = in_order.cache()

        def epoch_elements(epoch: tf.Tensor) -> tf.data.Dataset:
            if self._shuffle_seed is None:
                return in_order
            if self._cache:
                dataset = in_order
            else:
                order = tf.random.experimental.stateless_shuffle(
                    tf.range(num_files), seed=tf.stack([tf.constant(_key(self._shuffle_seed, "files"), tf.int64), epoch]))
                dataset = self._one_pass(order, read)
            return dataset.shuffle(self._shuffle_buffer, seed=_key(self._shuffle_seed, "records") // 2 + epoch, reshuffle_each_iteration=False)

        first_epoch, offset = divmod(first_position, self.epoch_size)
        stream = tf.data.Dataset.counter(first_epoch).flat_map(epoch_elements)
        return stream.skip(offset).enumerate(first_position)

    def identify(self, position: int) -> Tuple[int, int]:
        """Which file (an index of `split.files`) and which record of it stand at a position. Reads no file."""
        _, (file, record) = next(iter(self.elements(position, self._read_numbers)))
        return int(file), int(record)

    def reread(self, file: tf.Tensor, record: tf.Tensor) -> bytes:
        """A record by its own address, slowly and stubbornly; b"" if it cannot be had."""
        try:
            return records.read_record(self.split.files[int(file)], int(record))
        except (records.DataError, tf.errors.OpError, OSError):
            return b""


def _wait_for_file(path: tf.Tensor) -> bool:
    """Whether a file can be opened, waiting a while for a file system that is unavailable."""
    path = path.numpy().decode()
    try:
        records.retry_reads(lambda: tf.io.gfile.stat(path), f"Opening {path}")
        return True
    except (tf.errors.OpError, OSError) as error:
        logging.error("%s cannot be opened: %s", path, error)
        return False


class _BadRecords:
    """Counts the distinct bad records of one dataset and complains when there are too many."""

    def __init__(self, stream: _Stream, num_classes: Optional[int], allowed: int):
        self._stream, self._num_classes, self._allowed = stream, num_classes, allowed
        self._seen: Set[Tuple[int, int]] = set()
        self._lock = threading.Lock()

    def report(self, first: tf.Tensor, last: tf.Tensor) -> None:
        """Explains the positions first … last - 1, which did not come out of the pipeline."""
        for position in range(int(first), int(last)):
            file, record = self._stream.identify(position)
            path = self._stream.split.files[file]
            try:
                reason = records.explain_bad_record(records.read_record(path, record), self._stream.split, self._num_classes)
                error = records.DataError(reason or "the record could not be processed", path, record)
            except records.DataError as unreadable:
                error = unreadable
            except (tf.errors.OpError, OSError) as unreadable:
                error = records.DataError(f"it cannot be read ({unreadable})", path, record)
            with self._lock:
                is_new = (file, record) not in self._seen
                self._seen.add((file, record))
                number = len(self._seen)
            if number > self._allowed:
                more = (f" This is bad record number {number}; `config.data.max_bad_records` = {self._allowed} allow no more."
                        if self._allowed else " Repair it, or let such records be skipped with `--config.data.max_bad_records=N`.")
                raise records.DataError(error.reason.rstrip(".") + "." + more, path, record)
            if is_new:
                logging.warning("Skipped bad record %d of at most %d: %s", number, self._allowed, error)


def _process(stream: _Stream, first_position: int, limit: Optional[int], process: Callable, bad: _BadRecords,
             blank: Callable[[Dict[str, tf.Tensor]], Dict[str, tf.Tensor]], num_classes: Optional[int]) -> tf.data.Dataset:
    """Maps `process(encoded, label, position)` over the stream, in order and in parallel; bad records are reported and replaced.

    Args:
      limit: how many positions to take; None is endless.
      process: returns a dict of tensors of static shapes.
      blank: what takes a bad record's place, made from the next good one.
    """
    split = stream.split
    heartbeat = tf.constant(-1, tf.int64)
    elements = stream.elements(first_position)
    if limit is not None:
        elements = elements.take(limit)
    beats = tf.data.Dataset.from_tensors((heartbeat, (heartbeat, heartbeat, b"")))

    def process_record(position: tf.Tensor, address: Tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> Tuple[tf.Tensor, Dict[str, tf.Tensor]]:
        file, record, row = address
        # A record missing from a file's stream is asked for once more by its address: its neighbour, or the network, may have been at fault.
        row = tf.cond(tf.equal(tf.strings.length(row), 0),
                      lambda: tf.ensure_shape(tf.py_function(stream.reread, [file, record], tf.string), []), lambda: row)
        encoded, label = records.parse(row, split)
        upper = num_classes if num_classes is not None else tf.int32.max
        with tf.control_dependencies([tf.debugging.Assert(tf.logical_and(label >= 0, label < upper), ["label", label])]):
            label = tf.identity(label)
        return position, process(encoded, label, position)

    _, signature = tf.data.Dataset.from_tensors((heartbeat, (heartbeat, heartbeat, b""))).map(process_record).element_spec
    nothing = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in signature.items()}

    def process_element(position, address):
        return tf.cond(tf.equal(position, heartbeat), lambda: (heartbeat, dict(nothing)), lambda: process_record(position, address))

    # `limit` positions, then a heartbeat; or a heartbeat every so often.
    if limit is None:
        turns = tf.data.Dataset.range(_HEARTBEAT_EVERY + 1).map(lambda i: tf.cast(i == _HEARTBEAT_EVERY, tf.int64)).repeat()
        elements = tf.data.Dataset.choose_from_datasets([elements, beats.repeat()], turns, stop_on_empty_dataset=True)
    else:
        elements = elements.concatenate(beats)
    results = elements.map(process_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    end = first_position + limit if limit is not None else None

    def find_gap(state, element):
        """state: the next position not seen yet; how many replacements are due."""
        expected, due = state
        position, result = element
        is_beat = tf.equal(position, heartbeat)
        # A heartbeat has no position; the last one of a finite stream stands behind its end.
        here = tf.where(is_beat, expected if end is None else tf.constant(end, tf.int64), position)
        gap = here - expected
        checked = tf.cond(gap > 0, lambda: _call(bad.report, expected, here), lambda: tf.constant(True))
        with tf.control_dependencies([checked]):
            due = due + gap
        last = tf.constant(end is not None) & is_beat
        repeats = tf.where(is_beat & ~last, tf.zeros_like(due), due)
        state = (here + tf.cast(~is_beat, tf.int64), due - repeats)
        return state, (result, repeats, ~is_beat)

    def fill_gap(result, repeats, is_record):
        kept = tf.data.Dataset.from_tensors(result).take(tf.cast(is_record, tf.int64))
        return tf.data.Dataset.from_tensors(blank(result)).repeat(repeats).concatenate(kept)

    zero = tf.constant(0, tf.int64)
    return results.scan((tf.constant(first_position, tf.int64), zero), find_gap).flat_map(fill_gap)


def _call(function: Callable, *arguments: tf.Tensor) -> tf.Tensor:
    def call(*values):
        function(*values)
        return True
    done = tf.py_function(call, arguments, tf.bool)
    done.set_shape([])
    return done


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # Each input pipeline picks its own part already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _limit_examples(split: records.Split, num_examples: int) -> records.Split:
    """The first records of every shard, as even as can be, `num_examples` in all."""
    num_files = len(split.files)
    counts = [(num_examples - index + num_files - 1) // num_files for index in range(num_files)]
    if num_examples < 1 or any(wanted > there for wanted, there in zip(counts, split.counts)):
        raise records.DataError(f"`config.data.num_train_examples` is {num_examples}, but must be positive and not more than the training files "
                                f"hold, evenly over them ({min(split.counts) * num_files} of {split.num_records}).")
    return records.Split(split.files, counts, split.image_feature, split.label_feature, split.label_offset)


def _open_split(data: "DataConfig", data_dir: str, split: str) -> records.Split:
    opened = sources.open_split(data, data_dir, split)
    if split == "train" and data.num_train_examples is not None:
        opened = _limit_examples(opened, data.num_train_examples)
    return opened


def count_examples(data: "DataConfig", data_dir: str, split: str) -> int:
    """How many images a split has: those of an epoch over all hosts.

    Raises:
      records.DataError: see `records.open_split`.
    """
    return _open_split(data, data_dir, split).num_records


def make_train_dataset(data: "DataConfig", data_dir: str, *, global_batch_size: int, seed: int, start_batch: int = 0,
                       input_context: Optional[tf.distribute.InputContext] = None, num_classes: Optional[int] = None) -> tf.data.Dataset:
    """The endless training stream of one input pipeline.

    Args:
      data: what the network sees.
      data_dir: the folder of the records.
      global_batch_size: images over all replicas; divisible by their number.
      seed: of order and augmentation.
      start_batch: how many global batches to leave out: the number of batches trained on so far.
      input_context: given by `strategy.distribute_datasets_from_function`; None is one input pipeline for one replica.
      num_classes: labels from it on are bad records; None takes any label.

    Returns:
      `{"images": uint8 [replica_batch, size, size, 3], "labels": int32 [replica_batch]}` of static shapes.

    Raises:
      records.DataError: the data are not there or not whole.
      ValueError: the batch does not divide by the replicas.
    """
    host = _Host.of(input_context)
    replica_batch = host.replica_batch(global_batch_size)
    stream = _Stream(_open_split(data, data_dir, "train"), host, shuffle_seed=seed, shuffle_buffer=data.shuffle_buffer)
    augment_key = tf.constant(_key(seed, f"augmentation of input pipeline {host.index}"), tf.int64)

    def process(encoded, label, position):
        image = preprocessing.preprocess_for_train(
            encoded, data.image_size, seed=tf.stack([augment_key, position]), crop=data.crop, crop_padding=data.crop_padding,
            horizontal_flip=data.horizontal_flip)
        return {"images": image, "labels": label}

    bad = _BadRecords(stream, num_classes, data.max_bad_records)
    images = _process(stream, start_batch * replica_batch * host.num_replicas, None, process, bad, lambda example: example, num_classes)
    return images.batch(replica_batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(_options())


def make_eval_dataset(data: "DataConfig", data_dir: str, *, split: str = "validation", global_batch_size: int,
                      input_context: Optional[tf.distribute.InputContext] = None, num_classes: Optional[int] = None) -> tf.data.Dataset:
    """One pass over a split: every image once over all input pipelines, and from each of them the same number of batches.

    Args: as `make_train_dataset`; `split` is the files' prefix.

    Returns:
      `{"images": float32 [replica_batch, size, size, 3], "labels": int32 [replica_batch], "mask": float32 [replica_batch]}` of static shapes; the mask is 1
      for an image and 0 for padding (and for a bad record that `config.data.max_bad_records` lets pass). The images are float because the official
      evaluation feeds the bicubic's overshoots below 0 and above 255 too.
    """
    host = _Host.of(input_context)
    replica_batch = host.replica_batch(global_batch_size)
    opened = _open_split(data, data_dir, split)
    stream = _Stream(opened, host)
    largest = max(_Stream(opened, host._replace(index=index)).epoch_size for index in range(host.count))
    per_step = replica_batch * host.num_replicas
    num_steps = -(-largest // per_step)

    def process(encoded, label, position):
        del position
        image = preprocessing.preprocess_for_eval(encoded, data.image_size, crop=data.eval_crop)
        return {"images": image, "labels": label, "mask": tf.constant(1.0)}

    bad = _BadRecords(stream, num_classes, data.max_bad_records)
    images = _process(stream, 0, stream.epoch_size, process, bad, lambda example: {**example, "mask": tf.zeros_like(example["mask"])}, num_classes)
    padding = tf.data.Dataset.from_tensors(tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), images.element_spec))
    images = images.concatenate(padding.repeat()).take(num_steps * per_step)
    return images.batch(replica_batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(_options())
