"""From a config and a folder of TFRecords to batches: the seam between the data and the trainer or evaluator.

    dataset = make_train_dataset(config.data, data_dir, global_batch_size=256, seed=0, start_batch=step)
    for batch in dataset:                                # without end
        batch["images"], batch["labels"]                 # uint8 [replica_batch, size, size, 3], int32 [replica_batch]

The training stream is a pure function of (seed, position): the order of files and records in an epoch comes from (seed, epoch),
an image's augmentation from (seed, input pipeline, position in the stream). So `start_batch=k` gives the very batches that an
uninterrupted run sees from batch k on, and skipping decodes nothing. Several input pipelines (hosts) split the files where
those divide evenly and the records otherwise.

A bad record (damaged, not decodable, label out of range, …) is found, named and, up to `config.data.max_bad_records` of them on
each host, replaced by another one of its file; one more ends the iteration with an error whose text
`records.explain_data_error` turns back into a `records.DataError`.
"""

import dataclasses
import functools
import hashlib
import threading
import typing
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.data import augmentation, preprocessing, records, sources

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config import DataConfig

_PARALLEL_FILES = 16
_FILE_BUFFER_BYTES = 8 << 20


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
        return cls(
            context.input_pipeline_id, context.num_input_pipelines, context.num_replicas_in_sync // context.num_input_pipelines
        )

    def replica_batch(self, global_batch_size: int) -> int:
        num_replicas = self.num_replicas * self.count
        if global_batch_size < 1 or global_batch_size % num_replicas:
            raise ValueError(
                f"`global_batch_size` is {global_batch_size!r}, but must be a positive multiple of the {num_replicas} replicas."
            )
        return global_batch_size // num_replicas


