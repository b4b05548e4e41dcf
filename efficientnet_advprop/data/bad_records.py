"""What happens to the records of a stream that cannot be used: found, named, replaced
up to a number, and an error beyond it.

    bad = BadRecords(stream, num_classes=1000, allowed=10)
    batches = batch_good_records(bad, first_position=0, batch_size=256, process=process)

One that is damaged, cannot be decoded, or has a label out of range costs nothing until
it comes: no image is checked twice.
"""

import threading
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.data import records
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.data.record_streams import RecordStream


class BadRecords:
    """What one dataset knows about its bad records: finds them, counts them, complains
    when there are too many.
    """

    def __init__(self, stream: RecordStream, num_classes: Optional[int], allowed: int):
        self.stream, self.num_classes, self.allowed = stream, num_classes, allowed
        self._addresses: List[Tuple[int, int]] = []
        self._resume: Dict[int, int] = {}  # by iteration: where its next segment starts
        self._complaint: Optional[records.DataError] = None  # what ended the iteration
        self._lock = threading.Lock()

    def start(self, first_position: np.ndarray) -> int:
        """Begins an iteration over the dataset; the number that it goes by."""
        with self._lock:
            self._resume[len(self._resume)] = int(first_position)
            return len(self._resume) - 1

    def start_segment(self, iteration: np.ndarray) -> Tuple[int, np.ndarray]:
        """From where a segment of an iteration reads, and the addresses that it must
        not touch: int64 [n, 2].

        Raises:
            records.DataError: what has ended an iteration ends all that follow.
        """
        with self._lock:
            if self._complaint is not None:
                raise self._complaint.with_traceback(None)
            addresses = np.asarray(self._addresses, np.int64).reshape(-1, 2)
            return self._resume[int(iteration)], addresses

    def end_segment(self, iteration: np.ndarray, first: np.ndarray, last: np.ndarray) -> bool:
        """Looks for the bad records at the positions first … last - 1, one of which at
        least failed.

        Returns:
            True, to go on from `first`.

        Raises:
            records.DataError: ends the iteration: too many bad records, or a failure
                without any.
        """
        first, last = int(first), int(last)
        num_new = 0
        for address in self.stream.identify(first, last - first):
            if self._complaint is not None:
                raise self._complaint.with_traceback(None)
            error = self._explain(*address)
            with self._lock:
                if error is None or address in self._addresses:
                    continue
                self._addresses.append(address)
                num_new, number = num_new + 1, len(self._addresses)
            if number > self.allowed:
                hint = (
                    f"This is bad record {number}, and `config.data.max_bad_records` is"
                    f" {self.allowed}."
                    if self.allowed
                    else (
                        "Repair it, or let such records be passed over with"
                        " `--config.data.max_bad_records=N`."
                    )
                )
                self._complaint = records.DataError(
                    f"{error.reason.rstrip('.')}. {hint}", error.path, error.record
                )
                raise self._complaint
            logging.warning(
                "Passed over bad record %d of at most %d: %s", number, self.allowed, error
            )
        if not num_new:
            self._complaint = records.DataError(
                f"records {first} to {last - 1} of the stream could not be processed, "
                "yet each is good by itself."
            )
            raise self._complaint
        with self._lock:
            self._resume[int(iteration)] = first
        return True

    def _explain(self, file: int, record: int) -> Optional[records.DataError]:
        split = self.stream.split
        path = split.files[file]
        try:
            reason = records.explain_bad_record(
                records.read_record(path, record), split, self.num_classes
            )
        except records.DataError as error:
            return error
        except (tf.errors.OpError, OSError) as error:
            return records.DataError(f"it cannot be read ({error})", path, record)
        return None if reason is None else records.DataError(reason, path, record)

    def replace(self, file: np.ndarray, record: np.ndarray) -> bytes:
        """The next good record of the same file (after its last comes its first)."""
        file, record = int(file), int(record)
        count = self.stream.split.counts[file]
        for step in range(1, count):
            candidate = (record + step) % count
            if self._explain(file, candidate) is None:
                return records.read_record(self.stream.split.files[file], candidate)
        raise records.DataError(
            "no record of the file is good.", self.stream.split.files[file], record
        )


