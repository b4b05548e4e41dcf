"""Finds the workers of a run on several machines, connects them, and lets them agree.

A worker is one process; all run the same program with the same arguments. The resolvers
are TensorFlow's. Their results are checked before TensorFlow's servers start, which with
wrong addresses wait forever or end with a traceback.
"""

import errno
import json
import os
import signal
import socket
import threading
import time
from typing import Mapping, Optional, TypeAlias

import numpy as np
import tensorflow as tf

from tpu_utils.connections import end_unless_done, is_reachable, listening_problem, split
from tpu_utils.platforms import RESOLVERS, PlatformError, brief_message

_JOBS = ("chief", "worker")
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)
_POLL_SECONDS = 2.0

Resolver: TypeAlias = tf.distribute.cluster_resolver.ClusterResolver
Found: TypeAlias = tuple[dict[str, list[str]], str, int]  # addresses by job; own job and index


def resolve_cluster(
    name: str,
    *,
    port: int = 2222,
    pod_selector: str = "",
    num_workers: Optional[int] = None,
    timeout_seconds: float = 600.0,
) -> Resolver:
    """Returns a resolver that knows all workers and the index of this process.

    `name` is the source: "tf_config" (the environment variable TF_CONFIG), "slurm" (the
    variables that srun sets; `port` is the first one of each node) or "kubernetes" (the
    list of the cluster's pods with the label `pod_selector`, of which there must be
    `num_workers` after `timeout_seconds`; needs the package `kubernetes` and a kubeconfig).

    Raises a `PlatformError` that quotes the source if it is missing or breaks a rule.
    """
    if name not in RESOLVERS:
        raise PlatformError(
            f"`cluster_resolver` is {name!r}, but must be one of {', '.join(map(repr, RESOLVERS))}."
        )
    if name == "tf_config":
        jobs, job, index = _read_tf_config()
    elif name == "slurm":
        jobs, job, index = _ask_slurm(port)
    else:
        jobs, job, index = _ask_kubernetes(port, pod_selector, num_workers, timeout_seconds)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs),
        task_type=job,
        task_id=index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def addresses_of(resolver: Resolver) -> list[str]:
    """Returns the "host:port" of every worker, the chief first."""
    jobs = resolver.cluster_spec().as_dict()
    return [address for job in _JOBS for address in jobs.get(job, [])]


def index_of(resolver: Resolver) -> int:
    """Returns the position of this process in `addresses_of`."""
    num_chiefs = len(resolver.cluster_spec().as_dict().get("chief", []))
    return resolver.task_id + (num_chiefs if resolver.task_type == "worker" else 0)


def _read_tf_config() -> Found:
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise PlatformError(
            "`TF_CONFIG` is not set, but must list the workers; set it on each worker, such as "
            f"TF_CONFIG='{_EXAMPLE}', or use --cluster_resolver=slurm or kubernetes."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        jobs = resolver.cluster_spec().as_dict()
        job, index = resolver.task_type, resolver.task_id
        # TensorFlow would wait forever, or index a list with these.
        if set(jobs) - set(_JOBS) or len(jobs.get("chief", [])) > 1:
            raise ValueError("a cluster has at most one chief, and workers")
        if job not in jobs or index not in range(len(jobs[job])):
            raise ValueError(f"its task {job!r} {index!r} is not in its cluster")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlatformError(
            f"`TF_CONFIG` is {text!r}, which cannot be used ({error}); it must look like"
            f" '{_EXAMPLE}'."
        ) from error
    return jobs, job, index


def _ask_slurm(port: int) -> Found:
    wanted = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise PlatformError(
            f"`cluster_resolver` is 'slurm', but {', '.join(missing)} is not set; start every "
            "worker by srun."
        )
    arguments = {}
    if not tf.config.list_physical_devices("GPU"):
        # Otherwise TensorFlow calls nvidia-smi to count the GPUs, and divides by their
        # number.
        num_tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
        arguments = dict(gpus_per_node=num_tasks, gpus_per_task=1, auto_set_gpu=False)
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=port, **arguments)
        jobs = resolver.cluster_spec().as_dict()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise PlatformError(
            "`cluster_resolver` is 'slurm', but its variables cannot be read "
            f"({brief_message(error)}); compare `env | grep SLURM_`."
        ) from error
    return jobs, resolver.task_type, resolver.task_id


