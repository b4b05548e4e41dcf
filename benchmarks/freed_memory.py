"""Measures what it is worth that freed memory stays with the process
(`tpu_utils.batch_iterator`).

    python benchmarks/freed_memory.py --rounds=3

The demo's network is trained by AdvProp in processes of its own, by turns with and
without `keep_freed_blocks`. Only a TensorFlow that changes glibc's thresholds (2.21
does) makes a difference.
"""

import harness  # first: it keeps TensorFlow quiet  # isort: skip

import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

_PROGRAM = """
import runpy
import sys

from efficientnet_advprop.evaluation import evaluator
from efficientnet_advprop.training import loop

if sys.argv.pop(1) == "without":
    evaluator.keep_freed_blocks = loop.keep_freed_blocks = lambda: False
runpy.run_module("efficientnet_advprop.train", run_name="__main__")
"""
_ROOT = pathlib.Path(__file__).parents[1].resolve()
_WAYS = ("without", "with")


def measure(way: str, folder: str, number: int) -> tuple[float, float, float]:
    """Returns images per second of training, and the seconds of processor time of the whole
    process, its own and the kernel's.
    """
    flags = [
        "--config=configs/digits.py:advprop",
        f"--data_dir={folder}/data",
        f"--model_dir={folder}/{way}-{number}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, way, *flags],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"The training ended with {os.waitstatus_to_exitcode(status)}:\n{printed}")
    speeds = [float(speed.replace(",", "")) for speed in re.findall(r"([\d,.]+) images/s", printed)]
    return statistics.median(speeds), usage.ru_utime, usage.ru_stime


def main():
    rounds = harness.parse(__doc__, rounds=(3, "trainings of each way")).rounds
    seen = {way: [] for way in _WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for way in _WAYS:
                seen[way].append(measure(way, folder, number))
                print(f"{way}: {seen[way][-1][0]:.0f} images/s", file=sys.stderr, flush=True)
    print("| freed blocks kept | images/s | s of CPU, own | s of CPU, kernel |\n|---|---|---|---|")
    for way in _WAYS:
        speed, own, kernel = (statistics.median(values) for values in zip(*seen[way]))
        kept = {"with": "yes", "without": "no"}[way]
        print(f"| {kept} | {speed:.0f} | {own:.1f} | {kernel:.1f} |")


if __name__ == "__main__":
    main()