class _Stream:
    """The records of one split that one host reads, epoch after epoch, each under its position in the stream.

    An epoch always has `epoch_size` elements, whatever becomes of the files: a record that cannot be read is an empty string in
    its place.
    """

    def __init__(
        self,
        split: records.Split,
        host: _Host,
        *,
        shuffle_seed: Optional[int] = None,
        shuffle_buffer: int = 0,
        cache: bool = False,
    ):
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
        return tf.data.Dataset.zip(
            (tf.data.Dataset.from_tensors(self._ids[index]).repeat(), tf.data.Dataset.range(self._counts[index]), rows)
        )

    def _read_numbers(self, index: tf.Tensor) -> tf.data.Dataset:
        """As `_read_file`, without the bytes and without the file."""
        return tf.data.Dataset.zip(
            (tf.data.Dataset.from_tensors(self._ids[index]).repeat(), tf.data.Dataset.range(self._counts[index]))
        )

    def _one_pass(self, order: tf.Tensor, read: Callable) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(order).interleave(
            read, cycle_length=min(_PARALLEL_FILES, len(self._files)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        if not self._by_file:
            dataset = dataset.shard(self._host.count, self._host.index)
        return dataset

    def elements(self, first_position: tf.Tensor, read: Optional[Callable] = None) -> tf.data.Dataset:
        """The endless stream from a position on: (position int64, (file int64, record int64, bytes string)). Unshuffled without
        a seed."""
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
                    tf.range(num_files), seed=tf.stack([tf.constant(_key(self._shuffle_seed, "files"), tf.int64), epoch])
                )
                dataset = self._one_pass(order, read)
            return dataset.shuffle(
                self._shuffle_buffer, seed=_key(self._shuffle_seed, "records") // 2 + epoch, reshuffle_each_iteration=False
            )

        stream = tf.data.Dataset.counter(first_position // self.epoch_size).flat_map(epoch_elements)
        return tf.data.Dataset.zip((tf.data.Dataset.counter(first_position), stream.skip(first_position % self.epoch_size)))

    def identify(self, position: int, num_positions: int) -> List[Tuple[int, int]]:
        """Which file (an index of `split.files`) and which record of it stand at the positions from one on. Reads no file."""
        elements = self.elements(tf.constant(position, tf.int64), self._read_numbers).take(num_positions)
        return [(int(file), int(record)) for _, (file, record) in elements]

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
    """What one dataset knows about its bad records: finds them, counts them, complains when there are too many."""

    def __init__(self, stream: _Stream, num_classes: Optional[int], allowed: int):
        self.stream, self.num_classes, self.allowed = stream, num_classes, allowed
        self._addresses: List[Tuple[int, int]] = []
        self._resume: Dict[int, int] = {}  # by iteration: where its next segment starts
        self._complaint = ""  # what ended the iteration
        self._lock = threading.Lock()

    def start(self, first_position: tf.Tensor) -> int:
        """Begins an iteration over the dataset; the number that it goes by."""
        with self._lock:
            self._resume[len(self._resume)] = int(first_position)
            return len(self._resume) - 1

    def start_segment(self, iteration: tf.Tensor) -> Tuple[int, np.ndarray]:
        """From where a segment of an iteration reads, and the addresses that it must not touch: int64 [n, 2]."""
        with self._lock:
            return self._resume[int(iteration)], np.asarray(self._addresses, np.int64).reshape(-1, 2)

    def end_segment(self, iteration: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> str:
        """Looks for the bad records at the positions first … last - 1, one of which at least failed.

        Returns:
          "" to go on from `first`, or the complaint that ends the iteration: too many bad records, or a failure without any.
        """
        first, last = int(first), int(last)
        num_new = 0
        for address in self.stream.identify(first, last - first):
            if self._complaint:
                return self._complaint
            error = self._explain(*address)
            with self._lock:
                if error is None or address in self._addresses:
                    continue
                self._addresses.append(address)
                num_new, number = num_new + 1, len(self._addresses)
            if number > self.allowed:
                hint = (
                    f"This is bad record {number}, and `config.data.max_bad_records` is {self.allowed}."
                    if self.allowed
                    else "Repair it, or let such records be passed over with `--config.data.max_bad_records=N`."
                )
                error = records.DataError(f"{error.reason.rstrip('.')}. {hint}", error.path, error.record)
                self._complaint = f"DataError: {error}"
                return self._complaint
            logging.warning("Passed over bad record %d of at most %d: %s", number, self.allowed, error)
        if not num_new:
            self._complaint = (
                f"DataError: records {first} to {last - 1} of the stream could not be processed, yet each is good by itself."
            )
            return self._complaint
        with self._lock:
            self._resume[int(iteration)] = first
        return ""

    def _explain(self, file: int, record: int) -> Optional[records.DataError]:
        split = self.stream.split
        path = split.files[file]
        try:
            reason = records.explain_bad_record(records.read_record(path, record), split, self.num_classes)
        except records.DataError as error:
            return error
        except (tf.errors.OpError, OSError) as error:
            return records.DataError(f"it cannot be read ({error})", path, record)
        return None if reason is None else records.DataError(reason, path, record)

    def replace(self, file: tf.Tensor, record: tf.Tensor) -> bytes:
        """The next good record of the same file (after its last comes its first)."""
        file, record = int(file), int(record)
        count = self.stream.split.counts[file]
        for step in range(1, count):
            candidate = (record + step) % count
            if self._explain(file, candidate) is None:
                return records.read_record(self.stream.split.files[file], candidate)
        raise records.DataError("no record of the file is good.", self.stream.split.files[file], record)


def _call(function: Callable, arguments: Sequence[tf.Tensor], **specs: tf.TensorSpec) -> List[tf.Tensor]:
    """Python in the graph, for what is rare: starting, and failing."""
    results = tf.py_function(function, arguments, [spec.dtype for spec in specs.values()])
    for result, spec in zip(results, specs.values()):
        result.set_shape(spec.shape)
    return results


def _batches(
    bad: _BadRecords,
    first_position: int,
    num_examples: Optional[int],
    num_batches: Optional[int],
    batch_size: int,
    process: Callable,
    element_spec: Dict[str, tf.TensorSpec],
    blank_bad: bool,
) -> tf.data.Dataset:
    """Maps `process(encoded, label, position)` over the stream, in order and in parallel, and batches the results.

    TensorFlow's datasets do not say which element failed. So a marker, which cannot fail, follows every batch: two markers in a
    row mean a failure between them. Then the segment ends, Python looks for the bad records among the batch's positions and
    either complains or notes them, and the next segment starts at the same position, with the noted ones replaced. What a
    position yields depends on the files alone, never on what failed before; without a failure the cost is one comparison per
    batch.

    Args:
      num_examples: how many positions there are; None is endless. Positions beyond it are blanks.
      num_batches: how many batches to make; None is endless.
      process: returns a dict of tensors.
      element_spec: their shapes and dtypes.
      blank_bad: whether blanks take the place of bad records; else other records do.
    """
    stream, split = bad.stream, bad.stream.split
    scalar = tf.TensorSpec([], tf.int64)

    def parse(row: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
        encoded, label = records.parse(row, split)
        upper = bad.num_classes if bad.num_classes is not None else tf.int32.max
        with tf.control_dependencies([tf.debugging.Assert(tf.logical_and(label >= 0, label < upper), ["label", label])]):
            return encoded, tf.identity(label)

    def process_record(position, file, record, row):
        # A record missing from its file's stream is asked for once more by its address: a neighbour, or the network, may have
        # been at fault.
        row = tf.cond(
            tf.equal(tf.strings.length(row), 0),
            lambda: _call(stream.reread, [file, record], row=tf.TensorSpec([], tf.string))[0],
            lambda: row,
        )
        return process(*parse(row), position)

    def blank_of(spec: tf.TensorSpec) -> tf.Tensor:
        return tf.zeros(spec.shape, spec.dtype)

    blank = tf.nest.map_structure(blank_of, element_spec)

    def segment(iteration: tf.Tensor) -> tf.data.Dataset:
        start, avoided = _call(bad.start_segment, [iteration], start=scalar, avoided=tf.TensorSpec([None, 2], tf.int64))

        # Nothing here needs AutoGraph, whose conversion would take most of the time until the first batch.
        @tf.autograph.experimental.do_not_convert
        def process_element(position, address):
            file, record, row = address
            if not bad.allowed:
                return position, process_record(position, file, record, row)
            is_bad = tf.reduce_any(tf.reduce_all(tf.equal(avoided, tf.stack([file, record])), axis=1))
            if blank_bad:
                return position, tf.cond(is_bad, lambda: dict(blank), lambda: process_record(position, file, record, row))
            row = tf.cond(is_bad, lambda: _call(bad.replace, [file, record], row=tf.TensorSpec([], tf.string))[0], lambda: row)
            return position, process_record(position, file, record, row)

        elements = stream.elements(start)
        if num_examples is not None:
            elements = elements.take(tf.maximum(num_examples - start, 0))
        results = elements.map(process_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        if num_examples is not None:
            blanks = tf.data.Dataset.counter(tf.maximum(tf.constant(num_examples, tf.int64), start))
            results = results.concatenate(blanks.map(lambda position: (position, dict(blank))))
        batches = results.batch(batch_size, drop_remainder=True).map(lambda positions, batch: (positions[0], batch))
        batches = batches.prefetch(tf.data.AUTOTUNE)
        marker = tf.nest.map_structure(blank_of, batches.element_spec)
        markers = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), marker[1])).repeat()
        turns = tf.data.Dataset.from_tensor_slices(tf.constant([0, 1], tf.int64)).repeat()
        both = tf.data.Dataset.choose_from_datasets([batches, markers], turns, stop_on_empty_dataset=True).ignore_errors()

        def watch(state, element):
            expected, after_marker = state
            position, batch = element
            is_marker = position < 0
            # A batch that starts elsewhere than where the last one ended has lost elements: it counts as failed too.
            failed = tf.where(is_marker, after_marker, tf.not_equal(position, expected))

            def end_segment():
                last = expected + batch_size if num_examples is None else tf.minimum(expected + batch_size, num_examples)
                (complaint,) = _call(bad.end_segment, [iteration, expected, last], complaint=tf.TensorSpec([], tf.string))
                with tf.control_dependencies([tf.debugging.Assert(tf.equal(complaint, ""), [complaint])]):
                    return tf.constant(True)

            with tf.control_dependencies([tf.cond(failed, end_segment, lambda: tf.constant(True))]):
                failed = tf.identity(failed)
            return (tf.where(is_marker, expected, expected + batch_size), is_marker), (failed, is_marker, batch)

        watched = both.scan((start, tf.constant(False)), watch).take_while(lambda failed, is_marker, batch: ~failed)
        return watched.filter(lambda failed, is_marker, batch: ~is_marker).map(lambda failed, is_marker, batch: batch)

    def iterate(first: tf.Tensor) -> tf.data.Dataset:
        (iteration,) = _call(bad.start, [first], iteration=scalar)
        return tf.data.Dataset.from_tensors(iteration).repeat().flat_map(segment)

    batches = tf.data.Dataset.from_tensors(tf.constant(first_position, tf.int64)).flat_map(iterate)
    return batches if num_batches is None else batches.take(num_batches)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # Images are processed in parallel already; an operation split over threads only costs more.
    options.threading.max_intra_op_parallelism = 1
    # Each input pipeline picks its own part already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _example_spec(data: "DataConfig", dtype: tf.DType) -> Dict[str, tf.TensorSpec]:
    return {"images": tf.TensorSpec([data.image_size, data.image_size, 3], dtype), "labels": tf.TensorSpec([], tf.int32)}


def _limit_examples(split: records.Split, num_examples: int) -> records.Split:
    """The first records of every shard, as even as can be, `num_examples` in all."""
    num_files = len(split.files)
    counts = [max(0, (num_examples - index + num_files - 1) // num_files) for index in range(num_files)]
    if num_examples < 1 or any(wanted > there for wanted, there in zip(counts, split.counts)):
        raise records.DataError(
            f"`config.data.num_train_examples` is {num_examples}, but must be positive and not more than the training files "
            f"hold, evenly over them ({min(split.counts) * num_files} of {split.num_records})."
        )
    return dataclasses.replace(split, counts=counts, broken_tails=())


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


def make_augmentation(data: "DataConfig") -> Optional[Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """What `data.augment` and `data.cutout_half_size` ask for: `(uint8 image, seed) -> uint8 image`, or None for nothing."""
    ops = {"official": augmentation.OPS, "meant": augmentation.MEANT_OPS}[data.augment_ops]
    steps = []
    if data.augment == "autoaugment":
        steps.append(functools.partial(augmentation.autoaugment, ops=ops))
    elif data.augment == "randaugment":
        steps.append(
            functools.partial(
                augmentation.randaugment, num_layers=data.randaugment_num_layers, magnitude=data.randaugment_magnitude, ops=ops
            )
        )
    if data.cutout_half_size:
        steps.append(
            lambda image, seed: augmentation.cutout(image, data.cutout_half_size, seed + tf.constant([1, 0], seed.dtype))
        )
    if not steps:
        return None
    return lambda image, seed: functools.reduce(lambda image, step: step(image, seed), steps, image)


def make_train_dataset(
    data: "DataConfig",
    data_dir: str,
    *,
    global_batch_size: int,
    seed: int,
    start_batch: int = 0,
    input_context: Optional[tf.distribute.InputContext] = None,
    num_classes: Optional[int] = None,
) -> tf.data.Dataset:
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
    stream = _Stream(
        _open_split(data, data_dir, "train"), host, shuffle_seed=seed, shuffle_buffer=data.shuffle_buffer, cache=data.cache
    )
    augment = make_augmentation(data)
    augment_key = tf.constant(_key(seed, f"augmentation of input pipeline {host.index}"), tf.int64)

    def process(encoded, label, position):
        image = preprocessing.preprocess_for_train(
            encoded,
            data.image_size,
            seed=tf.stack([augment_key, position]),
            crop=data.crop,
            crop_padding=data.crop_padding,
            horizontal_flip=data.horizontal_flip,
            augment=augment,
        )
        return {"images": image, "labels": label}

    bad = _BadRecords(stream, num_classes, data.max_bad_records)
    first_position = start_batch * replica_batch * host.num_replicas
    return (
        _batches(bad, first_position, None, None, replica_batch, process, _example_spec(data, tf.uint8), blank_bad=False)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(_options())
    )


def make_eval_dataset(
    data: "DataConfig",
    data_dir: str,
    *,
    split: str = "validation",
    global_batch_size: int,
    input_context: Optional[tf.distribute.InputContext] = None,
    num_classes: Optional[int] = None,
) -> tf.data.Dataset:
    """One pass over a split: every image once over all input pipelines, and from each of them the same number of batches.

    Args: as `make_train_dataset`; `split` is the files' prefix.

    Returns:
      `{"images": float32 [replica_batch, size, size, 3], "labels": int32 [replica_batch], "mask": float32 [replica_batch]}` of
      static shapes; the mask is 1 for an image and 0 for padding (and for a bad record that `config.data.max_bad_records` lets
      pass). The images are float because the official evaluation feeds the bicubic's overshoots below 0 and above 255 too.
    """
    host = _Host.of(input_context)
    replica_batch = host.replica_batch(global_batch_size)
    opened = _open_split(data, data_dir, split)
    stream = _Stream(opened, host)
    largest = max(_Stream(opened, host._replace(index=index)).epoch_size for index in range(host.count))
    per_step = replica_batch * host.num_replicas
    num_steps = -(-largest // per_step)  # of the input pipeline with most images, and so of all

    def process(encoded, label, position):
        del position
        image = preprocessing.preprocess_for_eval(encoded, data.image_size, crop=data.eval_crop)
        return {"images": image, "labels": label, "mask": tf.constant(1.0)}

    bad = _BadRecords(stream, num_classes, data.max_bad_records)
    spec = {**_example_spec(data, tf.float32), "mask": tf.TensorSpec([], tf.float32)}
    num_batches = num_steps * host.num_replicas
    batches = _batches(bad, 0, stream.epoch_size, num_batches, replica_batch, process, spec, blank_bad=True)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(_options())


def sample_views(data: "DataConfig", data_dir: str, *, num_images: int, num_draws: int, seed: int) -> np.ndarray:
    """For a look at the input: the first training images as the evaluation and as several draws of the training show them.

    Returns:
      uint8 [num_images, 1 + num_draws, size, size, 3].

    Raises:
      records.DataError: the data are not there, or one of the images is bad.
    """
    split = _open_split(data, data_dir, "train")
    addresses = _Stream(split, _Host(0, 1, 1)).identify(0, num_images)
    augment = make_augmentation(data)
    rows = []
    for file, record in addresses:
        row = records.read_record(split.files[file], record)
        reason = records.explain_bad_record(row, split, None)
        if reason:
            raise records.DataError(reason, split.files[file], record)
        encoded, _ = records.parse(row, split)
        evaluation = preprocessing.preprocess_for_eval(encoded, data.image_size, crop=data.eval_crop)
        draws = [
            preprocessing.preprocess_for_train(
                encoded,
                data.image_size,
                seed=tf.constant([_key(seed, "views"), len(rows) * num_draws + draw], tf.int64),
                crop=data.crop,
                crop_padding=data.crop_padding,
                horizontal_flip=data.horizontal_flip,
                augment=augment,
            )
            for draw in range(num_draws)
        ]
        rows.append(np.stack([np.clip(evaluation, 0, 255).astype(np.uint8), *(draw.numpy() for draw in draws)]))
    return np.stack(rows)
