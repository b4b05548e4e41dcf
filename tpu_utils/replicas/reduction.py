"""Sums, means and exchanges over the replicas that run a step together.

Usage:

    mean = reduction.mean_over_replicas(moments, group_size=8)    # in a replica of any strategy
"""

from typing import Optional, Sequence

import tensorflow as tf

from tpu_utils.replicas import replica_runtime


def sum_over_replicas(
    tensors: Sequence[tf.Tensor], group_size: Optional[int] = None
) -> list[tf.Tensor]:
    """The sums of `tensors` over groups of replicas, in as few exchanges as possible.

    The function is differentiable: the gradient of a sum is the sum of the gradients of
    the group.

    Args:
        tensors: tensors of a dtype that can be summed, each with the same static shape
            on every replica.
        group_size: the number of replicas with consecutive indices that sum together.
            It must divide the number of replicas. None: all replicas.

    Returns:
        Tensors with the same shapes and dtypes, equal on all replicas of a group. For
        groups of one, the given tensors.

    Raises:
        ValueError: `group_size` does not divide the number of replicas, or the strategy
            cannot reduce at this point of the program.
    """
    replicas = replica_runtime.current()
    group_size = _checked(group_size, replicas.num_replicas)
    if group_size == 1:
        return list(tensors)

    @tf.custom_gradient
    def total(*tensors):
        return replicas.sum_in_groups(
            tensors, group_size
        ), lambda *upstream: replicas.sum_in_groups(upstream, group_size)

    return list(total(*tensors))


def mean_over_replicas(tensor: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
    """The mean of a float tensor over groups of replicas.

    Arguments, gradient and errors are those of `sum_over_replicas`.
    """
    count = _checked(group_size, replica_runtime.current().num_replicas)
    return sum_over_replicas([tensor], group_size)[0] / count if count > 1 else tensor


def exchange_over_replicas(tensor: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
    """Distributes the rows of `tensor` over a group of replicas (all-to-all).

    The rows are cut into equal parts; the i-th part goes to the i-th replica of the
    group. No gradient flows through the exchange.

    Args:
        tensor: [batch, …] with a static shape, the same on every replica.
        group_size: the number of replicas with consecutive indices that exchange. It
            must divide the number of replicas and the batch. None: all replicas.

    Returns:
        A tensor of the same shape with equally many rows of each replica of the group,
        ordered by replica. For groups of one, `tensor` itself.

    Raises:
        ValueError: `group_size` does not divide both numbers.
    """
    group_size = _checked(group_size, replica_runtime.current().num_replicas)
    if tensor.shape[0] is None or tensor.shape[0] % group_size:
        raise ValueError(
            f"`group_size` is {group_size}, but must divide the {tensor.shape[0]} rows that are "
            "exchanged."
        )
    return (
        tensor
        if group_size == 1
        else tf.stop_gradient(replica_runtime.current().exchange_in_groups(tensor, group_size))
    )


def _checked(group_size: Optional[int], count: int) -> int:
    if group_size is None:
        return count
    if group_size < 1 or count % group_size:
        raise ValueError(
            f"`group_size` is {group_size}, but must divide the {count} "
            f"replica{'s'[: count > 1]} that run the step; take 1 (each replica alone), "
            f"{count} (all together) or another divisor."
        )
    return group_size
