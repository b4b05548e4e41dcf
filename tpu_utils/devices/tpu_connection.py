"""Connects to a Cloud TPU: that of this virtual machine, a TPU by name, or a pod."""

import tensorflow as tf

from tpu_utils.devices import addresses
from tpu_utils.devices.bounded_wait import end_unless_done
from tpu_utils.errors import PlatformError, brief_message


def connect_tpu(
    tpu: str, *, zone: str = "", project: str = "", timeout_seconds: float = 600.0
) -> tf.distribute.TPUStrategy:
    """Returns a strategy over all cores of a TPU, and clears the TPU's memory.

    One process controls a whole pod: it runs on the first host and connects to the
    TensorFlow servers on the others.

    Args:
        tpu: "local" on a TPU VM with one host; otherwise the name or the grpc://
            address of a Cloud TPU.
        zone, project: where to look up the name; "": zone and project of this machine.
        timeout_seconds: if the TPU has not answered by then, the process ends with a
            message.

    Raises:
        PlatformError: no TPU answers, or this TensorFlow has no TPU support.
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
        if not addresses.is_reachable(address, timeout_seconds=20.0):
            raise ConnectionError(f"nothing answers at {address}")
