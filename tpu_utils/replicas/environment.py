"""What runs a step: its replicas, how they exchange tensors, and what their device is good at. The one place that asks.

    environment.current().num_replicas                # in a replica of any strategy
    with environment.use(planned):                    # trace a step as if it ran somewhere else
        step.get_concrete_function(batch)

The current environment is the strategy of the replica that asks, unless `use` says otherwise. What is made of it: `reduction`,
`randomness`.
"""

import contextlib
import functools
from typing import Iterator, Sequence

import numpy as np
import tensorflow as tf


class Environment:
    """The replicas of a step, numbered from 0, and how they exchange tensors. This one is the `tf.distribute` strategy's.

    A subclass describes other replicas: it overrides all of the below. Every exchange is done by all replicas at the same
    point of the program, with tensors of the same static shapes. Gradients are `reduction`'s business, not its own.
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
        return (
            tf.constant(0)
            if context is None
            else tf.cast(context.replica_id_in_sync_group, tf.int32)
        )

    @property
    def reduces_in_loops(self) -> bool:
        """Whether the operations below may stand in a `tf.while_loop`. Strategies that meet in Python (`merge_call`) cannot."""
        return self.num_replicas == 1 or _on_tpu()

    @property
    def executes_in_order(self) -> bool:
        """Whether a replica's device does one operation at a time anyway, so that to prescribe an order costs nothing."""
        return _on_tpu()

    @property
    def compiles_parts(self) -> bool:
        """Whether a part of a step may be a program of XLA's own, by `jit_compile=True`.

        Not in a TensorFlow built for TPUs: it compiles whole steps, and has no XLA for the host that
        its exports, pictures and evaluations may run on.
        """
        return _host_has_xla()

    def sum_in_groups(self, tensors: Sequence[tf.Tensor], group_size: int) -> list[tf.Tensor]:
        """The sum of each of `tensors` over this replica's group: `group_size` (> 1) replicas of consecutive numbers.

        TPUs reduce in groups. Elsewhere every group has a row of its own in one reduction over all, `num_replicas / group_size`
        times as large.
        """
        num_groups = self.num_replicas // group_size
        if _on_tpu():
            groups = np.arange(self.num_replicas, dtype=np.int32).reshape(num_groups, group_size)
            return [
                tf.raw_ops.CrossReplicaSum(input=tensor, group_assignment=groups)
                for tensor in tensors
            ]
        if num_groups == 1:
            return self._sum_over_all(tensors)
        group = self.replica_id // group_size

        def in_row(tensor):
            rows = tf.one_hot(group, num_groups, dtype=tensor.dtype)
            return tf.reshape(rows, [-1] + [1] * tensor.shape.rank) * tensor

        return [
            total[group] for total in self._sum_over_all([in_row(tensor) for tensor in tensors])
        ]

    def exchange_in_groups(self, tensor: tf.Tensor, group_size: int) -> tf.Tensor:
        """Cuts `tensor` [group_size · n, …] into `group_size` (> 1) parts and sends the i-th to the i-th replica of this one's
        group; the same shape, made of one part of each of them, in their order."""
        num_groups = self.num_replicas // group_size
        if _on_tpu():
            groups = np.arange(self.num_replicas, dtype=np.int32).reshape(num_groups, group_size)
            return tf.raw_ops.AllToAll(
                input=tensor,
                group_assignment=groups,
                concat_dimension=0,
                split_dimension=0,
                split_count=group_size,
            )
        # Bytes cannot be gathered; float16 holds them exactly.
        sent = tf.cast(tensor, tf.float16) if tensor.dtype.size == 1 else tensor
        everyones = tf.distribute.get_replica_context().all_gather(
            sent[None], axis=0
        )  # [num_replicas, group_size · n, …]
        first, place = self.replica_id // group_size * group_size, self.replica_id % group_size
        size = tensor.shape[0] // group_size
        parts = everyones[first : first + group_size, place * size : (place + 1) * size]
        return tf.cast(tf.reshape(parts, tensor.shape), tensor.dtype)

    def random_words(self, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Random bits, int32 [count], a function of `seed` (int32 [2]) and of the kind of device; `count` is a multiple of 4.

        A TPU's own generator, which TensorFlow takes there unless told, needs a sixtieth of Philox's time (by the compiler's
        schedule 0.05 against 3 ms for 2.4 million words on a v3 core). All other devices draw Philox's bits, its blocks of
        four one beside the other.
        """
        if _on_tpu():
            return tf.random.stateless_uniform(
                [count], seed, None, None, tf.int32, alg="auto_select"
            )
        words = tf.random.stateless_uniform([count], seed, None, None, tf.int32, alg="philox")
        return tf.reshape(tf.transpose(tf.reshape(words, [-1, 4])), [-1])

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


@functools.cache
def _host_has_xla() -> bool:
    """Asked by a program of one addition; no list of devices or of build options tells."""
    with tf.init_scope(), tf.device("CPU:0"):
        try:
            tf.function(lambda number: number + 1.0, jit_compile=True)(tf.constant(0.0))
        except tf.errors.OpError:
            return False
    return True


_current = Environment()


def current() -> Environment:
    """What runs the step that is being traced."""
    return _current


@contextlib.contextmanager
def use(environment: Environment) -> Iterator[Environment]:
    """Lets the whole process ask `environment` while the context lasts: when tracing, not when running."""
    global _current
    before, _current = _current, environment
    try:
        yield environment
    finally:
        _current = before
