"""Reductions over the replicas that run a step together.

Usage:

    mean = reduction.mean_over_replicas(moments, group_size=8)    # in a replica of any strategy
"""

from typing import Optional, Sequence

import tensorflow as tf

from tpu_utils.replicas import replica_runtime


def sum_over_replicas(
    tensors: Sequence[tf.Tensor], group_size: Optional[int] = None
) -> list[tf.Tensor]:
    """The sums of `tensors` over groups of replicas, in as few exchanges as there can be; differentiable.

    Args:
        tensors: of a dtype with sums, each of the same static shape on every replica.
        group_size: replicas that add theirs together: those with consecutive numbers. It must divide their number; None: all.

    Returns:
        Tensors of the same shapes and dtypes, the same on all replicas of a group; the given ones for groups of one. The
        gradient of a sum is the sum of the group's gradients.

    Raises:
        ValueError: `group_size` does not divide the number of replicas, or the strategy cannot reduce here.
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
    """The mean of a float tensor over groups of replicas; arguments, gradient and errors as those of `sum_over_replicas`."""
    count = _checked(group_size, replica_runtime.current().num_replicas)
    return sum_over_replicas([tensor], group_size)[0] / count if count > 1 else tensor


def exchange_over_replicas(tensor: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
    """Deals the rows of `tensor` to a group of replicas: the i-th part of n rows goes to the i-th of them (all-to-all).

    Args:
        tensor: [batch, …] of static shape, the same on every replica.
        group_size: replicas with consecutive numbers; must divide their number and the batch; None: all.

    Returns:
        A tensor of the same shape with as many rows of each replica of the group, in the order of their numbers; `tensor`
        itself for groups of one. No gradient flows through.

    Raises:
        ValueError: `group_size` divides not both.
    """
    group_size = _checked(group_size, replica_runtime.current().num_replicas)
    if tensor.shape[0] is None or tensor.shape[0] % group_size:
        raise ValueError(
            f"`group_size` is {group_size}, but must divide the {tensor.shape[0]} rows that are exchanged."
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
            f"`group_size` is {group_size}, but must divide the {count} replica{'s'[: count > 1]} that run the step; take 1 "
            f"(each replica alone), {count} (all together) or another divisor."
        )
    return group_size
