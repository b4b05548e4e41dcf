"""What a model directory holds: the run's config, the last few checkpoints, the best
one.

    <model_dir>/config.json                  the effective config
    <model_dir>/labels_map.txt               the names of the classes, where the data tell them
    <model_dir>/run.json                     what else decides the run, see `run_facts`
    <model_dir>/checkpoints/ckpt-<step>.*    every variable of the run by its name
    <model_dir>/best/ckpt-<step>.*           the same, of the highest validation accuracy
    <model_dir>/metrics.jsonl, summaries/    see `progress`

All replicas hold the same state, so one process writes what its first replica has. It
takes a copy into the host's memory and goes on training while another thread writes; a
failure surfaces at the next save, or at `wait`.

TensorFlow writes a checkpoint beside its final name, puts the index in place last, and
lists it in the folder's `checkpoint` file after that, by renaming. So a process killed
in the middle leaves the earlier ones as they were and the unfinished one unlisted.
Where that file is lost or damaged the checkpoints are taken by their numbers; a run
whose checkpoints themselves are lost does not begin anew of its own accord.
"""

import concurrent.futures
import dataclasses
import glob
import os
from typing import Iterable, Optional, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
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
from efficientnet_advprop.models.checkpoints.state_files import (
    STATE_FILE,
    HeldCheckpoints,
    list_checkpoints,
    write_state_file,
)
from efficientnet_advprop.models.variable_names import official_name
from efficientnet_advprop.runtime.errors import list_names
from efficientnet_advprop.runtime.files import without_pattern, write_atomically
from efficientnet_advprop.training import build
from efficientnet_advprop.training.ema import ExponentialMovingAverage
from efficientnet_advprop.training.progress import METRICS_FILE, read_metrics
from efficientnet_advprop.training.run_facts import FACTS_FILE, RunFacts, mark_as_saved
from efficientnet_advprop.training.state import STEP_NAME, TrainState, averaged_variables
from tpu_utils.errors import brief_message

_CONFIG_FILE, LAST, BEST = "config.json", "checkpoints", "best"
# Damaged, missing in part, or of other variables or shapes; TensorFlow has an exception
# of another kind for each.
_UNREADABLE = (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError)


def read_config(model_dir: str) -> ExperimentConfig:
    """The config of the run in `model_dir`.

    Raises:
        CheckpointError: there is none.
        ConfigError: it is not readable.
    """
    path = os.path.join(model_dir, _CONFIG_FILE)
    if not tf.io.gfile.exists(path):
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, which holds no {_CONFIG_FILE}; give the --model_dir of"
            " a training run."
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        contents = file.read()
    try:
        return ExperimentConfig.from_json(contents.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not text in UTF-8; it is written by the run, bring it back."
        ) from error


def latest(directory: str) -> Optional[str]:
    """The newest checkpoint in a folder, by its state file or else by the numbers;
    None: no one.

    Not `tf.train.latest_checkpoint`, which takes the path for a pattern, and a state
    file that is lost for a folder without checkpoints.
    """
    return next(iter(list_checkpoints(directory).prefixes), None)


def _list_checkpoints(model_dir: str, part: str) -> HeldCheckpoints:
    """Those of one of the run's folders; a state file that is of no use is told."""
    directory = os.path.join(model_dir, part)
    try:
        found = list_checkpoints(directory)
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(f"{directory!r} cannot be read: {brief_message(error)}.") from error
    if found.problem and found.prefixes:
        logging.warning(
            "The file %s in %s is of no use: %s. %s is taken for the newest checkpoint.",
            STATE_FILE, directory, found.problem, os.path.basename(found.prefixes[0]),
        )  # fmt: skip
    return found


def check_model_dir(
    model_dir: str, config: ExperimentConfig, class_names: Optional[Sequence[str]] = None
) -> bool:
    """Whether `model_dir` holds checkpoints that a run of `config` can go on from.

    Fields that change nothing of what is computed (`config.OPERATIONAL_FIELDS`) may
    differ from the config that made them. Class names, where they are known, may not.

    Raises:
        ConfigError: they are of a config with other values; up to eight of them are
            named.
        UsageError: they are of other classes.
        CheckpointError: there were checkpoints, and they are lost.
    """
    last, best = (_list_checkpoints(model_dir, part) for part in (LAST, BEST))
    if not last.prefixes:
        _require_never_saved(model_dir, last)
    if not (last.prefixes or best.prefixes):
        return False
    changed = config_lib.differences(read_config(model_dir), config)
    fatal = [
        f"`config.{name}` is {there!r} there and {here!r} here"
        for name, (there, here) in changed.items()
        if name not in config_lib.OPERATIONAL_FIELDS
    ]
    if fatal:
        raise ConfigError(
            f"`model_dir` is {model_dir!r}, whose checkpoints belong to another config: "
            f"{list_names(fatal, num_shown=8)}. Use another --model_dir, or the config that "
            "made it. To train on from its weights, for longer or in another way, write them by "
            f"`python -m efficientnet_advprop.release --model_dir={model_dir} --output=PREFIX` and "
            "begin with --config.init.checkpoint=PREFIX in another --model_dir."
        )
    if class_names is not None:
        require_same_names(model_dir, class_names, "a run")
    return True


def _require_never_saved(model_dir: str, last: HeldCheckpoints) -> None:
    """Raises a `CheckpointError` if a run without checkpoints has had some: it must not
    begin anew in silence.
    """
    evidence, facts = "", RunFacts.read(model_dir)
    if last.problem:
        evidence = f"its file {LAST}/{STATE_FILE} is there, but {last.problem}"
    elif facts is not None and facts.has_saved:
        evidence = f"its {FACTS_FILE} says that it has saved"
    elif facts is None and is_claimed(model_dir):  # a run of an earlier version, without that file
        reported = max((entry["step"] for entry in read_metrics(model_dir)), default=0)
        # The next checkpoint but one is begun when the first is in place.
        if reported > 2 * read_config(model_dir).training.checkpoint_every_steps:
            evidence = f"its {METRICS_FILE} goes to step {reported}"
    if evidence:
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, whose run has lost its checkpoints: {evidence}, and "
            f"there is no ckpt-….index in its folder {LAST!r}. Bring them back; or begin anew in "
            "another --model_dir, or in this one after you have emptied it."
        )


def claim_model_dir(
    model_dir: str,
    config: ExperimentConfig,
    class_names: Optional[Sequence[str]] = None,
    facts: Optional[RunFacts] = None,
    *,
    goes_on: bool = False,
) -> None:
    """Makes `model_dir` and writes into it what the run is; `check_model_dir` comes
    first.

    Args:
        model_dir: local or remote.
        config: of the run.
        class_names: by label, to be kept too; None: not known.
        facts: to be kept too; None: not known.
        goes_on: whether a run is there already: its facts stay as they were at its
            beginning.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    try:
        tf.io.gfile.makedirs(model_dir)
        write_atomically(os.path.join(model_dir, _CONFIG_FILE), config.to_json().encode())
        if class_names is not None:
            write_class_names(model_dir, class_names)
        if facts is not None and not (goes_on and RunFacts.read(model_dir)):
            has_saved = bool(_list_checkpoints(model_dir, LAST).prefixes)
            dataclasses.replace(facts, has_saved=has_saved).write(model_dir)
    except (tf.errors.OpError, OSError) as error:
        raise cannot_be_written(model_dir, error) from error


def cannot_be_written(model_dir: str, error: Exception) -> CheckpointError:
    """The complaint about a folder in which nothing can be written."""
    return CheckpointError(
        f"`model_dir` is {model_dir!r}, which cannot be written: {brief_message(error)}."
    )


def is_claimed(model_dir: str) -> bool:
    """Whether there is a config in `model_dir`."""
    return tf.io.gfile.exists(os.path.join(model_dir, _CONFIG_FILE))


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
        model_dir: local or remote directory.
        state: restored in place.
        keep_last: how many of the latest checkpoints stay.
        strategy: that holds the state; None: the current one.
        writes: False in the processes that leave the writing to another one.
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
        self._model_dir, self._is_marked = model_dir, False
        self._variables = by_name(state.variables)
        self._step = state.step
        self._strategy = strategy or tf.distribute.get_strategy()
        self.best_accuracy: Optional[float] = (
            None  # of the validation so far, in [0, 1]; None before the first one
        )
        with tf.device("CPU:0"):
            self._copies = {
                name: tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
                for name, variable in self._variables.items()
            }
            self._best_accuracy = tf.Variable(-1.0, trainable=False, dtype=tf.float32)
        self._checkpoint = tf.train.Checkpoint(
            variables=self._copies, best_accuracy=self._best_accuracy
        )
        self._held = _list_checkpoints(model_dir, LAST)
        self._last = self._manager(model_dir, LAST, keep_last) if writes else None
        self._best = self._manager(model_dir, BEST, 1) if writes else None
        self._copied = None  # step and best accuracy of what the copies hold
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: list[concurrent.futures.Future] = []

    def _manager(self, model_dir, part, max_to_keep):
        directory, found = os.path.join(model_dir, part), _list_checkpoints(model_dir, part)
        if found.problem:  # TensorFlow would begin anew, and neither keep nor remove what is there
            if found.prefixes:
                write_state_file(directory, found.prefixes)
            else:
                tf.io.gfile.remove(os.path.join(directory, STATE_FILE))
        return tf.train.CheckpointManager(self._checkpoint, directory, max_to_keep=max_to_keep)

    def restore(self) -> Optional[str]:
        """Restores the newest readable checkpoint into the state; its path, or None
        where there is none.

        A damaged one (after a power cut, say) is passed over with a warning: the
        earlier one repeats a few steps.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        problems = []
        for path in self._held.prefixes:
            try:
                self._checkpoint.restore(without_pattern(path)).assert_consumed()
            except _UNREADABLE as error:
                problems.append(f"{path}: {brief_message(error)}")
                logging.warning(
                    "The checkpoint %s cannot be read and is passed over.", problems[-1]
                )
                continue
            for name, variable in self._variables.items():
                variable.assign(self._copies[name])
            accuracy = float(self._best_accuracy)
            self.best_accuracy = accuracy if accuracy >= 0.0 else None
            return path
        if problems:
            raise CheckpointError(
                f"no checkpoint can be read ({'; '.join(problems)}); start again with an empty"
                " --model_dir."
            )
        return None

    def save(self) -> None:
        """Saves the state as one of the last checkpoints: copies it and returns, while
        it is being written.

        Raises:
            CheckpointError: an earlier one could not be written, or its state was not
                finite; those before are untouched.
        """
        self._save(self._last)

    def save_if_best(self, accuracy: float) -> bool:
        """Saves the state as the best, if its validation accuracy is higher than all
        before.

        Raises as `save`.
        """
        accuracy = float(
            np.float32(accuracy)
        )  # as it is saved, so that a restarted run compares the same
        if self.best_accuracy is not None and accuracy <= self.best_accuracy:
            return False
        self.best_accuracy = accuracy
        self._save(self._best)
        return True

    def wait(self) -> None:
        """Returns when all checkpoints are in place. Raises as `save`."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def _save(self, manager: Optional[tf.train.CheckpointManager]) -> None:
        if manager is None:
            return
        step = int(self._step.numpy())
        if self._copied != (step, self.best_accuracy):
            self.wait()  # what is being written still needs the copies
            for name, variable in self._variables.items():
                self._copies[name].assign(self._strategy.experimental_local_results(variable)[0])
            if self.best_accuracy is not None:
                self._best_accuracy.assign(self.best_accuracy)
            self._copied = step, self.best_accuracy
        self._pending.append(self._writer.submit(self._write, manager, step))

    def _write(self, manager, step: int) -> None:
        earlier = (
            f"the earlier ones in {manager.directory} are intact"
            if manager.checkpoints
            else "there is no earlier one"
        )
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
            manager.save(checkpoint_number=step)
            if manager is self._last and not self._is_marked:
                mark_as_saved(self._model_dir)
                self._is_marked = True
        except (tf.errors.OpError, OSError) as error:
            self._remove_unfinished(manager, step)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written into {manager.directory}:"
                f" {brief_message(error)}; {earlier}. Make room there and start again: training"
                " goes on from the last checkpoint."
            ) from error

    def _remove_unfinished(self, manager, step):
        """Gives back the space of a checkpoint that failed; a failure of this changes
        nothing.
        """
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


def by_name(variables: Iterable[tf.Variable]) -> dict[str, tf.Variable]:
    """Variables under the names that they have in a checkpoint.

    Raises:
        ValueError: two have the same name.
    """
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
    model_dir: str, *, which: str = "best", aux_branches: Optional[int] = 0
) -> Network:
    """A trained network for inference: the averaged weights, main batch norms only
    unless told.

    Args:
        model_dir: of a training run.
        which: "best" (validation accuracy) or "last".
        aux_branches: of the network that is returned; None: all that were trained.

    Returns:
        The network. Without averaging (`ema_decay` 0) it has the weights themselves.

    Raises:
        CheckpointError: the directory holds no config or no such checkpoint, or it
            cannot be read.
        ValueError: `which` is something else.
    """
    trained = _restore_network(model_dir, which)
    config = read_config(model_dir)
    if config.model.smooth_relu_gradient != "none":
        # A diagnosis of training; who attacks the trained network follows its own
        # gradient.
        config.model.smooth_relu_gradient = "none"
        config.model.activation_alpha = None
    model = build.make_model(config, aux_branches=aux_branches)
    copy_for_inference(trained.model, trained.ema, model)
    return model


def write_released_checkpoint(
    model_dir: str, prefix: str, *, which: str = "best", include_aux: bool = False
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
    averages = None
    if trained.ema is not None:
        averages = {
            official_name(variable.name): shadow
            for variable, shadow in zip(trained.ema.averaged, trained.ema.shadows)
        }
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


def _restore_network(model_dir: str, which: str) -> tf.Module:
    if which not in ("best", "last"):
        raise ValueError(f"`which` is {which!r}, but must be 'best' or 'last'.")
    config, part = read_config(model_dir), BEST if which == "best" else LAST
    found = _list_checkpoints(model_dir, part)
    if not found.prefixes:
        directory = os.path.join(model_dir, part)
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, but {directory} holds no checkpoint yet; train longer."
        )
    return restore_trained(config, found.prefixes[0])


def restore_trained(config: ExperimentConfig, path: str) -> tf.Module:
    """What a `TrainState` holds, but for the optimizer: `model`, `ema` (or None) and
    `step`.

    Args:
        config: of the run.
        path: of one of its checkpoints, without suffix.

    Raises:
        CheckpointError: it cannot be read.
    """
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
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {brief_message(error)}."
        ) from error
    return trained


def copy_for_inference(
    trained: Network, ema: Optional[ExponentialMovingAverage], target: Network
) -> None:
    """Gives `target`, which may lack the auxiliary branches, the averages or, without
    `ema`, the weights of `trained`.
    """
    values = {variable.name: variable for variable in trained.variables}
    averaged = averaged_variables(target) if ema is not None else []
    if ema is not None:
        ema.copy_to(averaged)
    are_averaged = set(map(id, averaged))
    for variable in target.variables:
        if id(variable) not in are_averaged:
            variable.assign(values[variable.name])
