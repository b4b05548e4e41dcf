"""How `tf.data` is to run our input pipelines."""

import tensorflow as tf


def make_options() -> tf.data.Options:
    """In order, and each input pipeline as it is: it picks its own part of the data
    already.
    """
    options = tf.data.Options()
    options.deterministic = True
    # Images are processed in parallel already; an operation split over threads only
    # costs more.
    options.threading.max_intra_op_parallelism = 1
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
