"""One training run, from a config and a folder of records to checkpoints; killed at any
moment, it goes on when started again.

    result = train(config, data_dir="…", model_dir="…", strategy=make_strategy("one_device"))

The inner loop runs in TensorFlow, `steps_per_loop` updates at a time; the outer one in
Python looks at what came out, and saves, reports and evaluates at its boundaries. A run
is a function of its config: everything random follows from (seed, step, replica), so
the state at a step decides all that follows. On one device in float32, an interrupted
run ends with the very bits of an uninterrupted one.
"""

import contextlib
import dataclasses
import functools
import math
import time
from typing import Callable, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.data import pipeline, records, sources
from efficientnet_advprop.evaluation.evaluator import Evaluator
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import Network
from efficientnet_advprop.runtime.errors import RunError
from efficientnet_advprop.training import agreement, build, checkpoints, fine_tuning, passes
from efficientnet_advprop.training.progress import Progress
from efficientnet_advprop.training.run_facts import RunFacts
from tpu_utils.devices.batch_iterator import BatchIterator
from tpu_utils.devices.host_memory import keep_freed_blocks
from tpu_utils.devices.preemption import StopRequest
from tpu_utils.devices.workers import Workers
from tpu_utils.errors import brief_message

_NUM_PICTURES = 8


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Args:
        step: updates done, this call's and earlier ones'.
        total_steps: of the whole run; `step` is less if SIGTERM stopped it.
        best_accuracy: highest validation top-1 of the averaged weights, in [0, 1]; None
            before the first evaluation.
    """

    step: int
    total_steps: int
    best_accuracy: Optional[float]


# What a reduction that lacks a worker ends with.
_PEER_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


def _with_readable_errors(train: Callable) -> Callable:
    """Turns what TensorFlow says of bad data, full disks and full memory into our own
    words.
    """

    @functools.wraps(train)
    def wrapped(config, **kwargs):
        try:
            return train(config, **kwargs)
        except tf.errors.OpError as error:
            data_error = records.explain_data_error(error)
            if data_error is not None:
                raise data_error from None
            workers = Workers(kwargs["strategy"])
            if workers.count > 1 and isinstance(error, _PEER_ERRORS):
                raise RunError(_explain_loss(workers)) from error
            message = brief_message(error)
            if (
                isinstance(error, tf.errors.ResourceExhaustedError)
                and "allocating" in error.message
            ):
                raise RunError(
                    f"memory is short ({message}). Lower `config.training.global_batch_size` (now"
                    f" {config.training.global_batch_size}) or raise"
                    " `config.training.accumulation_steps` (now"
                    f" {config.training.accumulation_steps})."
                ) from error
            raise RunError(
                f"{message} ({type(error).__name__}). The checkpoints so far are intact; the same"
                " command goes on from them."
            ) from error

    return wrapped


def _explain_loss(workers: Workers) -> str:
    gone = workers.unreachable()
    who = (
        f"{', '.join(gone)} of {workers.count} no longer answers"
        if gone
        else "another worker has failed, or hangs"
    )
    return (
        f"{who}; its own message, if it could give one, says why. This is worker {workers.index}."
        " The checkpoints so far are intact; started again on all machines, the same command goes"
        " on from them."
    )


@_with_readable_errors
def train(
    config: ExperimentConfig,
    *,
    data_dir: str,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Result:
    """Trains until `config.training.num_epochs` are done or SIGTERM asks to stop.

    Args:
        config: what to compute.
        data_dir: of the records.
        model_dir: of checkpoints and reports; if it holds a run of this config, that
            goes on.
        strategy: where to compute.
        log: takes each line for the console.

    Raises:
        ConfigError: a field breaks a rule, does not fit the strategy, or differs from
            the run in `model_dir`; or that began with other numbers of images.
        RunError: another run is at work in `model_dir`.
        UsageError: the data have other classes than the network, or than the run
            in `model_dir`.
        DataError: the records are missing or damaged.
        CheckpointError: a checkpoint cannot be written or read, those of the run are
            lost, or `config.init.checkpoint` cannot be had or does not fit.
        RunError: a loss is not finite, or memory is short.
    """
    config.validate()
    _check_batches(config, strategy.num_replicas_in_sync)
    train_split = sources.open_split(config.data, data_dir, "train")
    evaluates = config.training.evaluate_every_epochs > 0
    # Without evaluation the validation images need not be there.
    validation_split = (
        sources.open_split(config.data, data_dir, "validation")
        if evaluates
        else records.Split((), ())
    )
    num_examples, num_validation = train_split.num_records, validation_split.num_records
    class_names = sources.find_class_names(config.data, data_dir, config.model.num_classes)
    workers = Workers(strategy)

    # All workers must have the same config, and the directory must be this run's:
    # checkpoints of another config, or of other data, must not be touched.
    agreement.check_same_run(
        workers, config, model_dir=model_dir, num_images=f"{num_examples} and {num_validation}"
    )
    facts = RunFacts(
        num_train_images=num_examples,
        num_validation_images=num_validation,
        train_files=train_split.digest(),
        validation_files=validation_split.digest(),
        num_replicas=strategy.num_replicas_in_sync,
    )
    with agreement.hold_model_dir(workers, model_dir):
        goes_on = checkpoints.check_model_dir(model_dir, config, class_names)
        if goes_on:
            for warning in facts.require_same_run(model_dir, data_dir):
                log(f"warning: {warning}")
        if workers.is_chief:
            checkpoints.claim_model_dir(model_dir, config, class_names, facts, goes_on=goes_on)
        return _run(config, facts, train_split, validation_split, model_dir, strategy, workers, log)


def _run(
    config: ExperimentConfig,
    facts: RunFacts,
    train_split: records.Split,
    validation_split: records.Split,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    log: Callable[[str], None],
) -> Result:
    """Trains in a directory that is this run's alone."""
    num_examples, num_validation = facts.num_train_images, facts.num_validation_images
    evaluates = config.training.evaluate_every_epochs > 0
    steps_per_epoch = num_examples / config.training.global_batch_size
    total_steps = build.count_steps(config, num_examples)

    # A run starts or goes on in four steps.
    # 1. All variables get their initial values from the seed; if there is a checkpoint,
    #    the next step overwrites them.
    keras.utils.set_random_seed(config.training.seed + 1)
    with strategy.scope():
        state = build.make_state(config)
        averaged_model = build.make_model(config, aux_branches=0)
    # 2. The newest readable checkpoint is restored: model, optimizer, averages, step
    #    and best accuracy.
    saved = checkpoints.Checkpoints(
        model_dir, state, config.training.keep_last, strategy=strategy, writes=workers.is_chief
    )
    restored = saved.restore()
    agreement.check_same_start(workers, model_dir, restored or "")
    step = int(state.step.numpy())
    #    A new run may start from released weights instead of random ones.
    if restored is None and config.init.checkpoint:
        log(_initialize(state, config))
    # 3. The data start at that step's batch.
    batches = BatchIterator(
        strategy.distribute_datasets_from_function(
            lambda context: pipeline.make_train_dataset(
                config.data,
                train_split,
                global_batch_size=config.training.global_batch_size,
                seed=config.training.seed,
                start_batch=step,
                input_context=context,
                num_classes=config.model.num_classes,
                paired_views=AUGMENTED in METHODS[config.training.method].views,
            ).apply(
                tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY)
            )
        )
    )
    keep_freed_blocks()
    # 4. The reports are cut after that step.
    progress = Progress(
        model_dir,
        start_step=step,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        global_batch_size=config.training.global_batch_size,
        log=log,
        writes=workers.is_chief,
    )

    validated = f"{num_validation:,} for validation" if evaluates else "without evaluation"
    shared = f" on {workers.count} workers, of which this is {workers.index}"
    log(
        f"{config.training.method} training of {state.model.name} "
        f"({state.model.count_params():,} parameters) on {num_examples:,} images, {validated}; "
        f"replicas: {strategy.num_replicas_in_sync}{shared if workers.count > 1 else ''}; "
        f"{f'going on from {restored}' if restored else f'starting in {model_dir}'}"
    )
    without_effect = config.fields_without_effect()
    if without_effect:
        log(
            f"warning: {config.model.variant!r} makes its own network, to which "
            f"{', '.join(f'`config.{name}`' for name in without_effect)} say nothing"
        )
    learning_rate = build.make_learning_rate(config, steps_per_epoch, total_steps)
    run_steps = _make_device_loop(
        strategy,
        build.make_step(config, state, learning_rate),
        METHODS[config.training.method].views,
    )
    periods = [config.training.summary_every_steps, config.training.checkpoint_every_steps]
    if evaluates:
        score_averages = make_evaluation(config, strategy, validation_split, averaged_model)
        make_pictures = _make_picture_function(config, strategy, validation_split, state)
        evaluate_every_steps = max(
            1, round(config.training.evaluate_every_epochs * steps_per_epoch)
        )
        periods.append(evaluate_every_steps)

    def is_due(period):
        return step % period == 0 or step == total_steps

    is_saved, is_stopping, pending = True, False, []
    with StopRequest() as stop, contextlib.closing(progress), batches:
        while step < total_steps and not is_stopping:
            num_steps = _steps_to_boundary(
                step, total_steps, config.training.steps_per_loop, periods
            )
            started = time.perf_counter()
            sums = {
                name: values.numpy()
                for name, values in run_steps(batches.iterator, tf.constant(num_steps)).items()
            }
            progress.add_time(num_steps, time.perf_counter() - started)
            _check_losses(sums, step, config)
            step, is_saved = step + num_steps, False
            pending.append(sums)

            if is_due(config.training.summary_every_steps):
                progress.report_training(
                    step, _mean_metrics(pending), float(learning_rate(tf.constant(step - 1)))
                )
                pending = []
            if evaluates and is_due(evaluate_every_steps):
                checkpoints.copy_for_inference(state.model, state.ema, averaged_model)
                score = score_averages()
                is_best = saved.save_if_best(score.top1)
                progress.report_evaluation(step, score.top1, score.top5, score.num_images, is_best)
                if make_pictures is not None:
                    progress.show_pictures(step, *make_pictures())
            # After the evaluation, so that a run killed in between repeats it rather
            # than misses it.
            if is_due(config.training.checkpoint_every_steps):
                saved.save()
                is_saved = True
            # All workers stop at the same step, whichever of them is asked to.
            is_stopping = workers.any(bool(stop.reason))
        if not is_saved:
            saved.save()
        saved.wait()
        # No worker leaves before the chief has written; otherwise the chief would take
        # its absence for a failure.
        workers.any(False)
    if step < total_steps:
        reason = stop.reason or "the signal that another worker got"
        log(
            f"stopped by {reason}; step {step} of {total_steps} is saved in {model_dir}: the same"
            " command goes on from there"
        )
    else:
        best = (
            f", best validation top-1 {100 * saved.best_accuracy:.2f} %"
            if saved.best_accuracy is not None
            else ""
        )
        log(f"all {total_steps} steps are done{best}; checkpoints in {model_dir}")
    return Result(step, total_steps, saved.best_accuracy)


