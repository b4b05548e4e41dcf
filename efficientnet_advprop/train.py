r"""Trains a network: by AdvProp, by vanilla training, or by one of the other methods.

Usage:

    python -m efficientnet_advprop.train --config=configs/digits.py:advprop \
        --data_dir=data/digits --model_dir=runs/digits
    python -m efficientnet_advprop.train --config=configs/advprop.py:b0 \
        --data_dir=… --model_dir=… --strategy=mirrored
    python -m efficientnet_advprop.train --config=configs/advprop.py:b7 \
        --data_dir=gs://… --model_dir=gs://… --strategy=tpu --tpu=local

The config defines what is computed; flags such as --config.attack.epsilon=2 override
its fields. The other flags define where it is computed. Started again with the same
command, a run continues from its last checkpoint. After SIGTERM or Ctrl-C it saves its
state before it ends; a second one ends it at once. Exit codes: 0 done or stopped by
SIGTERM, 130 stopped by Ctrl-C, 2 wrong flags or config, 1 any other error; every error
has one message.
"""

from absl import flags

from efficientnet_advprop.command_line import program, strategy_flags
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.runtime import process

_CONFIG = program.define_config_flag()
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "folder of the TFRecords: train-00000-of-…, validation-00000-of-…; or synthetic: noise, "
    "to time the device alone",
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "folder of the checkpoints and reports; created if it does not exist"
)
_STRATEGY = strategy_flags.define()
_PROFILER_PORT = flags.DEFINE_integer(
    "profiler_port",
    None,
    "port at which this process accepts requests to profile it (docs/launching.md)",
    1,
    65535,
)


def main(argv):
    del argv
    config = program.read_config(_CONFIG)
    for flag, what in (
        (_DATA_DIR, "the folder of the TFRecords"),
        (_MODEL_DIR, "a folder for the checkpoints"),
    ):
        if not flag.value:
            raise ConfigError(f"`--{flag.name}` is missing; give {what}.")
    print("loading TensorFlow, then checking config, data and checkpoints …", flush=True)
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.training.loop import train
    from tpu_utils.connections import start_profiler_server
    from tpu_utils.preemption import CTRL_C

    if _PROFILER_PORT.value is not None:
        start_profiler_server(_PROFILER_PORT.value)
    result = train(
        config, data_dir=_DATA_DIR.value, model_dir=_MODEL_DIR.value, strategy=_STRATEGY.make()
    )
    return process.INTERRUPTED if result.stopped_by == CTRL_C else 0


if __name__ == "__main__":
    program.run(main, sigterm_exit_code=process.SIGTERM_EXIT_CODES["train"])
