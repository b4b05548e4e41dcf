"""Describes a checkpoint or file of weights: network, averages, weights, slots, step.

Usage:

    python -m efficientnet_advprop.inspect_checkpoint SOURCE…
    python -m efficientnet_advprop.inspect_checkpoint --tensors SOURCE…

SOURCE is a published name ("b3-advprop"), a repository (hf://owner/name), a directory, a
prefix, a .tar.gz, timm's .safetensors or Keras's .h5; local, gs:// or https://. With
--tensors, the name, shape and kind of every tensor follow.
"""

import sys
from typing import Sequence

from absl import flags

from efficientnet_advprop.command_line import program
from efficientnet_advprop.config.experiment import ConfigError

_TENSORS = flags.DEFINE_bool("tensors", False, "list every tensor, with its shape")


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths))
        print(f"  {line.rstrip()}")


def main(argv):
    if len(argv) < 2:
        raise ConfigError(
            "SOURCE is missing: python -m efficientnet_advprop.inspect_checkpoint SOURCE…"
        )
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.models.checkpoints.checkpoint_summary import list_tensors, summarize
    from efficientnet_advprop.models.checkpoints.weight_loading import read_checkpoint

    for source in argv[1:]:
        contents = read_checkpoint(source)
        rows = summarize(source, contents)
        print(source)
        _print_columns(rows)
        if _TENSORS.value:
            print(f"{source}: its tensors")
            _print_columns(list_tensors(contents))
        sys.stdout.flush()


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