def _initialize(state, config: ExperimentConfig) -> str:
    """Loads the weights to start from; returns a line about them for the console."""
    init = config.init
    report = fine_tuning.initialize(
        state, init.checkpoint, use_ema=init.use_ema, include_head=init.include_head
    )
    return str(report)


def _check_batches(config: ExperimentConfig, num_replicas: int) -> None:
    parts = num_replicas * config.training.accumulation_steps
    if config.training.global_batch_size % parts:
        raise ConfigError(
            f"`config.training.global_batch_size` is {config.training.global_batch_size}, but must"
            f" divide by the {num_replicas} replicas times `config.training.accumulation_steps` ="
            f" {config.training.accumulation_steps}; take a multiple of {parts}."
        )
    if config.training.eval_batch_size % num_replicas:
        raise ConfigError(
            f"`config.training.eval_batch_size` is {config.training.eval_batch_size}, but must"
            f" divide by the {num_replicas} replicas; take a multiple of {num_replicas}."
        )
    share, size = (
        METHODS[config.training.method].adversarial_share,
        config.training.global_batch_size // parts,
    )
    if share is not None and not 0 < round(share * size) < size:
        raise ConfigError(
            f"`config.training.global_batch_size` is {config.training.global_batch_size}, but"
            f" {config.training.method!r} makes {share:g} of the {size} images adversarial that a"
            f" replica takes at once; take at least {3 * parts}."
        )
    build.check_denoising(config, num_replicas)
    build.check_batch_norm_groups(config, num_replicas)


