"""The demo: trains digits by AdvProp and its two baselines, and writes a report.

Usage:

    python -m efficientnet_advprop.demo --config=configs/demo.py

It takes a few minutes on two CPU cores. It trains a small EfficientNet by each of three
methods with three seeds, with the same config and data, several at a time in processes
of their own; evaluates the averaged weights on clean and corrupted test images and
under AutoAttack; and writes <output_dir>/report.html. The runs, with their logs, are in
<output_dir>/runs/<method>/seed_<n>. After an interruption, the same command continues
where it stopped. (How the recipe was found: docs/maintainers/decisions.md.)
"""

import os
import time

from absl import flags, logging

from efficientnet_advprop.command_line import program
from efficientnet_advprop.runtime.files import format_duration

_CONFIG = program.define_config_flag()
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/demo", "folder of the runs, their data, the scores and the report"
)
_NUM_PARALLEL = flags.DEFINE_integer(
    "num_parallel", None, "runs at a time; default: one per GPU or CPU core", lower_bound=1
)
_AUTOATTACK_IMAGES = flags.DEFINE_integer(
    "autoattack_images",
    24,
    "so many test images, evenly spaced, are attacked by AutoAttack, in the networks of the first "
    "seed; each costs some seconds of one core",
    1,
    1000,
)
_RUN = flags.DEFINE_list("run", None, "only these runs, in this process: <method>/seed_<n>,…")


def main(argv):
    del argv
    config = program.read_config(_CONFIG)
    output_dir = _OUTPUT_DIR.value
    started = time.monotonic()
    program.require_extra("experiments")
    # Imported here, so that --help and a wrong flag do not wait for TensorFlow.
    from advprop_experiments import demonstration, execution, plan, report
    from efficientnet_advprop.reports import pages

    logging.set_verbosity(logging.WARNING)  # hides the remarks about each of the many test sets
    study = demonstration.make_study(config, autoattack_images=_AUTOATTACK_IMAGES.value)
    plan.claim_output_dir(study, output_dir)
    if _RUN.value is not None:
        execution.execute_runs(study.find_runs(_RUN.value), study, output_dir)
        return
    num_parallel = _NUM_PARALLEL.value or plan.default_num_parallel()
    for method, description in demonstration.DESCRIPTIONS.items():
        print(f"{method}: {description}")
    left = format_duration(plan.seconds_left(study, output_dir, num_parallel))
    print(
        f"{len(study.arms)} methods × {len(study.seeds)} seeds, {num_parallel} runs at a time: "
        f"about {left}; what each does: {os.path.join(output_dir, 'runs', '*', '*', 'log.txt')}",
        flush=True,
    )
    if not execution.execute_all(
        study, execution.own_command, output_dir, num_parallel=num_parallel
    ):
        return
    summary = report.summarize(study, plan.read_all_scores(study, output_dir))
    path = pages.write(demonstration.make_page(summary, output_dir), output_dir)
    print(f"\n{report.format_console(summary)}\n\n{demonstration.tell(summary)}\n")
    print(f"{format_duration(time.monotonic() - started)}. The report: {path}", flush=True)


if __name__ == "__main__":
    program.run(main)
