"""One training run: from a config and a folder of records to checkpoints.

    result = train(config, data_dir="…", model_dir="…", strategy=make_strategy("one_device"))

It reads from top to bottom: `train` checks (`checks`), `_run` restores and loops. The
inner loop runs in TensorFlow, `steps_per_loop` updates at a time; the outer one in
Python saves, reports and evaluates at its boundaries. Everything random follows from
(seed, step, replica), so the state at a step decides all that follows: killed at any
moment and started again, a run on one device in float32 ends with the very bits of an
uninterrupted one.
"""

import contextlib
import dataclasses
import math
from typing import Callable, Mapping, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.config.experiment import DataConfig, ExperimentConfig
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.data import pipeline, records
from efficientnet_advprop.evaluation.evaluator import Evaluator
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import Network
from efficientnet_advprop.runtime.errors import DataError, RunError, UserError, brief_message
from efficientnet_advprop.training import build, checks, fine_tuning, passes
from efficientnet_advprop.training.checkpoints import Checkpoints, copy_for_inference
from efficientnet_advprop.training.progress import Progress
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import TrainState
from tpu_utils.batch_iterator import BatchIterator, keep_freed_blocks
from tpu_utils.cluster import Workers
from tpu_utils.preemption import StopRequest

_NUM_PICTURES = 8
_FEW_UPDATES = 100


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a call of `train` ended.

    Args:
        step: updates done, this call's and earlier ones'.
        total_steps: of the whole run; `step` is less if the run was stopped.
        best_accuracy: highest validation top-1 of the averaged weights, in [0, 1]; None
            before the first evaluation.
        stopped_by: "SIGTERM", `preemption.CTRL_C` or the machine's notice; "": by nothing.
        best_step: of that accuracy, where another process evaluates.
    """

    step: int
    total_steps: int
    best_accuracy: Optional[float]
    stopped_by: str = ""
    best_step: Optional[int] = None


def train(
    config: ExperimentConfig,
    *,
    data_dir: str,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
) -> TrainingResult:
    """Trains until `config.training.num_epochs` are done, or SIGTERM or Ctrl-C asks to
    stop; then it saves the state first. A second such signal ends the process at once.

    Args:
        config: what to compute.
        data_dir: of the records.
        model_dir: of checkpoints and reports; if it holds a run of this config, that
            goes on.
        strategy: where to compute.
        log: takes each line for the console.

    Raises:
        ConfigError: a field breaks a rule, does not fit the strategy, or differs from
            the run in `model_dir`; or that began with other data.
        DataError: the records are missing or damaged.
        UsageError: they have other classes than the network or the run.
        CheckpointError: a checkpoint cannot be written or read, those of the run are
            lost, or `config.init.checkpoint` cannot be had or does not fit.
        RunError: another run is at work in `model_dir`, a loss is not finite, or memory
            is short.
    """
    workers = Workers(strategy)
    try:
        with (
            StopRequest() as stop,
            checks.checked_run(config, data_dir, model_dir, strategy, workers, log) as splits,
        ):
            return _run(config, *splits, model_dir, strategy, workers, stop, log)
    except tf.errors.OpError as error:
        explained = _explain(error, config, workers)
        raise explained from (None if isinstance(explained, DataError) else error)


def _run(
    config: ExperimentConfig,
    train: records.Split,
    validation: records.Split,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    stop: StopRequest,
    log: Callable[[str], None],
) -> TrainingResult:
    """Trains in a directory that is this run's alone."""
    training, num_images = config.training, train.num_records
    steps_per_epoch = num_images / training.global_batch_size
    total_steps = build.count_steps(config, num_images)

    # A run starts or goes on in four steps. The first two:
    state, saved, restored = _restore(config, model_dir, strategy, workers)
    place = f"going on from {restored}" if restored else f"starting in {model_dir}"
    log(_describe_start(config, train, validation, state, strategy, workers, place))
    for warning in _warnings(config, num_images, total_steps):
        log(f"warning: {warning}")
    # A new run may start from released weights instead of random ones.
    if config.init.checkpoint and not restored:
        log(str(fine_tuning.initialize(state, config.init)))
    # 3. The reports are cut after that step.
    step = int(state.step.numpy())
    progress = Progress(
        model_dir,
        start_step=step,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        global_batch_size=training.global_batch_size,
        num_classes=config.model.num_classes,
        log=log,
        writes=workers.is_chief,
    )
    learning_rate = build.make_learning_rate(config, steps_per_epoch, total_steps)
    run_steps = _make_device_loop(config, state, learning_rate, strategy)
    evaluate = _make_evaluation_of_averages(config, strategy, validation, state)
    periods = _periods(config, steps_per_epoch)

    # The inner loop runs on the device up to a boundary; this is what Python does there.
    saved_step, pending, stage_end = step if restored else None, [], step
    with contextlib.closing(progress), contextlib.ExitStack() as opened:
        # All workers stop at the same step, whichever of them is asked to.
        while step < total_steps and not workers.any(bool(stop.reason)):
            # 4. The data start at that step's batch, as they do at each stage's first step.
            if step == stage_end:
                opened.close()
                stage, stage_end = _stage_at(config.data, step, total_steps)
                batches = opened.enter_context(_open_batches(config, stage, train, strategy, step))
                if config.data.num_stages > 1:
                    log(f"up to step {stage_end}, training images have {stage.image_size} px")
                progress.expect_tracing()
            num_steps = _steps_to_boundary(step, stage_end, training.steps_per_loop, periods)
            with progress.timing(num_steps):
                sums = run_steps(batches.iterator, num_steps)
            _check_losses(sums, step, config)
            step += num_steps
            pending.append(sums)

            due = {name for name, size in periods.items() if not step % size or step == total_steps}
            if "report" in due:
                rate = float(learning_rate(tf.constant(step - 1)))
                progress.report_training(step, _mean_metrics(pending), rate)
                pending = []
            if "evaluate" in due:
                evaluate(step, saved, progress)
            # After the evaluation, so that a run killed in between repeats it.
            if "save" in due:
                saved.save()
                saved_step = step
        if saved_step != step:
            saved.save()
        saved.wait()
        # No worker leaves before the chief has written, who would take it for a failure.
        workers.any(False)
    reason = (stop.reason or "another worker's signal") if step < total_steps else ""
    log(_describe_end(step, total_steps, saved.best_accuracy, reason, model_dir))
    return TrainingResult(step, total_steps, saved.best_accuracy, reason)


