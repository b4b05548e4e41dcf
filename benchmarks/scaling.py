"""Measures the overhead of replicas: two logical ones against one that uses both cores.

Usage:

    # on an idle machine with two cores; the target is an efficiency of at least 90 %
    python benchmarks/scaling.py

Both run the trainer's step with the same global batch of uint8 images in the same
process, in turns; the result is the median of the rounds. Two replicas share the
processor's memory and caches just as one does. The loss therefore comes from the
replicas alone: a second graph, all-reduces through memory, and threads that wait for
each other.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import statistics
import time

import numpy as np
import tensorflow as tf
from absl import app, flags

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.training import build

_METHOD = flags.DEFINE_string("method", "advprop", "vanilla, advprop, …")
_VARIANT = flags.DEFINE_string("variant", "b0", "of the network")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "pixels")
_BATCH = flags.DEFINE_integer("batch", 16, "images over all replicas")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "measured steps of each")
_REPLICAS = flags.DEFINE_integer("replicas", 2, "of the second arrangement")


def make_update(strategy: tf.distribute.Strategy):
    """Returns a function that runs one update and waits for it."""
    num_replicas, rng = strategy.num_replicas_in_sync, np.random.RandomState(0)
    config = ExperimentConfig()
    config.model.variant, config.model.compute_dtype = _VARIANT.value, "float32"
    config.training.method, config.training.global_batch_size = _METHOD.value, _BATCH.value
    with strategy.scope():
        state = build.make_state(config)
    train_step = build.make_step(
        config, state, build.make_learning_rate(config, steps_per_epoch=100.0, total_steps=1000)
    )
    images = rng.randint(0, 256, [_BATCH.value, _IMAGE_SIZE.value, _IMAGE_SIZE.value, 3]).astype(
        np.uint8
    )
    labels = rng.randint(0, config.model.num_classes, [_BATCH.value]).astype(np.int32)
    share = _BATCH.value // num_replicas

    def part(context):
        own = slice(
            context.replica_id_in_sync_group * share, (context.replica_id_in_sync_group + 1) * share
        )
        return {"images": tf.constant(images[own]), "labels": tf.constant(labels[own])}

    batch = strategy.experimental_distribute_values_from_function(part)

    @tf.function
    def update(batch):
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM, strategy.run(train_step, (batch,))["clean_loss"], axis=None
        )

    return lambda: float(update(batch))


def main(_):
    devices = [tf.config.LogicalDeviceConfiguration()] * _REPLICAS.value
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    updates = {
        1: make_update(tf.distribute.OneDeviceStrategy(names[0])),
        len(names): make_update(tf.distribute.MirroredStrategy(names)),
    }
    seconds = {count: [] for count in updates}
    for round_number in range(_ROUNDS.value + 1):
        for count, update in updates.items():
            started = time.perf_counter()
            update()
            if round_number:  # the first one traces
                seconds[count].append(time.perf_counter() - started)
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    for count, median in medians.items():
        print(
            f"replicas: {count}   {median:.3f} s per update of {_BATCH.value} images,"
            f" {_BATCH.value / median:.1f} images/s"
        )
    print(f"efficiency: {100 * medians[1] / medians[len(names)]:.0f} %")


if __name__ == "__main__":
    app.run(main)
