"""The flags of programs that compute on several devices: which devices, and how to
connect.

    _STRATEGY = strategy_flags.define()
    strategy = _STRATEGY.make()    # in main, before anything uses TensorFlow's devices
"""

from types import SimpleNamespace
from typing import TYPE_CHECKING

from absl import flags

from tpu_utils.platforms import RESOLVERS, STRATEGIES

if TYPE_CHECKING:
    import tensorflow as tf

flags.disclaim_key_flags()  # the flags belong to the program that defines them and its --help


class StrategyFlags(SimpleNamespace):
    """The flags as absl's holders, by the names of `make_strategy`'s arguments."""

    def make(self) -> "tf.distribute.Strategy":
        """Returns the strategy that the flags describe; see `make_strategy`."""
        from tpu_utils.strategy import make_strategy

        values = {name: flag.value for name, flag in vars(self).items()}
        return make_strategy(
            values.pop("strategy"), timeout_seconds=values.pop("connect_timeout"), **values
        )


def define() -> StrategyFlags:
    """Defines the flags, once per program."""
    return StrategyFlags(
        strategy=flags.DEFINE_enum(
            "strategy",
            "one_device",
            list(STRATEGIES),
            f"devices: {', '.join(f'{name} ({text})' for name, text in STRATEGIES.items())}",
        ),
        num_logical_devices=flags.DEFINE_integer(
            "num_logical_devices",
            None,
            "mirrored: the number of replicas on the CPU instead of GPUs, for trials",
        ),
        tpu=flags.DEFINE_string(
            "tpu", "", "tpu: 'local' on a TPU VM, or the Cloud TPU's name or grpc:// address"
        ),
        tpu_zone=flags.DEFINE_string(
            "tpu_zone", "", "tpu: the zone of that name; default: this machine's"
        ),
        tpu_project=flags.DEFINE_string(
            "tpu_project", "", "tpu: the project of that name; default: this machine's"
        ),
        connect_timeout=flags.DEFINE_float(
            "connect_timeout",
            600.0,
            "seconds to wait for the TPU, or for the other workers",
            lower_bound=1.0,
        ),
        cluster_resolver=flags.DEFINE_enum(
            "cluster_resolver",
            "tf_config",
            RESOLVERS,
            "multi_worker: where the list of machines comes from: tf_config (the variable "
            "TF_CONFIG), slurm, kubernetes",
        ),
        cluster_port=flags.DEFINE_integer(
            "cluster_port",
            2222,
            "multi_worker by slurm (first port of a node) or kubernetes: port of the workers",
        ),
        pod_selector=flags.DEFINE_string(
            "pod_selector", "", "multi_worker by kubernetes: label of the pods, job-name=advprop"
        ),
        num_workers=flags.DEFINE_integer(
            "num_workers", None, "multi_worker by kubernetes: the number of pods to wait for"
        ),
    )