def _restore(
    config: ExperimentConfig, model_dir: str, strategy: tf.distribute.Strategy, workers: Workers
) -> tuple[TrainState, Checkpoints, str]:
    """Returns the state, where it is saved, and the checkpoint that it comes from, "" for none."""
    # 1. All variables get their initial values from the seed.
    keras.utils.set_random_seed(config.training.seed + 1)
    with strategy.scope():
        state = build.make_state(config)
    # 2. The newest readable checkpoint is restored: model, optimizer, averages and step.
    writes, keep_last = workers.is_chief, config.training.keep_last
    saved = Checkpoints(model_dir, state, keep_last, strategy=strategy, writes=writes)
    restored = saved.restore() or ""
    checks.check_start(workers, model_dir, restored)
    return state, saved, restored


def _stage_at(data: DataConfig, step: int, total_steps: int) -> tuple[DataConfig, int]:
    """Returns what the stage of the update after `step` trains on, and the step at its end."""
    stages = data.stages()
    ends = [total_steps * (index + 1) // len(stages) for index in range(len(stages))]
    return next((stage, end) for stage, end in zip(stages, ends) if step < end)


def _open_batches(
    config: ExperimentConfig,
    data: DataConfig,
    split: records.Split,
    strategy: tf.distribute.Strategy,
    start_batch: int,
) -> BatchIterator:
    def make_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return pipeline.make_train_dataset(
            data,
            split,
            global_batch_size=config.training.global_batch_size,
            seed=config.training.seed,
            start_batch=start_batch,
            input_context=context,
            num_classes=config.model.num_classes,
            paired_views=AUGMENTED in METHODS[config.training.method].views,
        ).apply(tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY))

    batches = BatchIterator(strategy.distribute_datasets_from_function(make_dataset))
    keep_freed_blocks()
    return batches


