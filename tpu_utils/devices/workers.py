"""The processes that run a program together: which one this is, and what they must agree on.

    workers = Workers(strategy)
    if workers.is_chief: ...                             # one of them writes
    if workers.any(stop_requested): ...                  # the same answer on all, at the same place in the program
    differing = workers.compare({"config": text})        # {} or {"config": [worker 0's, worker 1's, ...]}

Only `multi_worker` has more than one: a TPU pod is driven by one process. With one, nothing here communicates. `any` and
`compare` wait for all workers: call them at the same place in each.
"""

import json
from typing import Mapping

import numpy as np
import tensorflow as tf

from tpu_utils.devices import addresses, cluster


class Workers:
    """The workers of a strategy.

    Args:
        strategy: any `tf.distribute.Strategy`.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._addresses, self.index = [""], 0
        if (
            isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
            and strategy.cluster_resolver.cluster_spec().jobs
        ):
            self._addresses = cluster.addresses_of(strategy.cluster_resolver)
            self.index = cluster.index_of(strategy.cluster_resolver)
        self.count = len(self._addresses)

        def identity(value):
            return value

        self._sum_over_all = tf.function(
            lambda value: strategy.reduce(
                tf.distribute.ReduceOp.SUM, strategy.run(identity, (value,)), axis=None
            )
        )

    @property
    def is_chief(self) -> bool:
        """Whether this one writes what all have in common."""
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on one of them."""
        return (
            bool(flag)
            if self.count == 1
            else bool(self._sum_over_all(tf.constant(float(flag))) > 0.0)
        )

    def compare(self, facts: Mapping[str, str]) -> dict[str, list[str]]:
        """Those of `facts` that are not the same on all workers, with everybody's, in the workers' order."""
        if self.count == 1:
            return {}
        # As floats, which every device can gather.
        encoded = np.frombuffer(json.dumps(facts).encode(), np.uint8).astype(np.float32)
        lengths = self._gather(np.array([len(encoded)], np.float32)).astype(int)
        everything = self._gather(encoded).astype(np.uint8).tobytes()
        ends = np.cumsum(lengths)
        told = [json.loads(everything[end - length : end]) for end, length in zip(ends, lengths)]
        by_name = {
            name: [facts.get(name, "") for facts in told]
            for name in sorted({name for facts in told for name in facts})
        }
        return {name: values for name, values in by_name.items() if len(set(values)) > 1}

    def unreachable(self) -> list[str]:
        """The others at whose address nobody listens any more, as "worker 1 (host1:2222)"."""
        return [
            f"worker {index} ({address})"
            for index, address in enumerate(self._addresses)
            if index != self.index and not addresses.is_reachable(address)
        ]

    def _gather(self, row: np.ndarray) -> np.ndarray:
        """What each worker gives, one after the other; a worker with several replicas counts once."""
        num_local = self._strategy.num_replicas_in_sync // self.count
        own = self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                row if context.replica_id_in_sync_group % num_local == 0 else row[:0]
            )
        )
        return self._strategy.gather(own, axis=0).numpy()
