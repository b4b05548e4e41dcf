"""Evaluates the checkpoints of a running training from another process; keeps the best.

Usage:

    strategy = make_strategy("tpu")
    result = follow(model_dir="gs://…/b0", data_dir="gs://…/imagenet", strategy=strategy)

The run itself trains with `--config.training.evaluate_every_epochs=0`, so that its
devices never wait for an evaluation. This module writes:

    <model_dir>/best/ckpt-<step>.*    a copy of the best checkpoint, where the run would keep it
    <model_dir>/best/top1.json        its accuracy, which a restarted follower reads
    <model_dir>/validation/           metrics.jsonl and summaries of the evaluations

Official counterpart: `main.py --mode=eval` with `--eval_timeout` and `--archive_ckpt`.
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from typing import Callable, Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.data import sources
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.runtime.files import write_atomically
from efficientnet_advprop.training import build, checkpoints
from efficientnet_advprop.training.loop import make_evaluation
from efficientnet_advprop.training.progress import Progress

_REPORTS = "validation"
_TOP1_FILE = "top1.json"
_WAIT_SECONDS = 5.0  # between two searches for new checkpoints


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a call of `follow`.

    Attributes:
        step: of the last evaluated checkpoint; None: there was none.
        best_step, best_accuracy: of the best checkpoint so far, in [0, 1]; None before
            the first.
        is_complete: whether the last checkpoint of the run was evaluated; otherwise the
            time was over.
    """

    step: Optional[int]
    best_step: Optional[int]
    best_accuracy: Optional[float]
    is_complete: bool


def follow(
    *,
    model_dir: str,
    data_dir: str,
    strategy: tf.distribute.Strategy,
    timeout_seconds: Optional[float] = None,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Result:
    """Evaluates each new checkpoint of a run on its validation images, until its last
    one.

    If several checkpoints are written during an evaluation, only the newest is
    evaluated next.

    Args:
        model_dir: the folder of the run, which may not have started yet.
        data_dir: the folder of its records.
        strategy: the devices to compute on.
        timeout_seconds: how long to wait for a checkpoint; None: without limit.
        log: a function that prints a line on the console.

    Raises:
        CheckpointError: no run starts in `model_dir` within this time.
        ConfigError: the run evaluates its checkpoints itself.
        DataError: the records are missing.
    """
    _wait_for_run(model_dir, timeout_seconds)
    config = checkpoints.read_config(model_dir)
    if config.training.evaluate_every_epochs > 0:
        raise ConfigError(
            "`--watch` follows a run that leaves the evaluation to others, but that in "
            f"{model_dir!r} evaluates every {config.training.evaluate_every_epochs:g} epochs "
            "itself; train with --config.training.evaluate_every_epochs=0."
        )
    num_examples = sources.open_split(config.data, data_dir, "train").num_records
    validation_split = sources.open_split(config.data, data_dir, "validation")
    total_steps = build.count_steps(config, num_examples)
    best_step, best_accuracy = _read_best(model_dir)
    with strategy.scope():
        model = build.make_model(config, aux_branches=0)
    evaluate = make_evaluation(config, strategy, validation_split, model)
    step = None
    tf.io.gfile.makedirs(os.path.join(model_dir, _REPORTS))
    progress = Progress(
        os.path.join(model_dir, _REPORTS),
        start_step=total_steps,  # earlier reports stay
        total_steps=total_steps,
        steps_per_epoch=num_examples / config.training.global_batch_size,
        global_batch_size=config.training.global_batch_size,
        log=log,
    )
    log(f"following {model_dir} up to step {total_steps}")
    with contextlib.closing(progress):
        for path in _new_checkpoints(model_dir, timeout_seconds):
            try:
                trained = checkpoints.restore_trained(config, path)
                step = int(trained.step.numpy())
                checkpoints.copy_for_inference(trained.model, trained.ema, model)
            except CheckpointError as error:
                # The run keeps only its last few checkpoints and has removed this one
                # meanwhile.
                log(f"passed over: {error}")
                continue
            score = evaluate()
            is_best = best_accuracy is None or score.top1 > best_accuracy
            if is_best and _keep(model_dir, path, step, score.top1, log):
                best_step = step
                best_accuracy = score.top1
            progress.report_evaluation(step, score.top1, score.top5, score.num_images, is_best)
            if step >= total_steps:
                return Result(step, best_step, best_accuracy, is_complete=True)
    log(f"no new checkpoint for {timeout_seconds:g} seconds; the best one is in {model_dir}/best")
    return Result(step, best_step, best_accuracy, is_complete=False)


def _wait_for_run(model_dir: str, timeout_seconds: Optional[float]) -> None:
    deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
    while not checkpoints.is_claimed(model_dir):
        if time.monotonic() >= deadline:
            raise CheckpointError(
                f"`--model_dir` is {model_dir!r}, "
                f"where no run has begun within {timeout_seconds:g} seconds."
            )
        time.sleep(min(_WAIT_SECONDS, max(0.0, deadline - time.monotonic())))


def _new_checkpoints(model_dir: str, timeout_seconds: Optional[float]) -> Iterator[str]:
    """Yields the newest checkpoint whenever there is a new one, until none is written
    in time.
    """
    directory = os.path.join(model_dir, checkpoints.LAST)
    last = None
    since = time.monotonic()
    while True:
        path = checkpoints.latest(directory)
        if path is not None and path != last:
            yield path
            last = path
            since = time.monotonic()
            continue
        if timeout_seconds is not None and time.monotonic() >= since + timeout_seconds:
            return
        time.sleep(_WAIT_SECONDS)


def _read_best(model_dir: str) -> tuple[Optional[int], Optional[float]]:
    path = os.path.join(model_dir, checkpoints.BEST, _TOP1_FILE)
    if not tf.io.gfile.exists(path):
        return None, None
    with tf.io.gfile.GFile(path) as file:
        best = json.load(file)
    return best["step"], best["top1"]


def _keep(model_dir: str, path: str, step: int, top1: float, log: Callable[[str], None]) -> bool:
    """Copies a checkpoint to the folder of the best one.

    Returns False if the run has removed the checkpoint meanwhile.
    """
    directory = os.path.join(model_dir, checkpoints.BEST)
    tf.io.gfile.makedirs(directory)
    name = os.path.basename(path)
    # The index is copied last: without it, an incomplete copy is not taken for a
    # checkpoint.
    source = os.path.dirname(path)
    files = [file for file in tf.io.gfile.listdir(source) if file.startswith(f"{name}.")]
    try:
        for file in sorted(files, key=lambda file: file.endswith(".index")):
            tf.io.gfile.copy(
                os.path.join(source, file), os.path.join(directory, file), overwrite=True
            )
    except tf.errors.NotFoundError:
        log(f"{path} was removed by the run before it could be kept")
        return False
    state = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    write_atomically(os.path.join(directory, "checkpoint"), state.encode())
    write_atomically(
        os.path.join(directory, _TOP1_FILE), json.dumps({"step": step, "top1": top1}).encode()
    )
    for file in tf.io.gfile.listdir(directory):
        if file.startswith("ckpt-") and not file.startswith(f"{name}."):
            tf.io.gfile.remove(os.path.join(directory, file))
    return True
