"""What a training step asks about the replicas that run it: number, own index,
collectives, device.

`current()` describes the `tf.distribute` strategy of the calling replica, unless `use`
has put another one in its place, to trace a step as if it ran there.
"""

import contextlib
import functools
from typing import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tpu_utils.platforms import without_noise


class ReplicaRuntime:
    """The replicas of the current strategy, numbered from 0, and how they exchange tensors.

    A subclass describes other replicas and overrides all public members. All replicas
    must call an exchange at the same point of the program, with the same static shapes.
    The exchanges define no gradients; `reduction` does.
    """

    @property
    def num_replicas(self) -> int:
        """The number of replicas that run the current step; 1 outside a step."""
        context = tf.distribute.get_replica_context()
        return 1 if context is None else context.num_replicas_in_sync

    @property
    def replica_id(self) -> tf.Tensor:
        """The index of this replica, int32 scalar; 0 outside a step."""
        context = tf.distribute.get_replica_context()
        index = 0 if context is None else context.replica_id_in_sync_group
        return tf.cast(index, tf.int32)

    @property
    def reduces_in_loops(self) -> bool:
        """Whether the exchanges work inside a `tf.while_loop`: not with strategies that
        synchronise their replicas in Python (`merge_call`).
        """
        return self.num_replicas == 1 or _on_tpu()

    @property
    def executes_in_order(self) -> bool:
        """Whether the device runs one operation at a time: then an order costs nothing."""
        return _on_tpu()

    @property
    def compiles_parts(self) -> bool:
        """Whether XLA can compile a part of a step on its own (`jit_compile=True`).

        A TensorFlow built for TPUs cannot: it compiles whole steps for the TPU, and
        contains no XLA for the host, where exports, pictures and evaluations may run.
        """
        return _host_has_xla()

    def sum_in_groups(self, tensors: Sequence[tf.Tensor], group_size: int) -> list[tf.Tensor]:
        """Returns the sum of each tensor over the `group_size` (> 1) replicas with
        consecutive indices to which this one belongs.
        """
        # TPUs reduce within groups. On other devices each group writes into its own row of
        # a larger tensor, which all replicas sum together.
        num_groups = self.num_replicas // group_size
        if _on_tpu():
            groups = self._in_groups(group_size)
            return [tf.raw_ops.CrossReplicaSum(input=t, group_assignment=groups) for t in tensors]
        if num_groups == 1:
            return self._sum_over_all(tensors)
        group = self.replica_id // group_size

        def in_row(tensor):
            rows = tf.one_hot(group, num_groups, dtype=tensor.dtype)
            return tf.reshape(rows, [-1] + [1] * tensor.shape.rank) * tensor

        return [total[group] for total in self._sum_over_all(list(map(in_row, tensors)))]

    def exchange_in_groups(self, tensor: tf.Tensor, group_size: int) -> tf.Tensor:
        """Sends the i-th of `group_size` (> 1) parts of a tensor to the i-th replica of the
        group; returns the received parts, ordered by their senders.
        """
        if _on_tpu():
            return tf.raw_ops.AllToAll(
                input=tensor,
                group_assignment=self._in_groups(group_size),
                concat_dimension=0,
                split_dimension=0,
                split_count=group_size,
            )
        # Tensors of one byte per element cannot be gathered; float16 holds them exactly.
        sent = tf.cast(tensor, tf.float16) if tensor.dtype.size == 1 else tensor
        # [num_replicas, group_size · n, …]
        gathered = tf.distribute.get_replica_context().all_gather(sent[None], axis=0)
        first = self.replica_id // group_size * group_size
        place = self.replica_id % group_size
        size = tensor.shape[0] // group_size
        parts = gathered[first : first + group_size, place * size : (place + 1) * size]
        return tf.cast(tf.reshape(parts, tensor.shape), tensor.dtype)

    def random_words(self, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns random bits, int32 [count], that `seed` and the kind of device determine;
        `count` is a multiple of 4.
        """
        # A TPU's own generator needs a sixtieth of the time of Philox: 0.05 ms instead of
        # 3 ms for 2.4 million words on a v3 core, according to the compiler's schedule.
        if _on_tpu():
            return tf.random.stateless_uniform(
                [count], seed, None, None, tf.int32, alg="auto_select"
            )
        words = tf.random.stateless_uniform([count], seed, None, None, tf.int32, alg="philox")
        # The first words of all blocks of four come first.
        return tf.reshape(tf.transpose(tf.reshape(words, [-1, 4])), [-1])

    def _in_groups(self, group_size: int) -> np.ndarray:
        return np.arange(self.num_replicas, dtype=np.int32).reshape(-1, group_size)

    def _sum_over_all(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        try:
            return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            raise ValueError(
                f"{type(context.strategy).__name__} cannot reduce over its {self.num_replicas} "
                "replicas inside a loop. If the loop is an attack with batch statistics, use "
                "`statistics`='running', `num_steps`=1, or batch norms with `group_size`=1."
            ) from error


def _on_tpu() -> bool:
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


@functools.cache
def _host_has_xla() -> bool:
    """Compiles one addition to find out; TensorFlow lists this property nowhere."""
    # XLA tells of the first compilation of a process, whatever TF_CPP_MIN_LOG_LEVEL says.
    noise = b"InitializeLog|Compiled cluster using XLA"
    with without_noise(noise), tf.init_scope(), tf.device("CPU:0"):
        try:
            tf.function(lambda number: number + 1.0, jit_compile=True)(tf.constant(0.0))
        except tf.errors.OpError:
            return False
    return True


_current = ReplicaRuntime()


def current() -> ReplicaRuntime:
    """Returns the runtime of the replicas whose step is being traced."""
    return _current


def in_one_program(function: Callable) -> Callable:
    """Returns a function of tensors, which creates no variables, as one program of XLA's,
    so that dozens of passes over its tensors become a few; unchanged without `compiles_parts`.
    """
    if not current().compiles_parts:
        return function
    # As a `partial`, each is counted by itself: TensorFlow warns of retracing when
    # several functions of the same code are traced once each.
    return tf.function(functools.partial(function), jit_compile=True, autograph=False)


def after(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns the float tensor `second` such that what uses it waits for `first`.

    If the first element of `first` is not finite, neither is the result.
    """
    # XLA respects dependencies of data only, and no compiler can prove that this is zero.
    element = tf.reshape(first, [-1])[0]
    zero = tf.where(tf.math.is_finite(element), tf.zeros_like(element), element)
    return second + tf.cast(zero, second.dtype)


@contextlib.contextmanager
def use(runtime: ReplicaRuntime) -> Iterator[ReplicaRuntime]:
    """Makes `runtime` the current one in the whole process: for steps traced meanwhile."""
    global _current
    previous = _current
    _current = runtime
    try:
        yield runtime
    finally:
        _current = previous
