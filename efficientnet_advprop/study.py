r"""Runs a study: trains in many ways with several seeds, and tests the paper's claims.

Usage:

    python -m efficientnet_advprop.study --study=configs/studies/digits.py --list
    python -m efficientnet_advprop.study --study=configs/studies/digits.py \
        --output_dir=runs/study --num_parallel=2
    python -m efficientnet_advprop.study --study=configs/studies/digits.py \
        --output_dir=runs/study --report
    python -m efficientnet_advprop.study --study=configs/studies/digits.py \
        --output_dir=runs/study --run=advprop_small/seed_3

Each run has its own folder, and a process takes up to eight of them. After an
interruption, the same command continues where it stopped; if the folder contains a study
of other runs, it is refused.
At the end, or with --report from the runs that are done, the program writes
report.html, report.json, the tables as report.md, report.tex and CSV, and claims.png
(the contrasts) into <output_dir>. --run executes single runs, for batch systems that
have their own queue.
"""

import os
from typing import TYPE_CHECKING

from absl import flags, logging

from efficientnet_advprop.command_line import program, recipes
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.runtime.files import format_duration, write_atomically

if TYPE_CHECKING:
    from advprop_experiments import plan

_STUDY = flags.DEFINE_string(
    "study",
    None,
    "Python file with a get_study(), such as configs/studies/digits.py, or its name:"
    " studies/digits",
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/study", "folder of the runs, their data and the report"
)
_NUM_PARALLEL = flags.DEFINE_integer(
    "num_parallel", None, "runs at a time; default: one per GPU or CPU core", lower_bound=1
)
_LIST = flags.DEFINE_bool(
    "list", False, "only show the runs, which are done, and the time that the others need"
)
_REPORT = flags.DEFINE_bool("report", False, "only report on the runs that are done")
_RUN = flags.DEFINE_list("run", None, "only these runs, in this process: <arm>/seed_<n>,…")


def _format_plan(study: "plan.Study", output_dir: str, num_parallel: int) -> str:
    from advprop_experiments import plan

    entries = plan.progress(study, output_dir)
    lines = [
        f"{run.name:40s} {format_duration(seconds):>12s}  {'done' if is_done else 'to do'}"
        for run, is_done, seconds in entries
    ]
    left = format_duration(plan.seconds_left(study, output_dir, num_parallel))
    num_done = sum(is_done for _, is_done, _ in entries)
    end = (
        f"{num_done} of {len(entries)} runs are done; the others take about {left}, "
        f"{num_parallel} at a time"
    )
    return "\n".join([f"{study.title}: processor time of each run", *lines, end])


def main(argv):
    del argv
    if not _STUDY.value:
        raise ConfigError(
            "`--study` is missing; give a study's file, such as --study=configs/studies/digits.py."
        )
    program.require_extra("experiments")
    from advprop_experiments import plan

    study = plan.load_study(recipes.find(_STUDY.value) or _STUDY.value)
    output_dir = _OUTPUT_DIR.value
    num_parallel = _NUM_PARALLEL.value or plan.default_num_parallel()
    if _LIST.value:
        print(_format_plan(study, output_dir, num_parallel))
        return
    # Imported here, so that --help and --list do not wait for TensorFlow.
    from advprop_experiments import execution, report
    from efficientnet_advprop.reports import pages

    added = plan.claim_output_dir(study, output_dir)
    if _RUN.value is not None:
        logging.set_verbosity(logging.WARNING)
        execution.execute_runs(study.find_runs(_RUN.value), study, output_dir)
        return
    if not _REPORT.value:
        left = format_duration(plan.seconds_left(study, output_dir, num_parallel))
        print(
            f"{len(study.runs())} runs, {len(added)} of them new; "
            f"{num_parallel} at a time: about {left}",
            flush=True,
        )
        if not execution.execute_all(
            study, execution.own_command, output_dir, num_parallel=num_parallel
        ):
            return
    left = sum(not is_done for _, is_done, _ in plan.progress(study, output_dir))
    if left and study.keeps_images:
        raise ConfigError(
            f"`--report` is given, but {left} of {len(study.runs())} runs are to do, and this plan"
            " lets nobody look at a part of them. The same command without it goes on."
        )
    summary = report.summarize(study, plan.read_all_scores(study, output_dir))
    path = pages.write(report.make_page(summary), output_dir)
    for name, contents in (
        ("report.json", report.to_json(summary).encode()),
        ("claims.png", report.draw_claims(summary)),
    ):
        write_atomically(os.path.join(output_dir, name), contents)
    print(f"\n{report.format_console(summary)}\n\nThe report: {path}", flush=True)


if __name__ == "__main__":
    program.run(main)
