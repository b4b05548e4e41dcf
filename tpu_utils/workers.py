"""The worker processes of a run: the index of this one, and agreement between all.

Only `multi_worker` has several: a TPU pod is controlled by one process. With one worker,
nothing here communicates. `any` and `compare` wait for all workers, so every worker must
call them at the same place of the program.
"""

import json
from typing import Mapping

import numpy as np
import tensorflow as tf

from tpu_utils import cluster
from tpu_utils.connections import is_reachable


class Workers:
    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._addresses = [""]
        self.index = 0
        if (
            isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
            and strategy.cluster_resolver.cluster_spec().jobs
        ):
            self._addresses = cluster.addresses_of(strategy.cluster_resolver)
            self.index = cluster.index_of(strategy.cluster_resolver)
        self.count = len(self._addresses)

        self._sum_over_all = tf.function(
            lambda value: strategy.reduce(
                tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, (value,)), axis=None
            )
        )

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the files that all share; exactly one does."""
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Returns whether `flag` is true on at least one worker; the same answer on all."""
        if self.count == 1:
            return bool(flag)
        return bool(self._sum_over_all(tf.constant(float(flag))) > 0.0)

    def compare(self, facts: Mapping[str, str]) -> dict[str, list[str]]:
        """Returns those of `facts` that differ, each with the values of all workers in order."""
        if self.count == 1:
            return {}
        # The text is sent as floats, because every device can gather floats.
        encoded = np.frombuffer(json.dumps(facts).encode(), np.uint8).astype(np.float32)
        lengths = self._gather(np.array([len(encoded)], np.float32)).astype(int)
        everything = self._gather(encoded).astype(np.uint8).tobytes()
        ends = np.cumsum(lengths)
        facts_by_worker = [
            json.loads(everything[end - length : end]) for end, length in zip(ends, lengths)
        ]
        names = sorted({name for facts in facts_by_worker for name in facts})
        by_name = {name: [facts.get(name, "") for facts in facts_by_worker] for name in names}
        return {name: values for name, values in by_name.items() if len(set(values)) > 1}

    def unreachable(self) -> list[str]:
        """Returns the other workers that no longer answer, as "worker 1 (host1:2222)"."""
        return [
            f"worker {index} ({address})"
            for index, address in enumerate(self._addresses)
            if index != self.index and not is_reachable(address)
        ]

    def _gather(self, row: np.ndarray) -> np.ndarray:
        # A worker with several replicas counts once.
        num_local = self._strategy.num_replicas_in_sync // self.count
        own = self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                row if context.replica_id_in_sync_group % num_local == 0 else row[:0]
            )
        )
        return self._strategy.gather(own, axis=0).numpy()
