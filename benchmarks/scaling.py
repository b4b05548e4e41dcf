"""Measures the overhead of replicas: two logical ones against one that uses both cores.

    # on an idle machine with two cores; the target is an efficiency of at least 90 %
    python benchmarks/scaling.py

Both run the trainer's step with the same global batch of uint8 images in the same
process, in turns; the result is the median of the rounds. Two replicas share the
processor's memory and caches just as one does. The loss therefore comes from the
replicas alone: a second graph, all-reduces through memory, and threads that wait for
each other.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.training import build


def make_update(strategy: tf.distribute.Strategy, arguments):
    """Returns a function that runs one update and waits for it."""
    config = ExperimentConfig()
    config.model.variant, config.model.compute_dtype = arguments.variant, "float32"
    config.training.method = arguments.method
    config.training.global_batch_size = arguments.batch
    with strategy.scope():
        state = build.make_state(config)
    train_step = build.make_step(
        config, state, build.make_learning_rate(config, steps_per_epoch=100.0, total_steps=1000)
    )
    whole = harness.random_batch(arguments.batch, arguments.image_size)
    share = arguments.batch // strategy.num_replicas_in_sync

    def part(context):
        first = context.replica_id_in_sync_group * share
        return {name: rows[first : first + share] for name, rows in whole.items()}

    batch = strategy.experimental_distribute_values_from_function(part)

    @tf.function
    def update(batch):
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM, strategy.run(train_step, (batch,))["clean_loss"], axis=None
        )

    return lambda: float(update(batch))


def main():
    arguments = harness.parse(
        __doc__,
        method=("advprop", "vanilla, advprop, …"),
        variant=("b0", "of the network"),
        image_size=(224, "pixels"),
        batch=(16, "images over all replicas"),
        rounds=(5, "measured steps of each"),
        replicas=(2, "of the second arrangement"),
    )
    devices = [tf.config.LogicalDeviceConfiguration()] * arguments.replicas
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategies = {
        1: tf.distribute.OneDeviceStrategy(names[0]),
        len(names): tf.distribute.MirroredStrategy(names),
    }
    updates = {count: make_update(strategy, arguments) for count, strategy in strategies.items()}
    medians = harness.median_by_turns(updates, arguments.rounds)
    for count, median in medians.items():
        print(
            f"replicas: {count}   {median:.3f} s per update of {arguments.batch} images,"
            f" {arguments.batch / median:.1f} images/s"
        )
    print(f"efficiency: {100 * medians[1] / medians[len(names)]:.0f} %")


if __name__ == "__main__":
    main()
