"""Evaluates the checkpoints of a running training from another process; keeps the best.

    result = follow(model_dir="gs://…/b0", data_dir="gs://…/imagenet", strategy=strategy)

The run itself trains with `--config.training.evaluate_every_epochs=0`, so that its
devices never wait for an evaluation. The best checkpoint goes where the run would keep
it, the evaluations' metrics.jsonl and summaries to <model_dir>/validation/. Official
counterpart: `main.py --mode=eval` with `--eval_timeout` and `--archive_ckpt`.
"""

import contextlib
import math
import os
import time
from typing import Callable, Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.training import build, checks, run_directory
from efficientnet_advprop.training.checkpoints import Checkpoints, copy_for_inference
from efficientnet_advprop.training.loop import TrainingResult, make_evaluation
from efficientnet_advprop.training.progress import Progress
from efficientnet_advprop.training.run_directory import RunMetadata

_REPORTS = "validation"
_WAIT_SECONDS = 5.0  # between two searches for new checkpoints


def follow(
    *,
    model_dir: str,
    data_dir: str,
    strategy: tf.distribute.Strategy,
    timeout_seconds: Optional[float] = None,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
) -> TrainingResult:
    """Evaluates each new checkpoint of a run on its validation images, until its last one.

    If several checkpoints are written during an evaluation, only the newest is next.

    Args:
        model_dir: the folder of the run, which may not have started yet.
        data_dir: the folder of its records.
        strategy: the devices to compute on.
        timeout_seconds: how long to wait for a checkpoint; None: without limit.
        log: a function that prints a line on the console.

    Returns:
        With the step of the last evaluated checkpoint, 0 for none.

    Raises:
        CheckpointError: no run starts in `model_dir` within this time.
        ConfigError: the run evaluates its checkpoints itself, or trains on other data.
        DataError: the records are missing.
    """
    _wait_for_run(model_dir, timeout_seconds)
    config = run_directory.read_config(model_dir)
    if config.training.evaluate_every_epochs > 0:
        raise ConfigError(
            "`--watch` follows a run that leaves the evaluation to others, but that in "
            f"{model_dir!r} evaluates every {config.training.evaluate_every_epochs:g} epochs "
            "itself; train with --config.training.evaluate_every_epochs=0."
        )
    train, validation, _ = checks.open_data(config, data_dir)
    _require_same_data(RunMetadata.of(train, validation), data_dir, model_dir)
    num_examples = train.num_records
    total_steps = build.count_steps(config, num_examples)
    with strategy.scope():
        model = build.make_model(config, aux_branches=0)
    evaluate = make_evaluation(config, strategy, validation, model)
    with tf.device("CPU:0"):  # only to be read and written again
        state = build.make_state(config)
    saved = Checkpoints(model_dir, state, config.training.keep_last)
    step = 0
    progress = Progress(
        os.path.join(model_dir, _REPORTS),
        start_step=total_steps,  # earlier reports stay
        total_steps=total_steps,
        steps_per_epoch=num_examples / config.training.global_batch_size,
        global_batch_size=config.training.global_batch_size,
        num_classes=config.model.num_classes,
        log=log,
    )
    log(f"following {model_dir} up to step {total_steps}")
    with contextlib.closing(progress):
        for path in _new_checkpoints(model_dir, timeout_seconds):
            try:
                saved.load(path)
            except CheckpointError as error:
                # The run keeps only its last few checkpoints and has removed this one
                # meanwhile.
                log(f"skipped: {error}")
                continue
            step = int(state.step.numpy())
            copy_for_inference(state.model, state.ema, model)
            score = evaluate()
            is_best = saved.save_if_best(score.top1)
            saved.wait()
            progress.report_evaluation(step, score, is_best)
            if step >= total_steps:
                break
        else:
            log(f"no new checkpoint for {timeout_seconds:g} seconds")
    best = run_directory.list_checkpoints(model_dir, run_directory.BEST)
    best_step = int(best[0].rpartition("-")[2]) if best else None
    return TrainingResult(step, total_steps, saved.best_accuracy, best_step=best_step)


def _require_same_data(metadata: RunMetadata, data_dir: str, model_dir: str) -> None:
    """Compares the data with the run's, and the validation images also with an earlier
    follower's: the run may not have had any.
    """
    reports = os.path.join(model_dir, _REPORTS)
    for folder in (model_dir, reports):
        before = RunMetadata.read(folder)
        if before is not None:
            metadata.require_same_data(before, data_dir, model_dir)
    metadata.write(reports)


def _wait_for_run(model_dir: str, timeout_seconds: Optional[float]) -> None:
    deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
    while not run_directory.is_initialized(model_dir):
        if time.monotonic() >= deadline:
            raise CheckpointError(
                f"`--model_dir` is {model_dir!r}, "
                f"where no run has begun within {timeout_seconds:g} seconds."
            )
        time.sleep(min(_WAIT_SECONDS, max(0.0, deadline - time.monotonic())))


def _new_checkpoints(model_dir: str, timeout_seconds: Optional[float]) -> Iterator[str]:
    """Yields the newest checkpoint whenever there is a new one, until none comes in time."""
    last, since = None, time.monotonic()
    while True:
        path = next(iter(run_directory.list_checkpoints(model_dir)), None)
        if path is not None and path != last:
            yield path
            last, since = path, time.monotonic()
            continue
        if timeout_seconds is not None and time.monotonic() >= since + timeout_seconds:
            return
        time.sleep(_WAIT_SECONDS)
