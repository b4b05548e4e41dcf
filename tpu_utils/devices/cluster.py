"""The workers of a run over several machines: who they are, and their coming together.

    resolver = resolve_cluster("tf_config")              # every worker: the same addresses, an index of its own
    strategy = join_cluster(resolver, timeout_seconds=600)

A worker is one process; all of them run the same program with the same arguments. The resolvers are TensorFlow's own: what
they find is checked here, before TensorFlow's servers start, because those wait for ever, or end in a traceback.
"""

import errno
import json
import os
import signal
import socket
import threading
import time
from typing import Optional, TypeAlias

import tensorflow as tf

from tpu_utils.devices import addresses as network
from tpu_utils.devices.bounded_wait import end_unless_done
from tpu_utils.errors import StrategyError, brief_message

RESOLVERS = ("tf_config", "slurm", "kubernetes")
_JOBS = ("chief", "worker")
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)
_POLL_SECONDS = 2.0

Resolver: TypeAlias = tf.distribute.cluster_resolver.ClusterResolver


def resolve_cluster(
    name: str,
    *,
    port: int = 2222,
    pod_selector: str = "",
    num_workers: Optional[int] = None,
    timeout_seconds: float = 600.0,
) -> Resolver:
    """All workers' addresses and which one this process is, from what the cluster's manager tells it.

    Args:
        name: "tf_config" (the environment variable TF_CONFIG), "slurm" (the variables that srun sets) or "kubernetes" (the
            cluster's own list of pods; needs the package `kubernetes` and a kubeconfig).
        port: of "slurm" the first one on each node, of "kubernetes" the one on each node.
        pod_selector: of "kubernetes": the label of the run's pods, such as "job-name=advprop".
        num_workers: of "kubernetes": how many pods to wait for.
        timeout_seconds: of "kubernetes": for how long.

    Returns:
        A resolver whose cluster has only the jobs "chief" and "worker".

    Raises:
        StrategyError: nothing tells, or what is told breaks a rule; the message quotes it.
    """
    if name not in RESOLVERS:
        raise StrategyError(
            f"`cluster_resolver` is {name!r}, but must be one of {', '.join(map(repr, RESOLVERS))}."
        )
    if name == "tf_config":
        jobs, task_type, task_id = _read_tf_config()
    elif name == "slurm":
        jobs, task_type, task_id = _ask_slurm(port)
    else:
        jobs, task_type, task_id = _ask_kubernetes(port, pod_selector, num_workers, timeout_seconds)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs),
        task_type=task_type,
        task_id=task_id,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def addresses_of(resolver: Resolver) -> list[str]:
    """The "host:port" of every worker, the chief first."""
    jobs = resolver.cluster_spec().as_dict()
    return [address for job in _JOBS for address in jobs.get(job, [])]


def index_of(resolver: Resolver) -> int:
    """The position of this process among `addresses_of`."""
    num_chiefs = len(resolver.cluster_spec().as_dict().get("chief", []))
    return resolver.task_id + (num_chiefs if resolver.task_type == "worker" else 0)


def _read_tf_config() -> tuple[dict[str, list[str]], str, int]:
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise StrategyError(
            f"`TF_CONFIG` is not set, but says which workers there are; set it on each of them, such as "
            f"TF_CONFIG='{_EXAMPLE}', or use --cluster_resolver=slurm or kubernetes."
        )

    def complain(what: str):
        return StrategyError(f"`TF_CONFIG` is {text!r}, {what}; it must look like '{_EXAMPLE}'.")

    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise complain(f"which is not JSON ({error})") from error
    jobs = content.get("cluster") if isinstance(content, dict) else None
    task = content.get("task") if isinstance(content, dict) else None
    if not isinstance(jobs, dict) or not jobs:
        raise complain('which has no "cluster"')
    strangers = sorted(set(jobs) - set(_JOBS))
    if strangers:
        raise complain(
            f"whose cluster has {', '.join(map(repr, strangers))}, but here there are only 'chief' and 'worker'"
        )
    for job, addresses in jobs.items():
        if (
            not isinstance(addresses, list)
            or not addresses
            or not all(isinstance(address, str) for address in addresses)
        ):
            raise complain(f"whose {job!r} is no list of addresses")
    if len(jobs.get("chief", [])) > 1:
        raise complain("which has more than one chief")
    if not isinstance(task, dict) or task.get("type") not in jobs:
        raise complain(f'whose "task" has no "type" among {", ".join(map(repr, jobs))}')
    index = task.get("index")
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    if (
        not isinstance(index, int)
        or isinstance(index, bool)
        or not 0 <= index < len(jobs[task["type"]])
    ):
        raise complain(
            f'whose task has the "index" {task.get("index")!r}, but there are {len(jobs[task["type"]])} of its type, '
            "numbered from 0"
        )
    return jobs, task["type"], index


