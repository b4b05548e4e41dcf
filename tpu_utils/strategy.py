"""Which devices a program computes on, as a `tf.distribute` strategy.

    strategy = make_strategy("mirrored")                     # all GPUs of this machine
    strategy = make_strategy("mirrored", num_logical_devices=2)   # two replicas on the CPU, to try things without GPUs
    strategy = make_strategy("tpu", tpu="local")             # the TPU of this virtual machine

Call it before anything else touches TensorFlow's devices: logical devices and TPU systems are made once per process.
"""

from typing import Optional

import tensorflow as tf

STRATEGIES = ("one_device", "mirrored", "tpu")


class StrategyError(ValueError):
    """The devices asked for are not to be had; the message says what was asked for and what to do."""


def make_strategy(
    name: str = "one_device", *, tpu: str = "", num_logical_devices: Optional[int] = None
) -> tf.distribute.Strategy:
    """The strategy called `name`.

    Args:
        name: "one_device" (the first GPU, or the CPU), "mirrored" (all GPUs of this machine, or logical CPUs) or "tpu".
        tpu: of "tpu": "local" on a TPU VM, or a Cloud TPU's name or grpc:// address.
        num_logical_devices: of "mirrored": cut the CPU into so many devices and use those; None uses the GPUs.

    Returns:
        A `tf.distribute.Strategy`; variables are to be created under its `scope()`.

    Raises:
        StrategyError: no such strategy, an argument of another one, or no such devices here.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"`strategy` is {name!r}, but must be one of {', '.join(map(repr, STRATEGIES))}.")
    if tpu and name != "tpu":
        raise StrategyError(f"`tpu` is {tpu!r}, but `strategy` is {name!r}; use --strategy=tpu with it.")
    if num_logical_devices is not None and name != "mirrored":
        raise StrategyError(
            f"`num_logical_devices` is {num_logical_devices}, but `strategy` is {name!r}; it goes with 'mirrored'."
        )
    if name == "tpu":
        return _tpu_strategy(tpu)
    gpus = tf.config.list_logical_devices("GPU") if num_logical_devices is None else []
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")
    if num_logical_devices is not None:
        return tf.distribute.MirroredStrategy(_logical_cpus(num_logical_devices))
    if not gpus:
        raise StrategyError(
            "`strategy` is 'mirrored', but TensorFlow sees no GPU here; use --strategy=one_device, or --num_logical_devices=2 "
            "for replicas on the CPU."
        )
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])


def _logical_cpus(count: int) -> list[str]:
    if count < 1:
        raise StrategyError(f"`num_logical_devices` is {count}, but must be ≥ 1.")
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        pass  # TensorFlow is initialised already: what it has must do
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(cpus) < count:
        raise StrategyError(
            f"`num_logical_devices` is {count}, but TensorFlow runs with {len(cpus)} already; "
            "make the strategy before anything else."
        )
    return cpus[:count]


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    if not tpu:
        raise StrategyError(
            "`tpu` is empty, but `strategy` is 'tpu'; give --tpu=local on a TPU VM, or the Cloud TPU's name or address."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StrategyError(
            f"`tpu` is {tpu!r}, but no TPU answers there ({reason}); check the name and zone, or use --strategy=one_device."
        ) from error
    return tf.distribute.TPUStrategy(resolver)