def _steps_to_boundary(
    step: int, total_steps: int, steps_per_loop: int, periods: Sequence[int]
) -> int:
    """The number of updates until something is due that Python does."""
    return min(steps_per_loop, total_steps - step, *(period - step % period for period in periods))


def _make_device_loop(
    strategy: tf.distribute.Strategy, train_step: Callable, views: Sequence[str]
) -> Callable:
    """Makes a function (iterator, number of updates) that trains, and returns the sums
    over all images of each update: name → float32 [number of updates].
    """
    names = ["num_images", *(f"{view}_{kind}" for view in views for kind in ("loss", "correct"))]

    def count(batch):
        sums = train_step(batch)
        # One tensor, so that one reduction is enough.
        return tf.stack([sums[name] for name in names])

    # `tf.while_loop`, since AutoGraph is off: autograph.py says why.
    @tf.function(autograph=False)
    def run_steps(iterator, num_steps):
        def run_step(index, rows):
            sums = strategy.run(count, args=(next(iterator),))
            total = strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
            return index + 1, rows.write(index, total)

        rows = tf.TensorArray(tf.float32, size=num_steps, element_shape=[len(names)])
        _, rows = tf.while_loop(
            lambda index, _: index < num_steps,
            run_step,
            (tf.constant(0), rows),
            maximum_iterations=num_steps,
        )
        return dict(zip(names, tf.unstack(rows.stack(), axis=1)))

    return run_steps


