"""The demo: trains digits by AdvProp and its two baselines, and writes a report.

Usage:

    python -m efficientnet_advprop.demo --config=configs/digits.py

It takes a few minutes on two CPU cores. It trains one small EfficientNet by each
method, with the same config, data and seed; evaluates the averaged weights on clean,
corrupted and attacked test images; and writes <output_dir>/report.html. After an
interruption, the same command continues where it stopped. The evaluated weights are
those after the last step, not the best on the test images. (The recipe itself was found
on these images with seed 0: docs/decisions.md.)
"""

import os
import time

from absl import flags, logging

from efficientnet_advprop.command_line import program
from efficientnet_advprop.files import format_duration, write_atomically

_CONFIG = program.define_config_flag()
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/demo", "folder of the three runs, their data, the scores and the report"
)
_AUTOATTACK_IMAGES = flags.DEFINE_integer(
    "autoattack_images",
    0,
    "on so many test images AutoAttack is tried too, against AdvProp's network; a second more for "
    "each, on two slow cores",
    0,
    1000,
)


def main(argv):
    del argv
    config = program.read_config(_CONFIG)
    output_dir = _OUTPUT_DIR.value
    started = time.monotonic()
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.reports import evaluation_report
    from efficientnet_advprop.studies import demo_report, demonstration

    logging.set_verbosity(logging.WARNING)  # hides the remarks about each of the many test sets
    demo = demonstration.run(config, output_dir, autoattack_images=_AUTOATTACK_IMAGES.value)
    if demo is None:
        return
    path = os.path.join(output_dir, "report.html")
    write_atomically(path, demo_report.render_html(demo).encode())
    print(f"\n{evaluation_report.format_table(demo.report)}\n")
    print(
        f"{format_duration(time.monotonic() - started)}. The report: {os.path.abspath(path)}",
        flush=True,
    )


if __name__ == "__main__":
    program.run(main)
