"""The folder of a run: what it holds, and what a run may go on with there.

<model_dir>/config.json                  the effective config
<model_dir>/labels_map.txt               the names of the classes, where the data have them
<model_dir>/run.json                     what else decides the run, see `RunMetadata`
<model_dir>/checkpoints/ckpt-<step>.*    every variable of the run by its name
<model_dir>/best/ckpt-<step>.*           the same, at the highest validation accuracy
<model_dir>/metrics.jsonl, summaries/    see `progress`
"""

import contextlib
import dataclasses
import json
import os
import re
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.data.class_names import (
    LABELS_MAP,
    require_same_names,
    write_class_names,
)
from efficientnet_advprop.data.records import Split
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.runtime.errors import brief_message, list_names
from efficientnet_advprop.runtime.files import list_folder, require_free, write_atomically

CONFIG_FILE, METADATA_FILE, LAST, BEST = "config.json", "run.json", "checkpoints", "best"


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """What decides a run beside its config.

    The number of training images turns epochs into updates, hence the learning rate and
    the end of the run; the validation images decide which checkpoint is the best.

    Args:
        num_…_images, …_digest: of labels and pixels; 0 and "": not known.
        num_replicas: over all workers.
        has_saved: whether the run has written a checkpoint; if none is there, it was lost.
    """

    num_train_images: int = 0
    num_validation_images: int = 0
    train_digest: str = ""
    validation_digest: str = ""
    num_replicas: int = 0
    has_saved: bool = False

    @classmethod
    def of(cls, train: Split, validation: Split, num_replicas: int = 0) -> "RunMetadata":
        digests = train.digest(), validation.digest()
        return cls(train.num_records, validation.num_records, *digests, num_replicas)

    @classmethod
    def read(cls, model_dir: str) -> Optional["RunMetadata"]:
        """Returns what a folder keeps; None if it keeps nothing."""
        path = os.path.join(model_dir, METADATA_FILE)
        if not tf.io.gfile.exists(path):
            return None
        try:
            kept = json.loads(_read(path)).items()
            known = {field.name for field in dataclasses.fields(cls)}
            return cls(**{name: value for name, value in kept if name in known})
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it is written by the run, bring it back."
            ) from error

    def write(self, model_dir: str) -> None:
        contents = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_atomically(os.path.join(model_dir, METADATA_FILE), contents.encode())

    def require_same_data(self, before: "RunMetadata", data_dir: str, model_dir: str) -> None:
        """Raises a `ConfigError` if these are other images or labels than `before`."""
        for split in ("train", "validation"):
            for kind, unit in (("num_{}_images", " images"), ("{}_digest", "")):
                there, here = (getattr(kept, kind.format(split)) for kept in (before, self))
                if not there or not here or there == here:
                    continue
                raise ConfigError(
                    f"`data_dir` is {data_dir!r}, whose {split} split is not the one that the run"
                    f" in {model_dir!r} began with: "
                    + (f"{here:,}{unit} for {there:,}" if unit else "other images or labels")
                    + ". Give the data that it began with, or another --model_dir."
                )


def read_config(model_dir: str) -> ExperimentConfig:
    """Returns the config of the run in `model_dir`; raises a `CheckpointError` for none."""
    path = os.path.join(model_dir, CONFIG_FILE)
    if not tf.io.gfile.exists(path):
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, which holds no {CONFIG_FILE}; give the --model_dir of"
            " a training run."
        )
    try:
        return ExperimentConfig.from_json(_read(path))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not text in UTF-8; it is written by the run, bring it back."
        ) from error


def _read(path: str) -> str:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read().decode("utf-8")


