"""What the benchmarks share: options, measurements by turns, processes of their own.

It needs Python's own modules alone, since workers run in other projects' environments, too.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with contextlib.suppress(ImportError):  # in another project's environment
    from efficientnet_advprop.runtime import process

    process.handle_interrupt()
    process.greet_in_silence("tensorflow")


def parse(documentation: str, **options: tuple) -> argparse.Namespace:
    """Parses the command line; an option is (default, help) or (default, help, more of argparse's).

    A list takes words, False makes a switch, and numbers are of their default's type.
    """
    parser = argparse.ArgumentParser(
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, (default, meaning, *more) in options.items():
        if default is False:
            kind: dict[str, Any] = dict(action="store_true")
        elif isinstance(default, list):
            kind = dict(nargs="+")
        else:
            kind = dict(type=str if default is None else type(default))
        shown = "" if default in (None, False) else f" (default: {default})"
        settings = {**kind, **(more[0] if more else {}), "default": default}
        parser.add_argument(f"--{name}", help=f"{meaning}{shown}".replace("%", "%%"), **settings)
    return parser.parse_args()


def seconds_of(run: Callable) -> float:
    """Returns the seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def by_turns(runs: Mapping[str, Callable], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Returns the seconds of every call but the first `warm_up` of each, which trace.

    They take turns (A B C A B C …), so that a change of the machine's speed affects all.
    """
    turns = range(warm_up + rounds)
    seconds = [{name: seconds_of(run) for name, run in runs.items()} for _ in turns]
    return {name: [turn[name] for turn in seconds[warm_up:]] for name in runs}


def median_by_turns(runs: Mapping[str, Callable], rounds: int, warm_up: int = 1) -> dict:
    """Returns the median seconds of each; see `by_turns`."""
    seconds = by_turns(runs, rounds, warm_up)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait_for(results) -> None:
    """Waits until every tensor of a structure is computed."""
    import tensorflow as tf

    tf.nest.map_structure(lambda value: value.numpy(), results)


def random_batch(batch_size: int, image_size: int) -> dict:
    """Returns a training batch of ImageNet's form: uint8 images and labels."""
    import tensorflow as tf

    shape = [batch_size, image_size, image_size, 3]
    images = tf.random.uniform(shape, maxval=256, dtype=tf.int32)
    labels = tf.random.uniform([batch_size], maxval=1000, dtype=tf.int32)
    return {"images": tf.cast(images, tf.uint8), "labels": labels}


def verdict(value: float, target: float) -> str:
    """Returns whether a figure, of which less is better, reaches its target."""
    return f"≤ {target:.4g}: {'reached' if value <= target else 'missed'}"


def run_alone(*arguments: str, **environment: str) -> tuple[list[str], Any]:
    """Runs the running program with other arguments, in a process of its own.

    Returns what it prints: all lines but the last, and the last one's JSON.
    """
    done = subprocess.run(
        [sys.executable, sys.argv[0], *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    *lines, answer = done.stdout.splitlines()
    return lines, json.loads(answer)


class Worker:
    """A process of the running program that answers requests; see `serve`.

    Attributes:
        greeting: what it says once it is ready; None: it has ended.
    """

    def __init__(self, python: str, *arguments: str, is_quiet: bool = False):
        self._process = subprocess.Popen(
            [python, sys.argv[0], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_quiet else None,
            text=True,
        )
        self.greeting = self._answer()

    def ask(self, *words: Any) -> Any:
        """Sends words, and returns the answer."""
        print(*words, file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer is None:
            sys.exit(f"error: {self._process.args} ended with code {self._process.wait()}.")
        return answer

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def serve(prepare: Callable[[], tuple[Any, Callable]]) -> None:
    """Works for a `Worker`: `prepare` returns the greeting and what answers a request's words."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    greeting, answer = prepare()
    print(json.dumps(greeting), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(*line.split())), file=answers, flush=True)
