"""Records to batches; the first record that cannot be used ends the stream, and is named.

    batches = batch_records(
        stream, num_classes=1000, first_position=0, batch_size=256, process=process
    )

A record that is damaged, cannot be decoded, or has a label out of range costs nothing
until it comes: no image is checked twice.
"""

import os
from typing import Callable, Dict, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.data import records
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.data.record_streams import RecordStream
from efficientnet_advprop.runtime.errors import DataError

# Nothing here needs AutoGraph, whose conversion takes most of the time until the first
# batch.
_as_it_is = tf.autograph.experimental.do_not_convert


def make_options() -> tf.data.Options:
    """Returns how `tf.data` is to run our input pipelines: in order, and each as it is,
    since it picks its own part of the data already.
    """
    options = tf.data.Options()
    options.deterministic = True
    # Images are processed in parallel already; an operation split over threads only
    # costs more.
    options.threading.max_intra_op_parallelism = 1
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def batch_records(
    stream: RecordStream,
    num_classes: Optional[int],
    first_position: int,
    batch_size: int,
    process: Callable,
    *,
    process_batch: Optional[Callable] = None,
    num_examples: Optional[int] = None,
    blank: Optional[Dict[str, tf.Tensor]] = None,
) -> tf.data.Dataset:
    """Maps `process(encoded, label, position)` over the stream, in order and in
    parallel, and batches the results.

    Args:
        num_classes: labels from it on are bad; None takes any.
        first_position: in the stream; 0 if `num_examples` is given.
        process: one image's bytes (scalar string), label (scalar int32) and position
            (scalar int64) to a dict of tensors of static shapes.
        process_batch: (position of the batch's first element, batch) to the batch as it
            leaves; None leaves it alone.
        num_examples: how many positions there are, those after them being blanks
            without end; None: all.
        blank: what `process` gives for a blank.
    """

    def process_element(position, address):
        file, record, row = address
        # A record missing from its file's stream is asked for once more by its address:
        # a neighbour, or the network, may have been at fault.
        row = tf.cond(
            tf.equal(tf.strings.length(row), 0),
            lambda: call_python(stream.reread, [file, record], row=tf.TensorSpec([], tf.string))[0],
            lambda: row,
        )
        encoded, label = records.parse(row, stream.split)
        upper = tf.int32.max if num_classes is None else num_classes
        with tf.control_dependencies(
            [tf.debugging.Assert((label >= 0) & (label < upper), ["label", label])]
        ):
            return position, process(encoded, tf.identity(label), position)

    def process_positioned_batch(positions, batch):
        return positions[0], batch if process_batch is None else process_batch(positions[0], batch)

    elements = stream.elements(tf.constant(first_position, tf.int64))
    if num_examples is not None:
        elements = elements.take(num_examples)
    results = elements.map(
        _as_it_is(process_element), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    if num_examples is not None:
        blanks = tf.data.Dataset.counter(tf.constant(num_examples, tf.int64))
        results = results.concatenate(blanks.map(lambda position: (position, dict(blank))))
    batches = results.batch(batch_size, drop_remainder=True).map(
        _as_it_is(process_positioned_batch), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

    def complain(first: np.ndarray) -> bool:
        last = int(first) + batch_size
        if num_examples is not None:
            last = min(last, num_examples)
        raise _find_bad_record(stream, num_classes, int(first), last)

    return _until_failure(batches.prefetch(tf.data.AUTOTUNE), first_position, batch_size, complain)


def _until_failure(
    batches: tf.data.Dataset, first_position: int, batch_size: int, complain: Callable
) -> tf.data.Dataset:
    """Takes (first position, batch), yields the batches; calls `complain(its position)` where
    one fails.

    TensorFlow's datasets do not say which element failed. So a marker, which cannot
    fail, follows every batch: two markers in a row mean a failure between them. Without
    one, this costs a comparison per batch.
    """
    nothing = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), batches.element_spec
    )
    markers = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), nothing[1])).repeat()
    turns = tf.data.Dataset.from_tensor_slices(tf.constant([0, 1], tf.int64)).repeat()
    both = tf.data.Dataset.choose_from_datasets(
        [batches, markers], turns, stop_on_empty_dataset=True
    ).ignore_errors()

    def watch(state, element):
        expected, after_marker = state
        position, batch = element
        is_marker = position < 0
        # A batch that starts elsewhere than where the last one ended has lost elements:
        # it counts as failed too.
        failed = tf.where(is_marker, after_marker, tf.not_equal(position, expected))
        is_good = tf.cond(
            failed,
            lambda: call_python(complain, [expected], is_good=tf.TensorSpec([], tf.bool))[0],
            lambda: tf.constant(True),
        )
        with tf.control_dependencies([is_good]):
            is_marker = tf.identity(is_marker)
        return (tf.where(is_marker, expected, expected + batch_size), is_marker), (is_marker, batch)

    start = (tf.constant(first_position, tf.int64), tf.constant(False))
    watched = both.scan(start, _as_it_is(watch)).filter(lambda is_marker, batch: ~is_marker)
    return watched.map(lambda is_marker, batch: batch)


def _find_bad_record(
    stream: RecordStream, num_classes: Optional[int], first: int, last: int
) -> DataError:
    """Returns what is wrong with the first bad record at the positions first … last − 1."""
    split = stream.split
    # None at all after the end, where a cancelled read-ahead asks: `take` of -1 is everything.
    for file, record in stream.identify(first, max(last - first, 0)):
        error = records.find_problem(split, file, record, num_classes)
        if error is not None:
            hint = ""
            if split.is_official:
                command = f"prepare --check={os.path.dirname(split.files[file])}"
                hint = f" `python -m efficientnet_advprop.{command}` finds all such records."
            return DataError(f"{error.reason.rstrip('.')}.{hint}", error.path, error.record)
    return DataError(
        f"records {first} to {last - 1} of the stream could not be processed, "
        "yet each is good by itself."
    )
