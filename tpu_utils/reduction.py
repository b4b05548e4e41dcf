"""Reductions over the replicas that run a step together; the one place that knows how a strategy does them."""

from typing import Sequence

import tensorflow as tf


def num_replicas() -> int:
    """How many replicas run the current step; 1 outside a step."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_id() -> tf.Tensor:
    """The number of this replica among them, int32 scalar; 0 outside a step."""
    context = tf.distribute.get_replica_context()
    return tf.constant(0) if context is None else tf.cast(context.replica_id_in_sync_group, tf.int32)


def mean_over_replicas(tensor: tf.Tensor) -> tf.Tensor:
    """The mean of `tensor` over all replicas, differentiable, the same on each of them.

    Args:
        tensor: any float tensor, of the same shape on every replica.

    Returns:
        A tensor of the same shape and dtype; `tensor` itself where there is one replica.
    """
    if num_replicas() == 1:
        return tensor
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, tensor)


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
    """The sums of `tensors` over all replicas, in as few exchanges as the strategy can; the same on each replica."""
    if num_replicas() == 1:
        return tensors
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)
