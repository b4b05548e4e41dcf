"""Reductions over the replicas that run a step together; the one place that knows how they are done.

    mean = reduction.mean_over_replicas(moments, group_size=8)    # in a replica of any strategy
    with reduction.use(environment):                              # trace a step as if it ran somewhere else
        step.get_concrete_function(batch)

What runs the replicas is an `Environment`: the strategy of the replica that asks, unless `use` says otherwise.
"""

import contextlib
from typing import Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf


class Environment:
    """The replicas of a step, numbered from 0, and how they exchange tensors. This one is the `tf.distribute` strategy's.

    A subclass describes other replicas: it overrides all of the below. Every operation is done by all replicas at the same
    point of the program, with tensors of the same static shapes. Gradients are `sum_over_replicas`'s business, not its own.
    """

    @property
    def num_replicas(self) -> int:
        """How many replicas run the current step; 1 outside a step."""
        context = tf.distribute.get_replica_context()
        return 1 if context is None else context.num_replicas_in_sync

    @property
    def replica_id(self) -> tf.Tensor:
        """The number of this replica among them, int32 scalar; 0 outside a step."""
        context = tf.distribute.get_replica_context()
        return tf.constant(0) if context is None else tf.cast(context.replica_id_in_sync_group, tf.int32)

    @property
    def reduces_in_loops(self) -> bool:
        """Whether the operations below may stand in a `tf.while_loop`. Strategies that meet in Python (`merge_call`) cannot."""
        return self.num_replicas == 1 or _on_tpu()

    @property
    def executes_in_order(self) -> bool:
        """Whether a replica's device does one operation at a time anyway, so that to prescribe an order costs nothing."""
        return _on_tpu()

    def sum_in_groups(self, tensors: Sequence[tf.Tensor], group_size: int) -> list[tf.Tensor]:
        """The sum of each of `tensors` over this replica's group: `group_size` (> 1) replicas of consecutive numbers.

        TPUs reduce in groups. Elsewhere every group has a row of its own in one reduction over all, `num_replicas / group_size`
        times as large.
        """
        num_groups = self.num_replicas // group_size
        if _on_tpu():
            groups = np.arange(self.num_replicas, dtype=np.int32).reshape(num_groups, group_size)
            return [tf.raw_ops.CrossReplicaSum(input=tensor, group_assignment=groups) for tensor in tensors]
        if num_groups == 1:
            return self._sum_over_all(tensors)
        group = self.replica_id // group_size

        def in_row(tensor):
            rows = tf.one_hot(group, num_groups, dtype=tensor.dtype)
            return tf.reshape(rows, [-1] + [1] * tensor.shape.rank) * tensor

        return [total[group] for total in self._sum_over_all([in_row(tensor) for tensor in tensors])]

    def exchange_in_groups(self, tensor: tf.Tensor, group_size: int) -> tf.Tensor:
        """Cuts `tensor` [group_size · n, …] into `group_size` (> 1) parts and sends the i-th to the i-th replica of this one's
        group; the same shape, made of one part of each of them, in their order."""
        num_groups = self.num_replicas // group_size
        if _on_tpu():
            groups = np.arange(self.num_replicas, dtype=np.int32).reshape(num_groups, group_size)
            return tf.raw_ops.AllToAll(
                input=tensor, group_assignment=groups, concat_dimension=0, split_dimension=0, split_count=group_size
            )
        # Bytes cannot be gathered; float16 holds them exactly.
        sent = tf.cast(tensor, tf.float16) if tensor.dtype.size == 1 else tensor
        everyones = tf.distribute.get_replica_context().all_gather(sent[None], axis=0)  # [num_replicas, group_size · n, …]
        first, place = self.replica_id // group_size * group_size, self.replica_id % group_size
        size = tensor.shape[0] // group_size
        parts = everyones[first : first + group_size, place * size : (place + 1) * size]
        return tf.cast(tf.reshape(parts, tensor.shape), tensor.dtype)

    def _sum_over_all(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        try:
            return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            raise ValueError(
                f"{type(context.strategy).__name__} cannot reduce over its {self.num_replicas} replicas inside a loop. "
                "Where it is an attack with batch statistics, take `statistics`='running' or `num_steps`=1, or batch norms "
                "of `group_size`=1."
            ) from error


def _on_tpu() -> bool:
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


_environment = Environment()


@contextlib.contextmanager
def use(environment: Environment) -> Iterator[Environment]:
    """Lets the whole process reduce in `environment` while the context lasts: when tracing, not when running."""
    global _environment
    before, _environment = _environment, environment
    try:
        yield environment
    finally:
        _environment = before


def num_replicas() -> int:
    """How many replicas run the current step; 1 outside a step."""
    return _environment.num_replicas


def replica_id() -> tf.Tensor:
    """The number of this replica among them, int32 scalar; 0 outside a step."""
    return _environment.replica_id


def reduces_in_loops() -> bool:
    """Whether a reduction may stand in a `tf.while_loop`."""
    return _environment.reduces_in_loops


def executes_in_order() -> bool:
    """Whether a replica's device does one operation at a time anyway, so that to prescribe an order costs nothing."""
    return _environment.executes_in_order


def sum_over_replicas(tensors: Sequence[tf.Tensor], group_size: Optional[int] = None) -> list[tf.Tensor]:
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
    environment = _environment
    group_size = _checked(group_size, environment.num_replicas)
    if group_size == 1:
        return list(tensors)

    @tf.custom_gradient
    def total(*tensors):
        return environment.sum_in_groups(tensors, group_size), lambda *upstream: environment.sum_in_groups(upstream, group_size)

    return list(total(*tensors))


def mean_over_replicas(tensor: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
    """The mean of a float tensor over groups of replicas; arguments, gradient and errors as those of `sum_over_replicas`."""
    count = _checked(group_size, num_replicas())
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
    group_size = _checked(group_size, num_replicas())
    if tensor.shape[0] is None or tensor.shape[0] % group_size:
        raise ValueError(f"`group_size` is {group_size}, but must divide the {tensor.shape[0]} rows that are exchanged.")
    return tensor if group_size == 1 else tf.stop_gradient(_environment.exchange_in_groups(tensor, group_size))


def _checked(group_size: Optional[int], count: int) -> int:
    if group_size is None:
        return count
    if group_size < 1 or count % group_size:
        raise ValueError(
            f"`group_size` is {group_size}, but must divide the {count} replica{'s'[: count > 1]} that run the step; take 1 "
            f"(each replica alone), {count} (all together) or another divisor."
        )
    return group_size
