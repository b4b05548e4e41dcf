"""Creates the `tf.distribute` strategy for the devices that a program computes on.

Call it before anything else uses TensorFlow's devices: logical devices, TPU systems and
the servers of a cluster can be created only once per process.
"""

import inspect
from typing import Optional

import tensorflow as tf

from tpu_utils import cluster
from tpu_utils.connections import end_unless_done, is_reachable
from tpu_utils.platforms import STRATEGIES, PlatformError, brief_message

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
        tpu, tpu_zone, tpu_project: for "tpu": see `connect_tpu`.
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
    # An option of another strategy would be ignored without a word.
    given, parameters = dict(locals()), inspect.signature(make_strategy).parameters
    for owner, options in _OPTIONS.items():
        for option in options:
            if owner != name and given[option] != parameters[option].default:
                raise PlatformError(
                    f"`{option}` is {given[option]!r}, but `strategy` is {name!r}; "
                    f"it goes with --strategy={owner}."
                )
    if name == "tpu":
        return connect_tpu(tpu, zone=tpu_zone, project=tpu_project, timeout_seconds=timeout_seconds)
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


def connect_tpu(
    tpu: str, *, zone: str = "", project: str = "", timeout_seconds: float = 600.0
) -> tf.distribute.TPUStrategy:
    """Returns a strategy over all cores of a TPU, and clears the TPU's memory.

    One process controls a whole pod: it runs on the first host and connects to the
    TensorFlow servers on the others. `tpu` is "local" on a TPU VM with one host; otherwise
    the name or the grpc:// address of a Cloud TPU. A name is looked up in `zone` and
    `project`, by default this machine's. If the TPU has not answered after
    `timeout_seconds`, the process ends with a message.

    Raises a `PlatformError` if no TPU answers, or this TensorFlow has no TPU support.
    """
    if not tpu:
        raise PlatformError(
            "`tpu` is empty, but `strategy` is 'tpu'; give --tpu=local on a TPU VM, "
            "or the Cloud TPU's name or address."
        )
    if (zone or project) and (tpu == "local" or tpu.startswith("grpc://")):
        raise PlatformError(
            f"`tpu_zone` is {zone!r} and `tpu_project` {project!r}, but `tpu` is {tpu!r}; "
            "they go with a Cloud TPU's name."
        )
    place = " and ".join(
        f"{what} {value!r}" for what, value in (("zone", zone), ("project", project)) if value
    )
    where = f"`tpu` is {tpu!r}{f' in {place}' if place else ''}"
    with end_unless_done(
        timeout_seconds, f"{where}, but it has not answered for {timeout_seconds:g} s."
    ):
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
                tpu=tpu, zone=zone or None, project=project or None
            )
            if tpu != "local":
                _check_reachable(resolver)
                tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
        # The client that looks up the name over HTTP has exception classes of its own.
        except Exception as error:
            reason = brief_message(error)
            if "No OpKernel was registered" in reason:
                reason = "this TensorFlow is built without TPU support"
            way_out = (
                "this must be a TPU VM and its own TensorFlow, which brings the driver "
                "(docs/launching.md)"
                if tpu == "local"
                else "compare `gcloud compute tpus tpu-vm list --zone=…` and give --tpu_zone and "
                "--tpu_project if they are not this machine's"
            )
            raise PlatformError(
                f"{where}, but no TPU answers there ({reason}); {way_out}."
            ) from error


def _check_reachable(resolver: tf.distribute.cluster_resolver.TPUClusterResolver) -> None:
    # TensorFlow itself would wait forever for a host that does not answer, or crash.
    for address in resolver.cluster_spec().as_dict().get("worker", []):
        if not is_reachable(address, timeout_seconds=20.0):
            raise ConnectionError(f"nothing answers at {address}")
