r"""Writes a network trained here in the format of the released checkpoints, which every
existing converter and tool reads.

    python -m efficientnet_advprop.release --model_dir=runs/b3 \
        --output=out/efficientnet-b3/model.ckpt

The file holds the plain weights, their averages under `…/ExponentialMovingAverage`, and
the step, by the official names.
"""

from absl import flags

from efficientnet_advprop.command_line import program
from efficientnet_advprop.config.experiment import ConfigError

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "folder of a training run")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "prefix of the files to write, such as out/efficientnet-b3/model.ckpt; local or gs://",
)
_WHICH = flags.DEFINE_enum(
    "which",
    None,
    ["best", "last"],
    "which weights: of the highest validation accuracy, or the last; default: last, or best where "
    "the run held out images to choose it by",
)
_INCLUDE_AUX = flags.DEFINE_bool(
    "include_aux", False, "the auxiliary batch norms too, which other programs do not know"
)


def main(argv):
    del argv
    for flag, what in (
        (_MODEL_DIR, "the folder of a training run"),
        (_OUTPUT, "a prefix, such as out/b3/model.ckpt"),
    ):
        if not flag.value:
            raise ConfigError(f"`--{flag.name}` is missing; give {what}.")
    # Here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.training.checkpoints import write_released_checkpoint

    step = write_released_checkpoint(
        _MODEL_DIR.value, _OUTPUT.value, which=_WHICH.value, include_aux=_INCLUDE_AUX.value
    )
    print(f"{_OUTPUT.value}: weights and averages of step {step}; look at it with")
    print(f"python -m efficientnet_advprop.inspect_checkpoint {_OUTPUT.value}", flush=True)


if __name__ == "__main__":
    program.run(main)