def make_evaluation(
    config: ExperimentConfig,
    strategy: tf.distribute.Strategy,
    validation_split: records.Split,
    model: Network,
) -> Callable:
    """Makes a function without arguments that returns the `Score` of the model's
    present weights on the validation images, through the main batch norms.
    """
    evaluator = Evaluator(lambda images: model(images, training=False), strategy=strategy)
    # Traced once for all evaluations; each iterates anew.
    batches = strategy.distribute_datasets_from_function(
        lambda context: pipeline.make_eval_dataset(
            config.data,
            validation_split,
            global_batch_size=config.training.eval_batch_size,
            input_context=context,
            num_classes=config.model.num_classes,
        )
    )
    return lambda: evaluator(batches)


def _make_picture_function(config, strategy, validation_split, state) -> Optional[Callable]:
    """Makes a function without arguments that returns a few validation images, always
    the same, and their adversarial versions by the training step's attack.

    None for a method without an attack.
    """
    attack = build.make_attack(config)
    if attack is None:
        return None
    branch = METHODS[config.training.method].attacked_branch
    sample = next(
        iter(
            pipeline.make_eval_dataset(
                config.data,
                validation_split,
                global_batch_size=_NUM_PICTURES,
                num_classes=config.model.num_classes,
            )
        )
    )
    images, labels = tf.clip_by_value(sample["images"], 0.0, 255.0), sample["labels"]
    seed = tf.constant([config.training.seed, 0])

    def disturb(images, labels):
        network = passes.attacked_network(state.model, branch, config.attack.statistics, seed)
        return attack(network, images, labels, seed)

    disturb_on_all = tf.function(
        lambda images, labels: strategy.run(disturb, args=(images, labels)), autograph=False
    )

    def make_pictures():
        return images, strategy.experimental_local_results(disturb_on_all(images, labels))[0]

    return make_pictures


def _mean_metrics(pending: list) -> dict[str, float]:
    """Means over all images of the device loops since the last report."""
    totals = {name: math.fsum(float(sums[name].sum()) for sums in pending) for name in pending[0]}
    num_images = totals.pop("num_images")
    return {
        name.replace("correct", "accuracy"): total / num_images for name, total in totals.items()
    }


def _check_losses(sums: dict, first_step: int, config: ExperimentConfig) -> None:
    losses = np.stack([values for name, values in sums.items() if name.endswith("_loss")])
    bad = np.flatnonzero(~np.isfinite(losses).all(axis=0)) + first_step + 1
    if len(bad):
        listed = ", ".join(map(str, bad[:5])) + (f", … {bad[-1]}" if len(bad) > 5 else "")
        raise RunError(
            f"the loss is not finite at step{'s'[: len(bad) > 1]} {listed}. Nothing was saved after"
            f" step {first_step}; the checkpoints up to it are intact. Lower"
            " `config.optimizer.learning_rate_per_256` (now"
            f" {config.optimizer.learning_rate_per_256:g}), lengthen"
            " `config.optimizer.warmup_epochs`, or compute in float32, in a --model_dir of its"
            " own."
        )