def _describe_start(
    config: ExperimentConfig,
    train: records.Split,
    validation: records.Split,
    state: TrainState,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    place: str,
) -> str:
    evaluated = "without evaluation"
    if config.training.evaluate_every_epochs:
        evaluated = f"{validation.num_records:,} for validation"
    replicas = f"{strategy.num_replicas_in_sync}"
    if workers.count > 1:
        replicas += f" on {workers.count} workers, of which this is {workers.index}"
    return (
        f"{config.training.method} training of {state.model.name} "
        f"({state.model.count_params():,} parameters) on {train.num_records:,} images,"
        f" {evaluated}; replicas: {replicas}; {place}"
    )


def _warnings(config: ExperimentConfig, num_images: int, total_steps: int) -> list[str]:
    """Returns what the run does and hardly anybody wants."""
    warnings = []
    ignored = ", ".join(f"`config.{name}`" for name in config.fields_without_effect())
    if ignored:
        warnings.append(f"{config.model.variant!r} makes its own network and ignores {ignored}")
    # The defaults are a pod's: with a few photographs they leave a handful of updates.
    training = config.training
    batch = f"`config.training.global_batch_size` is {training.global_batch_size:,}"
    if training.global_batch_size > num_images:
        warnings.append(
            f"{batch}, but there are {num_images:,} training images, so that one update sees"
            " images more than once; lower it"
        )
    if total_steps < _FEW_UPDATES:
        warnings.append(
            f"the whole run makes only {total_steps} updates, too few to learn much: {batch} and"
            f" `config.training.num_epochs` {training.num_epochs:g}; lower the one or raise the"
            " other"
        )
    return warnings


def _describe_end(
    step: int, total_steps: int, best_accuracy: Optional[float], reason: str, model_dir: str
) -> str:
    if step < total_steps:
        return (
            f"stopped by {reason}; step {step} of {total_steps} is saved in {model_dir}: the same"
            " command goes on from there"
        )
    best = "" if best_accuracy is None else f", best validation top-1 {100 * best_accuracy:.2f} %"
    return f"all {total_steps} steps are done{best}; checkpoints in {model_dir}"


def _periods(config: ExperimentConfig, steps_per_epoch: float) -> dict[str, int]:
    """Returns every how many updates Python does something; at the end it does all."""
    training = config.training
    periods = {"report": training.summary_every_steps, "save": training.checkpoint_every_steps}
    if training.evaluate_every_epochs:
        periods["evaluate"] = max(1, round(training.evaluate_every_epochs * steps_per_epoch))
    return periods


def _steps_to_boundary(step: int, end: int, steps_per_loop: int, periods: Mapping[str, int]) -> int:
    """Returns the number of updates until something is due that Python does."""
    rests = [period - step % period for period in periods.values()]
    return min(steps_per_loop, end - step, *rests)


def _make_device_loop(
    config: ExperimentConfig,
    state: TrainState,
    learning_rate: LearningRate,
    strategy: tf.distribute.Strategy,
) -> Callable[..., dict[str, np.ndarray]]:
    """Returns (iterator, n) → the sums over all images of n updates: name → float32 [n]."""
    train_step = build.make_step(config, state, learning_rate)
    views = METHODS[config.training.method].views
    names = ["num_images", *(f"{view}_{kind}" for view in views for kind in ("loss", "correct"))]

    def count(batch):
        sums = train_step(batch)
        return tf.stack([sums[name] for name in names])  # one tensor: one reduction

    # `tf.while_loop`, since AutoGraph is off: autograph.py says why.
    @tf.function(autograph=False)
    def loop(iterator, num_steps):
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
        return rows.stack()

    # A number of updates in a tensor, so that another one needs no other trace.
    return lambda iterator, num_steps: dict(
        zip(names, loop(iterator, tf.constant(num_steps)).numpy().T)
    )


