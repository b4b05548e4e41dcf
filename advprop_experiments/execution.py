"""Executes the runs of a study: some in this process, or all in parallel processes.

The folder of a run is that of `training.loop`, with the evaluation and scores.json added,
and in that of a process's first run its log.txt. All runs use the images in <output_dir>/data;
<output_dir>/origins.csv says which commit made which.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent import futures
from typing import Callable, Mapping, Optional, Sequence

import tensorflow as tf

from advprop_experiments.plan import (
    SCORES_FILE,
    Run,
    Study,
    pack_images,
    read_all_scores,
    read_scores,
    run_dir,
    seconds_left,
    visible_gpus,
)
from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.data.builtin_datasets import BUILTIN_DATASETS
from efficientnet_advprop.data.corruptions import CORRUPTIONS
from efficientnet_advprop.evaluation import evaluation_run
from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.evaluation.results import ImagePredictions, predictions_path
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import (
    SuiteSettings,
    TestSet,
    attack_stages,
    with_attack,
)
from efficientnet_advprop.evaluation.test_set_name import parse_name
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.errors import RunError, list_lines
from efficientnet_advprop.runtime.files import format_duration, to_json, write_atomically
from efficientnet_advprop.training import checkpoints, loop
from tpu_utils.strategy import make_strategy

_LOG_FILE = "log.txt"
_ORIGINS_FILE = "origins.csv"
_POLL_SECONDS = 0.2
_MAX_RUNS = 8  # of a process, one after the other
# The untargeted PGD of the evaluation: its iterations, and the size of one relative to ε.
_ATTACK_STEPS, _RELATIVE_STEP_SIZE = 10, 0.25

Log = Callable[[str], None]


class _Stopped(Exception):
    """SIGTERM was received."""


def execute(run: Run, study: Study, output_dir: str) -> Optional[dict]:
    """Trains a run, measures the averaged weights of the last step, and writes the scores.

    Returns:
        The scores, or None if SIGTERM stopped the training; the next call continues it.
    """
    started = time.process_time()
    folder = run_dir(output_dir, run.name)
    data_dir = os.path.join(output_dir, "data")
    result = loop.train(
        run.config, data_dir=data_dir, model_dir=folder, strategy=make_strategy("one_device")
    )
    if result.step < result.total_steps:
        return None
    scores = _measure(run, study, folder, data_dir)
    scores["processor_seconds"] = time.process_time() - started
    _note_origin(run, output_dir)
    write_atomically(os.path.join(folder, SCORES_FILE), (to_json(scores) + "\n").encode())
    return scores


def _note_origin(run: Run, output_dir: str) -> None:
    """Appends a line to the study's record: the run, the commit and TensorFlow's version."""
    root = pathlib.Path(__file__).parents[1]
    commit = "no repository"
    if shutil.which("git") and (root / ".git").exists():  # git itself would look further up
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    # One write, since several processes append to it.
    with open(os.path.join(output_dir, _ORIGINS_FILE), "a") as file:
        file.write(f"{run.name},{commit},TensorFlow {tf.__version__}\n")


def execute_runs(runs: Sequence[Run], study: Study, output_dir: str) -> None:
    """Executes runs one after the other in this process, which saves the start of TensorFlow."""
    for run in runs:
        if read_scores(output_dir, run.name) is None and execute(run, study, output_dir) is None:
            return  # SIGTERM
        # Traced functions and their variables would pile up.
        keras.backend.clear_session()


def choose_test_sets(run: Run, study: Study, data_dir: str) -> dict[str, list[TestSet]]:
    """Returns the test sets of each of `study.metrics_of(run)`, all of a built-in data set.

    Those of "autoattack" are its attacks, each on what withstood those before: the
    accuracy of the last one is that under all.
    """
    config = run.config
    num_classes, seed = config.model.num_classes, config.training.seed
    settings = SuiteSettings(
        data_dir, num_classes, config.data.image_size, config.data.eval_crop, seed=seed
    )
    builtin = BUILTIN_DATASETS[config.data.source]
    clean, *corrupted = open_suites([builtin.name, builtin.corrupted_name], settings)
    chosen = {
        "clean": [clean],
        "corrupted": [
            dataclasses.replace(one, max_images=study.corrupted_images)
            for one in corrupted
            if parse_name(one.name).severity in study.severities
        ],
        "attacked": [
            with_attack(
                dataclasses.replace(clean, max_images=study.attacked_images), _pgd(e), seed=seed
            )
            for e in study.attack_epsilons
        ],
    }
    if study.autoattack_epsilon is not None:
        sampled = dataclasses.replace(clean, max_images=study.autoattack_images)
        autoattack = AutoAttack(study.autoattack_epsilon, num_classes=num_classes)
        chosen["autoattack"] = attack_stages(sampled, "autoattack", autoattack, seed)
    return {metric: chosen[metric] for metric in study.metrics_of(run)}


def _pgd(epsilon: float) -> PGD:
    step_size = _RELATIVE_STEP_SIZE * epsilon
    return PGD(epsilon, step_size, _ATTACK_STEPS, targeted=False, random_start=1.0)


def _measure(run: Run, study: Study, folder: str, data_dir: str) -> dict:
    model = checkpoints.load_averaged_model(folder, which="last")
    data = run.config.data
    test_sets = choose_test_sets(run, study, data_dir)
    classifier = as_classifier(model, image_size=data.image_size, crop=data.eval_crop)
    directory = os.path.join(folder, "evaluation")
    results = evaluation_run.measure(
        classifier,
        list(itertools.chain(*test_sets.values())),
        directory,
        batch_size=run.config.training.eval_batch_size,
    )
    scores = {
        metric: statistics.fmean(results.test_sets[name].score.top1 for name in _scored(chosen))
        for metric, chosen in test_sets.items()
    }
    if study.keeps_images:
        scores["images"] = {
            metric: {
                name: pack_images(ImagePredictions.read(predictions_path(directory, name)).is_top1)
                for name in _scored(chosen)
            }
            for metric, chosen in test_sets.items()
        }
    return scores


def _scored(test_sets: Sequence[TestSet]) -> list[str]:
    # A metric is the mean over these: of a chain of attacks the last one, which tells what
    # withstood them all.
    continued = {test_set.after for test_set in test_sets}
    return [test_set.name for test_set in test_sets if test_set.name not in continued]


def own_command(runs: Sequence[Run]) -> list[str]:
    """Returns the command line of this process, with `--run` for some runs."""
    return [sys.executable, *sys.orig_argv[1:], f"--run={','.join(run.name for run in runs)}"]


def execute_all(
    study: Study,
    command: Callable[[Sequence[Run]], Sequence[str]],
    output_dir: str,
    *,
    num_parallel: int,
    log: Log = lambda line: print(line, flush=True),
) -> bool:
    """Executes the runs that are not done, in processes that take several each while many
    are left; False after SIGTERM, which is passed on to them, and whose end it waits for.

    Each process, started by `command` of its runs (see `own_command`), gets its share of
    the CPU cores, or its own GPU. Of each seed the long runs begin first, so that the
    processes end at about the same time.

    Raises:
        RunError: a run failed; the message names it and its log. The other running
            processes have ended, and no other run was started.
    """
    scores = read_all_scores(study, output_dir)
    waiting = sorted(
        (run for run in study.runs() if scores[run.name] is None),
        key=lambda run: (study.seeds.index(run.seed), -run.expected_seconds),
    )
    num_runs = len(scores)
    num_done = num_runs - len(waiting)
    if not waiting:
        return True
    environments = [_environment(slot, num_parallel) for slot in range(num_parallel)]
    running: dict[int, tuple[list[Run], str, subprocess.Popen]] = {}  # by slot; with its log
    failed: list[str] = []
    with _making_images(study, output_dir, log), _raising_on_sigterm():
        try:
            while running or (waiting and not failed):
                for slot in range(num_parallel):
                    if slot not in running and waiting and not failed:
                        count = max(1, min(_MAX_RUNS, len(waiting) // (2 * num_parallel)))
                        runs, waiting = waiting[:count], waiting[count:]
                        path = os.path.join(run_dir(output_dir, runs[0].name), _LOG_FILE)
                        process = _start(command(runs), path, environments[slot])
                        running[slot] = (runs, path, process)
                time.sleep(_POLL_SECONDS)
                for slot, (runs, path, process) in list(running.items()):
                    has_ended = process.poll() is not None  # asked before its scores are read
                    while runs and (found := read_scores(output_dir, runs[0].name)):
                        num_done += 1
                        left = format_duration(seconds_left(study, output_dir, num_parallel))
                        figures = _format_scores(study, runs.pop(0), found)
                        log(f"{num_done:3d}/{num_runs}  {figures}   ETA {left}")
                    if not has_ended:
                        continue
                    del running[slot]
                    if runs:
                        failed.append(_explain_failure(runs[0], process.returncode, path))
        except (_Stopped, KeyboardInterrupt) as stop:
            for *_, process in running.values():
                process.terminate()
            for *_, process in running.values():
                process.wait()
            if isinstance(stop, KeyboardInterrupt):
                raise
            log(
                f"stopped by SIGTERM; {num_done} of {num_runs} runs are done: "
                "the same command goes on from there"
            )
            return False
    if failed:
        raise RunError(f"{len(failed)} of {num_runs} runs failed:{list_lines(failed)}")
    return True


@contextlib.contextmanager
def _making_images(study: Study, output_dir: str, log: Log):
    """Writes the images once, before several processes read them: the clean ones at
    once, the corrupted ones in a thread, since the first runs train before they need them.

    A run that needs some earlier writes them, too; the bytes are the same.
    """
    data_dir = os.path.join(output_dir, "data")
    builtin = BUILTIN_DATASETS[study.source]
    builtin.ensure(data_dir)
    is_over = threading.Event()

    def make_corrupted():
        for number, corruption in enumerate(CORRUPTIONS if study.severities else (), 1):
            for severity in study.severities:
                if is_over.is_set():
                    return
                builtin.ensure_corrupted(data_dir, corruption, severity)
            log(f"test images: {corruption} ({number}/{len(CORRUPTIONS)})")

    with futures.ThreadPoolExecutor(1) as executor:
        making = executor.submit(make_corrupted)
        try:
            yield
        finally:
            is_over.set()
    making.result()


def _environment(slot: int, num_parallel: int) -> dict[str, str]:
    # Gives a process its share of the machine.
    threads = str(max(1, (os.cpu_count() or 1) // num_parallel))
    environment = {
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return {**os.environ, **environment}


def _start(
    command: Sequence[str], log_path: str, environment: Mapping[str, str]
) -> subprocess.Popen:
    os.makedirs(os.path.dirname(log_path), exist_ok=True)
    with open(log_path, "a") as log_file:
        return subprocess.Popen(command, stdout=log_file, stderr=subprocess.STDOUT, env=environment)


def _format_scores(study: Study, run: Run, scores: Mapping) -> str:
    # Nobody shall look at figures of a study in part, whose plan says what is looked at.
    metrics = [] if study.keeps_images else study.metrics_of(run)
    figures = "  ".join(f"{metric} {100 * scores[metric]:.1f} %" for metric in metrics)
    return f"{run.name:32s} {figures}".rstrip()


def _explain_failure(run: Run, code: int, log_path: str) -> str:
    with open(log_path) as file:
        lines = [line for line in file.read().splitlines() if line.strip()]
    last_line = lines[-1] if lines else "it printed nothing"
    return f"the run {run.name} ended with code {code}: {last_line} (all of it: {log_path})"


@contextlib.contextmanager
def _raising_on_sigterm():
    def stop(number, frame):
        del number, frame
        raise _Stopped

    previous_handler = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
