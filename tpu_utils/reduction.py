"""Sums, means and exchanges over the replicas that run a step together."""

from typing import Optional, Sequence

import tensorflow as tf

from tpu_utils import replica_runtime


def sum_over_replicas(
    tensors: Sequence[tf.Tensor], group_size: Optional[int] = None
) -> list[tf.Tensor]:
    """Returns the sums of `tensors` over groups of `group_size` replicas with consecutive
    indices (None: over all), in as few exchanges as can be.

    The gradient of a sum is the sum of the gradients of the group. Every tensor has the same
    static shape on all replicas. Raises a `ValueError` if `group_size` does not divide their
    number, or the strategy cannot reduce at this point of the program.
    """
    replicas = replica_runtime.current()
    group_size = _checked(group_size, replicas.num_replicas)
    if group_size == 1:
        return list(tensors)

    def total(*values):
        return replicas.sum_in_groups(values, group_size)

    return list(tf.custom_gradient(lambda *values: (total(*values), total))(*tensors))


def mean_over_replicas(tensor: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
    """Returns the mean of a float tensor over groups, as `sum_over_replicas`."""
    count = _checked(group_size, replica_runtime.current().num_replicas)
    return sum_over_replicas([tensor], group_size)[0] / count if count > 1 else tensor


def exchange_over_replicas(tensor: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
    """Distributes the rows of `tensor` [batch, …] over groups of replicas, as
    `sum_over_replicas` makes them (all-to-all); no gradient.

    The i-th of `group_size` equal parts goes to the i-th replica of the group; the result
    has as many rows of each, ordered by replica. Raises a `ValueError` if `group_size` does
    not divide the number of replicas and the batch.
    """
    group_size = _checked(group_size, replica_runtime.current().num_replicas)
    if tensor.shape[0] is None or tensor.shape[0] % group_size:
        raise ValueError(
            f"`group_size` is {group_size}, but must divide the {tensor.shape[0]} rows that are "
            "exchanged."
        )
    if group_size == 1:
        return tensor
    return tf.stop_gradient(replica_runtime.current().exchange_in_groups(tensor, group_size))


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