def make_evaluation(
    config: ExperimentConfig,
    strategy: tf.distribute.Strategy,
    split: records.Split,
    model: Network,
) -> Callable:
    """Returns () → the `Score` of the model's present weights on a split, by main batch norms."""
    evaluator = Evaluator(lambda images: model(images, training=False), strategy=strategy)
    # Traced once for all evaluations; each iterates anew.
    num_classes = config.model.num_classes
    batches = strategy.distribute_datasets_from_function(
        lambda context: labeled_images.make_eval_dataset(
            config.data,
            split,
            global_batch_size=config.training.eval_batch_size,
            input_context=context,
            num_classes=num_classes,
        )
    )

    def evaluate() -> Score:
        with labeled_images.naming_bad_records(split, num_classes):
            return evaluator(batches)

    return evaluate


def _make_evaluation_of_averages(
    config: ExperimentConfig,
    strategy: tf.distribute.Strategy,
    split: records.Split,
    state: TrainState,
) -> Optional[Callable[[int, Checkpoints, Progress], None]]:
    """Returns what evaluates the averaged weights, saves them if they are best, and reports."""
    if not config.training.evaluate_every_epochs:
        return None
    with strategy.scope():
        averaged_model = build.make_model(config, aux_branches=0)
    score_averages = make_evaluation(config, strategy, split, averaged_model)
    make_pictures = _make_picture_function(config, strategy, split, state)

    def evaluate(step: int, saved: Checkpoints, progress: Progress) -> None:
        copy_for_inference(state.model, state.ema, averaged_model)
        score = score_averages()
        is_best = saved.save_if_best(score.top1)
        progress.report_evaluation(step, score, is_best)
        if make_pictures is not None:
            progress.show_pictures(step, *make_pictures())

    return evaluate


def _make_picture_function(
    config: ExperimentConfig,
    strategy: tf.distribute.Strategy,
    split: records.Split,
    state: TrainState,
) -> Optional[Callable[[], tuple[tf.Tensor, tf.Tensor]]]:
    """Returns () → a few validation images, always the same, and those after the attack."""
    attack = build.make_attack(config)
    if attack is None:
        return None
    branch = METHODS[config.training.method].attacked_branch
    num_classes = config.model.num_classes
    sample = labeled_images.make_eval_dataset(
        config.data, split, global_batch_size=_NUM_PICTURES, num_classes=num_classes
    )
    with labeled_images.naming_bad_records(split, num_classes):
        batch = next(iter(sample))
    images, labels = tf.clip_by_value(batch["images"], 0.0, 255.0), batch["labels"]
    seed = tf.constant([config.training.seed, 0])

    def disturb(images, labels):
        network = passes.attacked_network(state.model, branch, config.attack.statistics, seed)
        return attack(network, images, labels, seed)

    disturb_on_all = tf.function(
        lambda images, labels: strategy.run(disturb, args=(images, labels)), autograph=False
    )
    return lambda: (
        images,
        strategy.experimental_local_results(disturb_on_all(images, labels))[0],
    )


def _mean_metrics(pending: list) -> dict[str, float]:
    """Returns the means over all images of the device loops since the last report."""
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


def _explain(error: tf.errors.OpError, config: ExperimentConfig, workers: Workers) -> UserError:
    """Returns what TensorFlow says of bad data, full disks and full memory in our words."""
    data_error = records.explain_data_error(error)
    if data_error is not None:
        return data_error
    intact = "The checkpoints so far are intact"
    if workers.count > 1 and isinstance(error, _PEER_ERRORS):
        gone = ", ".join(workers.unreachable())
        return RunError(
            (
                f"{gone} of {workers.count} no longer answers"
                if gone
                else "another worker has failed, or hangs"
            )
            + f"; its own message, if it could give one, says why. This is worker {workers.index}."
            f" {intact}; started again on all machines, the same command goes on from them."
        )
    message = brief_message(error)
    if isinstance(error, tf.errors.ResourceExhaustedError) and "allocating" in error.message:
        return RunError(
            f"memory is short ({message}). Lower `config.training.global_batch_size` (now"
            f" {config.training.global_batch_size}) or raise `config.training.accumulation_steps`"
            f" (now {config.training.accumulation_steps})."
        )
    return RunError(
        f"{message} ({type(error).__name__}). {intact}; the same command goes on from them."
    )