def list_checkpoints(model_dir: str, part: str = LAST) -> list[str]:
    """Returns the checkpoints of one of the run's folders, newest first."""
    # Their names order them. TensorFlow's state file `checkpoint` is not asked: it can be
    # lost or damaged while the checkpoints are whole.
    directory = os.path.join(model_dir, part)
    try:
        names = list_folder(directory) if tf.io.gfile.isdir(directory) else []
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(f"{directory!r} cannot be read: {brief_message(error)}.") from error
    # TensorFlow puts the index in place last, so an unfinished checkpoint has none.
    found = [re.fullmatch(r"ckpt-(\d+)\.index", name) for name in names]
    steps = sorted((int(match[1]) for match in found if match), reverse=True)
    return [os.path.join(directory, f"ckpt-{step}") for step in steps]


def check_run_dir(
    model_dir: str, config: ExperimentConfig, class_names: Optional[Sequence[str]] = None
) -> bool:
    """Returns whether `model_dir` holds checkpoints that a run of `config` can go on from.

    Raises:
        ConfigError: they are of a config whose values differ in more than
            `OPERATIONAL_FIELDS`.
        UsageError: they are of other classes; or a new run would replace files that no
            run wrote.
        CheckpointError: the run has had checkpoints, and they are lost.
    """
    last = list_checkpoints(model_dir)
    if not last:
        _require_never_saved(model_dir)
    if not last and not list_checkpoints(model_dir, BEST):
        _require_own(model_dir)
        return False
    fatal = [
        f"`config.{name}` is {there!r} there and {here!r} here"
        for name, (there, here) in config_lib.differences(read_config(model_dir), config).items()
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


def _require_never_saved(model_dir: str) -> None:
    """A run whose checkpoints are lost must not begin anew in silence."""
    metadata = RunMetadata.read(model_dir)
    state_file = os.path.join(model_dir, LAST, "checkpoint")
    if (metadata is not None and metadata.has_saved) or tf.io.gfile.exists(state_file):
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, whose run has lost its checkpoints: it has saved, and "
            f"there is no ckpt-….index in its folder {LAST!r}. Bring them back; or begin anew in "
            "another --model_dir, or in this one after you have emptied it."
        )


def _require_own(model_dir: str) -> None:
    """A new run must not replace anybody's files that happen to have the names of its own."""
    if RunMetadata.read(model_dir) is not None:
        return
    with contextlib.suppress(CheckpointError, ConfigError):  # a run that ended while it began
        read_config(model_dir)
        return
    names = (CONFIG_FILE, LABELS_MAP, "metrics.jsonl", "summaries", LAST, BEST)
    require_free("model_dir", model_dir, names)


def initialize_run_dir(
    model_dir: str,
    config: ExperimentConfig,
    class_names: Optional[Sequence[str]] = None,
    metadata: Optional[RunMetadata] = None,
) -> None:
    """Writes into `model_dir`, after `check_run_dir`, what the run is."""
    # The metadata of a run that goes on stay as they were at its beginning.
    has_saved = bool(list_checkpoints(model_dir))
    try:
        tf.io.gfile.makedirs(model_dir)
        write_atomically(os.path.join(model_dir, CONFIG_FILE), config.to_json().encode())
        if class_names is not None:
            write_class_names(model_dir, class_names)
        if metadata is not None and not (has_saved and RunMetadata.read(model_dir)):
            dataclasses.replace(metadata, has_saved=has_saved).write(model_dir)
    except (tf.errors.OpError, OSError) as error:
        raise cannot_be_written(model_dir, error) from error


def cannot_be_written(model_dir: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"`model_dir` is {model_dir!r}, which cannot be written: {brief_message(error)}."
    )


def is_initialized(model_dir: str) -> bool:
    """Returns whether there is a config in `model_dir`."""
    return tf.io.gfile.exists(os.path.join(model_dir, CONFIG_FILE))


def mark_as_saved(model_dir: str) -> None:
    """Notes that the run has written a checkpoint."""
    metadata = RunMetadata.read(model_dir)
    if metadata is not None and not metadata.has_saved:
        dataclasses.replace(metadata, has_saved=True).write(model_dir)