def _ask_slurm(port: int) -> tuple[dict[str, list[str]], str, int]:
    missing = [
        name
        for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST")
        if f"SLURM_{name}" not in os.environ
    ]
    if missing:
        raise StrategyError(
            f"`cluster_resolver` is 'slurm', but {', '.join(f'SLURM_{name}' for name in missing)} is not set; start every "
            "worker by srun."
        )
    arguments = {}
    if not tf.config.list_physical_devices("GPU"):
        # It would divide by the number of GPUs, and ask a tool for it that is not there.
        arguments = dict(
            gpus_per_node=int(os.environ["SLURM_STEP_NUM_TASKS"]),
            gpus_per_task=1,
            auto_set_gpu=False,
        )
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=port, **arguments)
        jobs = resolver.cluster_spec().as_dict()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise StrategyError(
            f"`cluster_resolver` is 'slurm', but its variables cannot be read ({brief_message(error)}); compare "
            "`env | grep SLURM_`."
        ) from error
    return jobs, resolver.task_type, resolver.task_id


def _by_kubeconfig() -> dict:
    """Has TensorFlow take its credentials from a kubeconfig, as 2.15 does; later ones also try a pod's own account first,
    and then need the kubeconfig all the same."""
    locations = getattr(tf.distribute.cluster_resolver, "KubernetesExecutableLocation", None)
    return {} if locations is None else {"executable_location": locations.OFF_CLUSTER}


def _ask_kubernetes(
    port, pod_selector, num_workers, timeout_seconds
) -> tuple[dict[str, list[str]], str, int]:
    if not pod_selector or not num_workers:
        raise StrategyError(
            "`cluster_resolver` is 'kubernetes', but --pod_selector or --num_workers is missing; give the label of the run's "
            "pods, such as --pod_selector=job-name=advprop, and how many there are."
        )
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            found = tf.distribute.cluster_resolver.KubernetesClusterResolver(
                {"worker": [pod_selector]}, tf_server_port=port, **_by_kubeconfig()
            )
            addresses = found.cluster_spec().as_dict().get("worker", [])
            problem = f"{len(addresses)} pods"
        except ImportError as error:
            raise StrategyError(
                "`cluster_resolver` is 'kubernetes', which needs the package of that name: pip install kubernetes. Or set "
                "TF_CONFIG in the pods and leave the flag out."
            ) from error
        except Exception as error:  # of the client's own kinds: no kubeconfig, no permission, a pod that does not run yet
            addresses, problem = [], brief_message(error)
        if len(addresses) == num_workers:
            break
        if time.monotonic() > deadline:
            raise StrategyError(
                f"`pod_selector` is {pod_selector!r} and `num_workers` is {num_workers}, but Kubernetes has {problem} after "
                f"{timeout_seconds:g} s; compare `kubectl get pods -A -l {pod_selector}`."
            )
        time.sleep(_POLL_SECONDS)
    # Its addresses are those of the nodes, so that a pod knows its own by being able to listen there.
    problems = [network.listening_problem(*network.split(address)) for address in addresses]
    own = [index for index, problem in enumerate(problems) if problem != errno.EADDRNOTAVAIL]
    if len(own) != 1:
        raise StrategyError(
            f"`pod_selector` is {pod_selector!r}, whose pods run on {', '.join(addresses)}, of which {len(own)} are this "
            "pod's; set hostNetwork: true, and have one pod per node."
        )
    return {"worker": addresses}, "worker", own[0]


def check_cluster(resolver: Resolver) -> None:
    """Finds what TensorFlow's servers would wait for, or die of, without a word.

    Raises:
        StrategyError: an address is not "host:port", appears twice or does not resolve, or this worker's port is taken.
    """
    addresses = addresses_of(resolver)
    for address in addresses:
        try:
            host, port = network.split(address)
        except ValueError as error:
            raise StrategyError(f"the cluster has a wrong address: {error}.") from error
        if addresses.count(address) > 1:
            raise StrategyError(
                f"the cluster has {address!r} twice; give each worker a port of its own."
            )
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise StrategyError(
                f"the cluster has {address!r}, but the name does not resolve ({error.strerror or error}); correct it, or use "
                "the machine's IP address."
            ) from error
    own = addresses[index_of(resolver)]
    if network.listening_problem("", network.split(own)[1]) == errno.EADDRINUSE:
        raise StrategyError(
            f"this worker's address is {own!r}, but another process listens on that port here (an earlier run that still "
            "lives?); end it, or take another port."
        )


def join_cluster(
    resolver: Resolver, *, timeout_seconds: float
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Starts this worker's server and waits for the others.

    Args:
        resolver: of `resolve_cluster`.
        timeout_seconds: the process ends with a message if they have not all come by then; TensorFlow offers no other way out
            of its waiting.

    Returns:
        The strategy: one replica on each GPU of each worker, or one on each worker's CPU.

    Raises:
        StrategyError: see `check_cluster`; or the servers refuse each other.
    """
    check_cluster(resolver)
    addresses, index = addresses_of(resolver), index_of(resolver)

    message = (
        f"worker {index} of {len(addresses)} ({addresses[index]}) has waited {timeout_seconds:g} s for the others. Start the "
        "same command on every machine, look at what they say and at firewalls, or wait longer with --connect_timeout."
    )
    peers = [address for position, address in enumerate(addresses) if position != index]
    with end_unless_done(timeout_seconds, message, peers):
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise StrategyError(
                f"worker {index} of {len(addresses)} cannot join the others at {', '.join(addresses)}: {brief_message(error)}. "
                "Start all of them anew, with the same TensorFlow and the same list of addresses."
            ) from error

    if threading.current_thread() is threading.main_thread():
        # TensorFlow's server has taken SIGTERM to itself and would let it pass without effect; back to what Python knows.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy
