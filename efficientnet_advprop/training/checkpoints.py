"""The checkpoints of a run: saved while it trains on, restored, turned into networks.

All replicas hold the same state, so one process writes what its first replica has. It
takes a copy into the host's memory and goes on training while another thread writes; a
failure surfaces at the next save, or at `wait`.

TensorFlow writes a checkpoint beside its final name and puts the index in place last.
So a process killed in the middle leaves the earlier ones as they were. `run_directory`
says where they lie.
"""

import concurrent.futures
import glob
import os
from typing import Iterable, Optional

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.data.class_names import (
    find_class_names,
    require_same_names,
    write_class_names,
)
from efficientnet_advprop.models import (
    CheckpointError,
    KerasNetwork,
    Network,
    save_released_checkpoint,
)
from efficientnet_advprop.models.network import official_name
from efficientnet_advprop.runtime.errors import brief_message
from efficientnet_advprop.runtime.files import without_pattern
from efficientnet_advprop.training import build
from efficientnet_advprop.training.run_directory import (
    BEST,
    LAST,
    list_checkpoints,
    mark_as_saved,
    read_config,
)
from efficientnet_advprop.training.state import (
    STEP_NAME,
    ExponentialMovingAverage,
    TrainState,
    averaged_variables,
)

# Damaged, missing in part, or of other variables or shapes; TensorFlow has an exception
# of another kind for each.
_UNREADABLE = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)

_PARTS = {"best": BEST, "last": LAST}  # by the value of --which


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
        model_dir: local or remote directory.
        state: restored in place.
        keep_last: how many of the latest checkpoints stay.
        strategy: that holds the state; None: the current one.
        writes: False in the processes that leave the writing to another one.

    Attributes:
        best_accuracy: validation accuracy of the checkpoint in `best/`, in [0, 1]; None
            while there is none. The checkpoint itself remembers it, so that every
            process that evaluates the run, now or later, knows the same best.
    """

    def __init__(
        self,
        model_dir: str,
        state: TrainState,
        keep_last: int,
        *,
        strategy: Optional[tf.distribute.Strategy] = None,
        writes: bool = True,
    ):
        self._model_dir, self._writes, self._is_marked = model_dir, writes, False
        self._keep = {LAST: keep_last, BEST: 1}
        self._managers: dict[str, tf.train.CheckpointManager] = {}
        self._variables = by_name(state.variables)
        self._step = state.step
        self._strategy = strategy or tf.distribute.get_strategy()
        with tf.device("CPU:0"):
            self._copies = {
                name: tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
                for name, variable in self._variables.items()
            }
            self._best_accuracy = tf.Variable(-1.0, trainable=False, dtype=tf.float32)
        self._checkpoint = tf.train.Checkpoint(
            variables=self._copies, best_accuracy=self._best_accuracy
        )
        self.best_accuracy = accuracy_of_best(model_dir)
        self._copied = None  # step and best accuracy of what the copies hold
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: list[concurrent.futures.Future] = []

    def restore(self) -> Optional[str]:
        """Restores the newest readable checkpoint and returns its path; None: there is none.

        Raises a `CheckpointError` if there are checkpoints, and none can be read.
        """
        problems = []
        for path in list_checkpoints(self._model_dir):
            try:
                self.load(path)
                return path
            except CheckpointError as error:  # after a power cut; the earlier one repeats steps
                problems.append(str(error))
                logging.warning("Skipped: %s", error)
        if problems:
            raise CheckpointError(
                f"no checkpoint can be read. {' '.join(problems)} Start again with an empty"
                " --model_dir."
            )
        return None

    def load(self, path: str) -> None:
        """Restores one of the run's checkpoints; raises a `CheckpointError` if it cannot."""
        try:
            self._checkpoint.restore(without_pattern(path)).assert_consumed()
        except _UNREADABLE as error:
            raise _cannot_be_read(path, error) from error
        self._copied = None
        for name, variable in self._variables.items():
            variable.assign(self._copies[name])

    def save(self) -> None:
        """Copies the state and returns, while it is being written as one of the last.

        Raises a `CheckpointError` if an earlier one could not be written, or its state was
        not finite; those before are untouched.
        """
        self._save(LAST)

    def save_if_best(self, accuracy: float) -> bool:
        """Saves the state as the best if its validation accuracy is the highest so far.

        Raises as `save`.
        """
        accuracy = float(np.float32(accuracy))  # as it is saved
        if self.best_accuracy is not None and accuracy <= self.best_accuracy:
            return False
        self.best_accuracy = accuracy
        self._save(BEST)
        return True

    def wait(self) -> None:
        """Returns when all checkpoints are in place. Raises as `save`."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def _save(self, part: str) -> None:
        if not self._writes:
            return
        step = int(self._step.numpy())
        if self._copied != (step, self.best_accuracy):
            self.wait()  # what is being written still needs the copies
            for name, variable in self._variables.items():
                self._copies[name].assign(self._strategy.experimental_local_results(variable)[0])
            self._best_accuracy.assign(-1.0 if self.best_accuracy is None else self.best_accuracy)
            self._copied = step, self.best_accuracy
        self._pending.append(self._writer.submit(self._write, part, step))

    def _manager(self, part: str) -> tf.train.CheckpointManager:
        """Returns what keeps so many checkpoints; it knows those that its state file lists."""
        if part not in self._managers:
            directory = os.path.join(self._model_dir, part)
            names = [os.path.basename(path) for path in list_checkpoints(self._model_dir, part)]
            if names:
                tf.compat.v1.train.update_checkpoint_state(directory, names[0], names[::-1])
            self._managers[part] = tf.train.CheckpointManager(
                self._checkpoint, directory, max_to_keep=self._keep[part]
            )
        return self._managers[part]

    def _write(self, part: str, step: int) -> None:
        directory, manager = os.path.join(self._model_dir, part), None
        # Of the run, whichever folder this one goes into.
        kept = any(list_checkpoints(self._model_dir, folder) for folder in (LAST, BEST))
        earlier = "the earlier ones are intact" if kept else "there is no earlier one"
        wrong = [
            name
            for name, copy in self._copies.items()
            if copy.dtype.is_floating and not np.isfinite(copy.numpy()).all()
        ]
        if wrong:
            raise CheckpointError(
                f"the state of step {step} is not saved, because {wrong[0]!r} and {len(wrong) - 1}"
                f" more variables are not finite; {earlier}. Lower"
                " `config.optimizer.learning_rate_per_256`."
            )
        try:
            manager = self._manager(part)
            manager.save(checkpoint_number=step)
            if part == LAST and not self._is_marked:
                mark_as_saved(self._model_dir)
                self._is_marked = True
        except (tf.errors.OpError, OSError) as error:
            if manager is not None:
                self._remove_unfinished(manager, step)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written into {directory}:"
                f" {brief_message(error)}; {earlier}. Make room there and start again: training"
                " goes on from the last checkpoint."
            ) from error

    def _remove_unfinished(self, manager: tf.train.CheckpointManager, step: int) -> None:
        """Frees the space of a checkpoint that failed; if that fails too, it stays."""
        prefix = os.path.join(manager.directory, f"ckpt-{step}")
        if prefix in manager.checkpoints:
            return
        try:
            for path in tf.io.gfile.glob(
                [f"{glob.escape(prefix)}{end}" for end in (".*", "_temp*")]
            ):
                tf.io.gfile.rmtree(path) if tf.io.gfile.isdir(path) else tf.io.gfile.remove(path)
        except (tf.errors.OpError, OSError):
            pass


def accuracy_of_best(model_dir: str) -> Optional[float]:
    """Reads the accuracy of the checkpoint in `best/` from that checkpoint; None: no one."""
    for path in list_checkpoints(model_dir, BEST):
        kept = tf.Variable(-1.0, trainable=False, dtype=tf.float32)
        try:
            restored = tf.train.Checkpoint(best_accuracy=kept).restore(without_pattern(path))
            restored.assert_existing_objects_matched().expect_partial()
        except _UNREADABLE as error:
            logging.warning("Skipped: %s", _cannot_be_read(path, error))
            continue
        return float(kept) if kept >= 0.0 else None
    return None


def _cannot_be_read(path: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"the checkpoint {path} cannot be read: {brief_message(error)}.")


def by_name(variables: Iterable[tf.Variable]) -> dict[str, tf.Variable]:
    """Returns variables by the names that they have in a checkpoint."""
    variables = list(variables)
    named = {official_name(variable.name): variable for variable in variables}
    if len(named) < len(variables):
        names = [official_name(variable.name) for variable in variables]
        raise ValueError(
            f"`variables` has {max(names, key=names.count)!r} twice; a checkpoint could not tell"
            " them apart."
        )
    return named


def load_averaged_model(
    model_dir: str, *, which: Optional[str] = None, aux_branches: Optional[int] = 0
) -> Network:
    """Returns a trained network for inference: its averages, or without averaging
    (`ema_decay` 0) the weights themselves.

    Args:
        model_dir: of a training run.
        which: "best" (validation accuracy) or "last"; None: see `default_checkpoint`.
        aux_branches: of the network that is returned; None: all that were trained.

    Raises:
        CheckpointError: the directory holds no config or no such checkpoint, or it
            cannot be read.
        ValueError: `which` is something else.
    """
    trained = _restore_network(model_dir, which)
    config = read_config(model_dir)
    if config.model.smooth_relu_gradient != "none":
        # A diagnosis of training; an attack on the trained network follows its own gradient.
        config.model.smooth_relu_gradient = "none"
        config.model.activation_alpha = None
    model = build.make_model(config, aux_branches=aux_branches)
    copy_for_inference(trained.model, trained.ema, model)
    return model


def write_released_checkpoint(
    model_dir: str, prefix: str, *, which: Optional[str] = None, include_aux: bool = False
) -> int:
    """Writes a trained network in the released format: plain weights, averages and the
    step.

    The names of the classes, if the run knows them, go into `labels_map.txt` beside it.

    Args:
        model_dir, which: as in `load_averaged_model`.
        prefix, include_aux: as in `save_released_checkpoint`. Without averaging the
            weights go under both names.

    Returns:
        The number of updates that the weights have had.

    Raises: as `load_averaged_model`.
    """
    trained = _restore_network(model_dir, which)
    if isinstance(trained.model, KerasNetwork):
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, whose network is a Keras model; the released format is "
            "for EfficientNets and ResNets. Write it by `export --format=keras`."
        )
    averages = None if trained.ema is None else trained.ema.by_name()
    step, data = int(trained.step.numpy()), read_config(model_dir).data
    class_names = find_class_names(model_dir)
    folder = os.path.dirname(prefix) or "."
    if class_names is not None:
        require_same_names(folder, class_names, "a checkpoint")
    save_released_checkpoint(
        trained.model,
        prefix,
        averages=averages,
        global_step=step,
        include_aux=include_aux,
        preprocessing={"crop": data.eval_crop, "image_size": data.image_size},
    )
    if class_names is not None:
        write_class_names(folder, class_names)
    return step


def default_checkpoint(config: ExperimentConfig) -> str:
    """Returns "best" for a run that held out images to choose it by; otherwise "last": the best
    was chosen on the very images that an evaluation scores.
    """
    data = config.data
    is_held_out = data.holdout_shards or data.validation_prefix != "validation"
    return "best" if is_held_out else "last"


def _restore_network(model_dir: str, which: Optional[str]) -> tf.Module:
    if which not in (None, *_PARTS):
        raise ValueError(f"`which` is {which!r}, but must be 'best' or 'last'.")
    config = read_config(model_dir)
    which = which or default_checkpoint(config)
    found = list_checkpoints(model_dir, _PARTS[which])
    if found:
        return _restore_trained(config, found[0])
    other = "best" if which == "last" else "last"
    has_other = list_checkpoints(model_dir, _PARTS[other])
    raise CheckpointError(
        f"`model_dir` is {model_dir!r}, whose folder {_PARTS[which]!r} holds no checkpoint; "
        + (f"take --which={other}." if has_other else "train longer.")
    )


def _restore_trained(config: ExperimentConfig, path: str) -> tf.Module:
    """Returns `model`, `ema` (or None) and `step` of a checkpoint, without the optimizer."""
    trained = tf.Module()
    trained.model = build.make_model(config)
    trained.ema = (
        ExponentialMovingAverage(averaged_variables(trained.model))
        if config.optimizer.ema_decay
        else None
    )
    trained.step = tf.Variable(0, trainable=False, dtype=tf.int64, name=STEP_NAME)
    try:
        checkpoint = tf.train.Checkpoint(variables=by_name(trained.variables))
        restored = checkpoint.restore(without_pattern(path))
        restored.assert_existing_objects_matched().expect_partial()
    except _UNREADABLE as error:
        raise _cannot_be_read(path, error) from error
    return trained


def copy_for_inference(
    trained: Network, ema: Optional[ExponentialMovingAverage], target: Network
) -> None:
    """Copies the averages (without `ema`: the weights) of `trained` to `target`, which may
    lack the auxiliary branches.
    """
    values = {variable.name: variable for variable in trained.variables}
    averaged = averaged_variables(target) if ema is not None else []
    if ema is not None:
        ema.copy_to(averaged)
    are_averaged = set(map(id, averaged))
    for variable in target.variables:
        if id(variable) not in are_averaged:
            variable.assign(values[variable.name])