def _until_failure(
    bad: BadRecords,
    iteration: tf.Tensor,
    batches: tf.data.Dataset,
    start: tf.Tensor,
    batch_size: int,
    num_examples: Optional[int],
) -> tf.data.Dataset:
    """Of (first position, batch), the batches up to the first that fails; that one's
    positions are then `bad`'s business.

    TensorFlow's datasets do not say which element failed. So a marker, which cannot
    fail, follows every batch: two markers in a row mean a failure between them. Without
    one, this costs a comparison per batch.
    """
    marker = tf.nest.map_structure(
        lambda spec: tf.zeros(spec.shape, spec.dtype), batches.element_spec
    )
    markers = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), marker[1])).repeat()
    turns = tf.data.Dataset.from_tensor_slices(tf.constant([0, 1], tf.int64)).repeat()
    both = tf.data.Dataset.choose_from_datasets(
        [batches, markers], turns, stop_on_empty_dataset=True
    ).ignore_errors()

    @tf.autograph.experimental.do_not_convert
    def watch(state, element):
        expected, after_marker = state
        position, batch = element
        is_marker = position < 0
        # A batch that starts elsewhere than where the last one ended has lost elements:
        # it counts as failed too.
        failed = tf.where(is_marker, after_marker, tf.not_equal(position, expected))

        def end_segment():
            last = (
                expected + batch_size
                if num_examples is None
                else tf.minimum(expected + batch_size, num_examples)
            )
            return call_python(
                bad.end_segment, [iteration, expected, last], has_ended=tf.TensorSpec([], tf.bool)
            )[0]

        with tf.control_dependencies([tf.cond(failed, end_segment, lambda: tf.constant(True))]):
            failed = tf.identity(failed)
        return (tf.where(is_marker, expected, expected + batch_size), is_marker), (
            failed,
            is_marker,
            batch,
        )

    watched = both.scan((start, tf.constant(False)), watch).take_while(
        lambda failed, is_marker, batch: ~failed
    )
    return watched.filter(lambda failed, is_marker, batch: ~is_marker).map(
        lambda failed, is_marker, batch: batch
    )


def batch_good_records(
    bad: BadRecords,
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

    Where a batch fails, the segment of the stream ends: Python looks for the bad
    records among the batch's positions and either complains or notes them, and the next
    segment starts at the same position, with the noted ones replaced. What a position
    yields depends on the files alone, never on what failed before.

    Args:
        first_position: in the stream.
        batch_size: elements; batches have static shapes.
        process: one image's bytes (scalar string), label (scalar int32) and position
            (scalar int64) to a dict of tensors of static shapes.
        process_batch: (position of the batch's first element, batch) to the batch as it
            leaves; None leaves it alone.
        num_examples: how many positions there are, those after them being blanks
            without end; None: all.
        blank: what takes the place of a bad record; None: another record of its file
            does.
    """
    stream, split = bad.stream, bad.stream.split
    scalar, row_spec = tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)

    def parse(row: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
        encoded, label = records.parse(row, split)
        upper = bad.num_classes if bad.num_classes is not None else tf.int32.max
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.logical_and(label >= 0, label < upper), ["label", label])]
        ):
            return encoded, tf.identity(label)

    def process_record(position, file, record, row):
        # A record missing from its file's stream is asked for once more by its address:
        # a neighbour, or the network, may have been at fault.
        row = tf.cond(
            tf.equal(tf.strings.length(row), 0),
            lambda: call_python(stream.reread, [file, record], row=row_spec)[0],
            lambda: row,
        )
        return process(*parse(row), position)

    # Nothing here needs AutoGraph, whose conversion would take most of the time until
    # the first batch.
    @tf.autograph.experimental.do_not_convert
    def segment(iteration: tf.Tensor) -> tf.data.Dataset:
        start, avoided = call_python(
            bad.start_segment, [iteration], start=scalar, avoided=tf.TensorSpec([None, 2], tf.int64)
        )

        @tf.autograph.experimental.do_not_convert
        def process_element(position, address):
            file, record, row = address
            if not bad.allowed:
                return position, process_record(position, file, record, row)
            is_bad = tf.reduce_any(
                tf.reduce_all(tf.equal(avoided, tf.stack([file, record])), axis=1)
            )
            if blank is not None:
                return position, tf.cond(
                    is_bad, lambda: dict(blank), lambda: process_record(position, file, record, row)
                )
            row = tf.cond(
                is_bad,
                lambda: call_python(bad.replace, [file, record], row=row_spec)[0],
                lambda: row,
            )
            return position, process_record(position, file, record, row)

        @tf.autograph.experimental.do_not_convert
        def process_positioned_batch(positions, batch):
            return positions[0], (
                batch if process_batch is None else process_batch(positions[0], batch)
            )

        elements = stream.elements(start)
        if num_examples is not None:
            elements = elements.take(tf.maximum(num_examples - start, 0))
        results = elements.map(
            process_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        if num_examples is not None:
            blanks = tf.data.Dataset.counter(tf.maximum(tf.constant(num_examples, tf.int64), start))
            results = results.concatenate(blanks.map(lambda position: (position, dict(blank))))
        batches = results.batch(batch_size, drop_remainder=True).map(
            process_positioned_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return _until_failure(
            bad, iteration, batches.prefetch(tf.data.AUTOTUNE), start, batch_size, num_examples
        )

    @tf.autograph.experimental.do_not_convert
    def iterate(first: tf.Tensor) -> tf.data.Dataset:
        (iteration,) = call_python(bad.start, [first], iteration=scalar)
        return tf.data.Dataset.from_tensors(iteration).repeat().flat_map(segment)

    return tf.data.Dataset.from_tensors(tf.constant(first_position, tf.int64)).flat_map(iterate)