def _ask_kubernetes(port, pod_selector, num_workers, timeout_seconds) -> Found:
    if not pod_selector or not num_workers:
        raise PlatformError(
            "`cluster_resolver` is 'kubernetes', but --pod_selector or --num_workers is missing; "
            "give the label of the run's pods, such as --pod_selector=job-name=advprop, "
            "and how many there are."
        )
    # TensorFlow 2.15 always takes its credentials from a kubeconfig. Later versions first
    # try the pod's own account, and then need the kubeconfig nevertheless.
    locations = getattr(tf.distribute.cluster_resolver, "KubernetesExecutableLocation", None)
    where = {} if locations is None else {"executable_location": locations.OFF_CLUSTER}
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            found = tf.distribute.cluster_resolver.KubernetesClusterResolver(
                {"worker": [pod_selector]}, tf_server_port=port, **where
            )
            addresses = found.cluster_spec().as_dict().get("worker", [])
            problem = f"{len(addresses)} pods"
        except ImportError as error:
            raise PlatformError(
                "`cluster_resolver` is 'kubernetes', which needs the package of that name: "
                "pip install kubernetes. Or set TF_CONFIG in the pods and leave the flag out."
            ) from error
        # The client has error classes of its own: no kubeconfig, no permission, a pod
        # that does not run yet.
        except Exception as error:
            addresses = []
            problem = brief_message(error)
        if len(addresses) == num_workers:
            break
        if time.monotonic() > deadline:
            raise PlatformError(
                f"`pod_selector` is {pod_selector!r} and `num_workers` is {num_workers}, "
                f"but Kubernetes has {problem} after {timeout_seconds:g} s; "
                f"compare `kubectl get pods -A -l {pod_selector}`."
            )
        time.sleep(_POLL_SECONDS)
    # The addresses are those of the nodes. A pod finds its own: it is the one where it
    # can listen.
    problems = [listening_problem(*split(address)) for address in addresses]
    own = [index for index, problem in enumerate(problems) if problem != errno.EADDRNOTAVAIL]
    if len(own) != 1:
        raise PlatformError(
            f"`pod_selector` is {pod_selector!r}, whose pods run on {', '.join(addresses)}, "
            f"of which {len(own)} are this pod's; set hostNetwork: true, and have one pod per node."
        )
    return {"worker": addresses}, "worker", own[0]


def check_cluster(resolver: Resolver) -> None:
    """Raises a `PlatformError` for addresses with which TensorFlow's servers would wait
    forever or end without a message: malformed, twice, unresolved, or in use.
    """
    addresses = addresses_of(resolver)
    for address in addresses:
        try:
            host, port = split(address)
        except ValueError as error:
            raise PlatformError(f"the cluster has a wrong address: {error}.") from error
        if addresses.count(address) > 1:
            raise PlatformError(
                f"the cluster has {address!r} twice; give each worker a port of its own."
            )
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PlatformError(
                f"the cluster has {address!r}, but the name does not resolve "
                f"({error.strerror or error}); correct it, or use the machine's IP address."
            ) from error
    own = addresses[index_of(resolver)]
    if listening_problem("", split(own)[1]) == errno.EADDRINUSE:
        raise PlatformError(
            f"this worker's address is {own!r}, but another process listens on that port here "
            "(perhaps an earlier run); end it, or take another port."
        )


def join_cluster(
    resolver: Resolver, *, timeout_seconds: float
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Starts the server of this worker, waits for the other workers, and returns the
    strategy: a replica on each GPU, or on the CPU, of each worker.

    If not all have started after `timeout_seconds`, the process ends with a message;
    TensorFlow offers no other way to end its waiting. Raises a `PlatformError` as
    `check_cluster`, or if the servers refuse each other.
    """
    check_cluster(resolver)
    addresses = addresses_of(resolver)
    index = index_of(resolver)
    message = (
        f"worker {index} of {len(addresses)} ({addresses[index]}) has waited "
        f"{timeout_seconds:g} s for the others. Start the same command on every machine, "
        "check their messages and the firewalls, or wait longer with --connect_timeout."
    )
    peers = [address for position, address in enumerate(addresses) if position != index]
    with end_unless_done(timeout_seconds, message, peers):
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise PlatformError(
                f"worker {index} of {len(addresses)} cannot join the others at "
                f"{', '.join(addresses)}: {brief_message(error)}. Start all of them anew, "
                "with the same TensorFlow and the same list of addresses."
            ) from error

    if threading.current_thread() is threading.main_thread():
        # TensorFlow's server has installed a handler that ignores SIGTERM; install
        # Python's again.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy


class Workers:
    """The worker processes of a run: the index of this one, and agreement between all.

    Only `multi_worker` has several: a TPU pod is controlled by one process. With one
    worker, nothing here communicates. `any` and `compare` wait for all workers, so every
    worker must call them at the same place of the program.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._addresses = [""]
        self.index = 0
        if (
            isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
            and strategy.cluster_resolver.cluster_spec().jobs
        ):
            self._addresses = addresses_of(strategy.cluster_resolver)
            self.index = index_of(strategy.cluster_resolver)
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
