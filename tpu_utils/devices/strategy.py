"""Creates the `tf.distribute` strategy for the devices that a program computes on.

Call it before anything else uses TensorFlow's devices: logical devices, TPU systems and
the servers of a cluster can be created only once per process.
"""

import inspect
from typing import Optional

import tensorflow as tf

from tpu_utils.devices import cluster, tpu_connection
from tpu_utils.devices.choices import STRATEGIES
from tpu_utils.errors import PlatformError

# The arguments that belong to one strategy only.
_OPTIONS = {
    "tpu": ("tpu", "tpu_zone", "tpu_project"),
    "mirrored": ("num_logical_devices",),
    "multi_worker": ("cluster_resolver", "cluster_port", "pod_selector", "num_workers"),
}


def make_strategy(
    name: str = "one_device",
    *,
    num_logical_devices: Optional[int] = None,
    tpu: str = "",
    tpu_zone: str = "",
    tpu_project: str = "",
    cluster_resolver: str = "tf_config",
    cluster_port: int = 2222,
    pod_selector: str = "",
    num_workers: Optional[int] = None,
    timeout_seconds: float = 600.0,
) -> tf.distribute.Strategy:
    """Returns the strategy called `name`; create variables under its `scope()`.

    Args:
        name: "one_device" (the first GPU, or the CPU), "mirrored" (all GPUs of this
            machine, or logical CPUs), "tpu", or "multi_worker" (several machines: all
            their GPUs or, without GPUs, one replica on each machine).
        num_logical_devices: for "mirrored": divide the CPU into this many logical
            devices and use them. None uses the GPUs.
        tpu, tpu_zone, tpu_project: for "tpu": see `tpu_connection.connect_tpu`.
        cluster_resolver, cluster_port, pod_selector, num_workers: for "multi_worker":
            see `cluster.resolve_cluster`.
        timeout_seconds: how long to wait for a TPU or for other workers; then the
            process ends with a message.

    Raises:
        PlatformError: the name is unknown, an argument belongs to another strategy, or
            this machine does not have the devices.
    """
    if name not in STRATEGIES:
        raise PlatformError(
            f"`strategy` is {name!r}, but must be one of {', '.join(map(repr, STRATEGIES))}."
        )
    given, parameters = dict(locals()), inspect.signature(make_strategy).parameters
    for owner, options in _OPTIONS.items():
        for option in options:
            if owner != name and given[option] != parameters[option].default:
                raise PlatformError(
                    f"`{option}` is {given[option]!r}, but `strategy` is {name!r}; "
                    f"it goes with --strategy={owner}."
                )
    if name == "tpu":
        return tpu_connection.connect_tpu(
            tpu, zone=tpu_zone, project=tpu_project, timeout_seconds=timeout_seconds
        )
    if name == "multi_worker":
        resolver = cluster.resolve_cluster(
            cluster_resolver,
            port=cluster_port,
            pod_selector=pod_selector,
            num_workers=num_workers,
            timeout_seconds=timeout_seconds,
        )
        return cluster.join_cluster(resolver, timeout_seconds=timeout_seconds)
    if num_logical_devices is not None:
        return tf.distribute.MirroredStrategy(_logical_cpus(num_logical_devices))
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")
    if not gpus:
        raise PlatformError(
            "`strategy` is 'mirrored', but TensorFlow sees no GPU here; "
            "use --strategy=one_device, or --num_logical_devices=2 for replicas on the CPU."
        )
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])


def _logical_cpus(count: int) -> list[str]:
    if count < 1:
        raise PlatformError(f"`num_logical_devices` is {count}, but must be ≥ 1.")
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError:
        pass  # TensorFlow is initialised already: the devices that it has must suffice
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(cpus) < count:
        raise PlatformError(
            f"`num_logical_devices` is {count}, but TensorFlow runs with {len(cpus)} already; "
            "make the strategy before anything else."
        )
    return cpus[:count]
