"""Measures how long TensorFlow takes to free iterators over batches
(`tpu_utils.batch_iterator`), and how long whoever used them waits for that.

    python benchmarks/freed_iterators.py                      # 40 of each kind, 1.5 s each
    python benchmarks/freed_iterators.py --number=20 --seconds=30

A late end is one that takes more than a tenth of a second.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import threading
import time

import tensorflow as tf

from tpu_utils.batch_iterator import BatchIterator

_LATE = 0.1  # seconds


def make_dataset(is_tuned: bool) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.enabled = is_tuned
    images = tf.data.Dataset.counter().map(
        lambda number: tf.cast(number, tf.float32) * tf.random.normal([100, 100]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return images.batch(16).prefetch(tf.data.AUTOTUNE).with_options(options)


def use(iterator, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        next(iterator)
        time.sleep(0.02)


def measure(batches, seconds: float) -> tuple[float, float]:
    """Returns the seconds until the iterator was freed, and those for which its user waited."""
    others = set(threading.enumerate())
    opened = BatchIterator(batches)
    with opened:
        use(opened.iterator, seconds)
        start = time.monotonic()
    waited = time.monotonic() - start
    for thread in set(threading.enumerate()) - others:
        thread.join()
    return time.monotonic() - start, waited


def main():
    arguments = harness.parse(
        __doc__,
        number=(40, "of iterators of each kind"),
        seconds=(1.5, "for which each is used"),
    )
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategies = {
        "no strategy": None,
        "one device": tf.distribute.OneDeviceStrategy("cpu:0"),
        "two replicas": tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]),
    }
    print(
        f"TensorFlow {tf.__version__}: {arguments.number} iterators of {arguments.seconds} s each"
    )
    for name, strategy in strategies.items():
        for is_tuned in (True, False):
            if strategy is None:
                batches = make_dataset(is_tuned)
            else:
                batches = strategy.distribute_datasets_from_function(
                    lambda _, is_tuned=is_tuned: make_dataset(is_tuned)
                )
            rounds = range(arguments.number)
            freed, waited = zip(*(measure(batches, arguments.seconds) for _ in rounds))
            late = sum(seconds > _LATE for seconds in freed)
            print(
                f"{name:12}  {'tuned' if is_tuned else 'not tuned':9}  {late:3} late, the longest"
                f" {max(freed):5.2f} s; its user waited {1000 * max(waited):.1f} ms at most",
                flush=True,
            )


if __name__ == "__main__":
    main()
