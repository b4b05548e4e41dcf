"""Reductions: against sums by hand, on logical CPUs; and that another runtime takes
them over, gradients included.
"""

import numpy as np
import pytest
import tensorflow as tf

from tpu_utils import reduction, replica_runtime

VALUES = np.arange(4 * 8 * 3, dtype=np.float32).reshape(4, 8, 3)  # replica, row, column


def on_replicas(strategy, function):
    """What `function` (own rows of `VALUES` → tensors) returns on each replica: arrays
    whose first axis is the replica.
    """

    @tf.function
    def run():
        return strategy.run(
            lambda: function(tf.gather(VALUES, replica_runtime.current().replica_id))
        )

    return [np.stack(strategy.experimental_local_results(result)) for result in run()]


def test_sums_means_exchanges_and_gradients_in_groups(four_replicas):
    def function(own):
        results = []
        for size in (1, 2, 4, None):
            with tf.GradientTape() as tape:
                tape.watch(own)
                total, twice = reduction.sum_over_replicas([own, 2.0 * own[0]], size)
                loss = tf.reduce_sum(tf.square(total))
            results += [
                total,
                twice,
                tape.gradient(loss, own),
                reduction.mean_over_replicas(own, size),
            ]
            results.append(reduction.exchange_over_replicas(tf.cast(own, tf.uint8), size))
        return results

    found = iter(on_replicas(four_replicas, function))
    for size in (1, 2, 4, 4):
        groups = VALUES.reshape(4 // size, size, 8, 3)
        sums = np.broadcast_to(groups.sum(1, keepdims=True), groups.shape).reshape(VALUES.shape)
        np.testing.assert_array_equal(next(found), sums)
        np.testing.assert_array_equal(next(found), 2.0 * sums[:, 0])
        # Every member's loss depends on each one's values.
        np.testing.assert_array_equal(next(found), size * 2.0 * sums)
        np.testing.assert_array_equal(next(found), sums / size)
        # Group, sender, receiver, row, column.
        parts = groups.reshape(4 // size, size, size, 8 // size, 3)
        np.testing.assert_array_equal(next(found), parts.swapaxes(1, 2).reshape(VALUES.shape))


def test_outside_a_step_there_is_one_replica():
    alone = replica_runtime.current()
    assert alone.num_replicas == 1 and int(alone.replica_id) == 0 and alone.reduces_in_loops
    assert reduction.sum_over_replicas([1.0, 2.0]) == [1.0, 2.0]


class Copies(replica_runtime.ReplicaRuntime):
    """As if this replica had `num_replicas` − 1 copies of itself: known sums, and a
    note of what was asked for.
    """

    num_replicas, replica_id, reduces_in_loops = 6, 4, True

    def __init__(self):
        self.asked = []

    def sum_in_groups(self, tensors, group_size):
        self.asked.append(group_size)
        # No gradient of its own.
        return [tf.stop_gradient(tensor * group_size) for tensor in tensors]

    def exchange_in_groups(self, tensor, group_size):
        return tensor[::-1]


def test_another_environment_takes_over_while_it_lasts():
    with replica_runtime.use(Copies()) as copies:

        @tf.function(jit_compile=True)
        def compute(own):
            with tf.GradientTape() as tape:
                tape.watch(own)
                loss = tf.reduce_sum(reduction.sum_over_replicas([own], 3)[0])
            return (
                loss,
                tape.gradient(loss, own),
                reduction.mean_over_replicas(own),
                reduction.exchange_over_replicas(own),
            )

        loss, gradient, mean, exchanged = compute(tf.range(6.0))
        assert (replica_runtime.current().num_replicas, replica_runtime.current().replica_id) == (
            6,
            4,
        )
    assert loss == 3 * 15.0 and copies.asked == [3, 3, 6]
    np.testing.assert_array_equal(gradient, np.full(6, 3.0))
    np.testing.assert_array_equal(mean, np.arange(6.0))
    np.testing.assert_array_equal(exchanged, np.arange(6.0)[::-1])
    assert replica_runtime.current().num_replicas == 1


def test_refused_groups_are_named(two_replicas):
    with replica_runtime.use(Copies()):
        with pytest.raises(
            ValueError, match="`group_size` is 4, but must divide the 6 replicas that run the step"
        ):
            reduction.sum_over_replicas([tf.zeros([])], 4)
        with pytest.raises(ValueError, match="`group_size` is 3, but must divide the 8 rows"):
            reduction.exchange_over_replicas(tf.zeros([8]), 3)

    def looping(own):
        return [
            tf.while_loop(
                lambda x: x < 9.0, lambda x: reduction.sum_over_replicas([x]), [own[0, 0] + 1.0]
            )
        ]

    with pytest.raises(
        ValueError, match="MirroredStrategy cannot reduce over its 2 replicas inside a loop"
    ):
        on_replicas(two_replicas, looping)
