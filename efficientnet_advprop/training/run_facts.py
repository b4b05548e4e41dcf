"""What decides a run and is not in its config: kept beside it in `run.json`, and
compared when it goes on.

    facts = RunFacts(num_train_images=300, …)
    # raises if it would be another run
    warnings = facts.require_same_run(model_dir, data_dir)
    facts.write(model_dir)

The number of training images turns epochs into updates, hence the learning rate and the
end of the run; that of the validation images decides which checkpoint was the best.
Runs of earlier versions have no such file; they go on, and get one.
"""

import dataclasses
import json
import os
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.runtime.files import write_atomically

FACTS_FILE = "run.json"


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """The facts.

    Args:
        num_train_images, num_validation_images: over all workers; 0 of the latter: the
            run leaves the evaluation to others.
        train_files, validation_files: what tells them from others, see
            `records.Split.digest`.
        num_replicas: of the devices.
        has_saved: whether the run has written a checkpoint; if there is none, it was
            lost.
    """

    num_train_images: int
    num_validation_images: int
    train_files: str
    validation_files: str
    num_replicas: int
    has_saved: bool = False

    @classmethod
    def read(cls, model_dir: str) -> Optional["RunFacts"]:
        """What is kept in a run's folder; None: nothing that can be read."""
        try:
            with tf.io.gfile.GFile(os.path.join(model_dir, FACTS_FILE), "rb") as file:
                return cls(**json.loads(file.read()))
        except (tf.errors.OpError, ValueError, TypeError):
            return None

    def write(self, model_dir: str) -> None:
        """Keeps them in a run's folder."""
        contents = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_atomically(os.path.join(model_dir, FACTS_FILE), contents.encode())

    def require_same_run(self, model_dir: str, data_dir: str) -> list[str]:
        """Compares them with what is kept in `model_dir`, whose run is to go on.

        Returns:
            What differs without making it another run, in words.

        Raises:
            ConfigError: the numbers of images differ.
        """
        kept = RunFacts.read(model_dir)
        if kept is None:
            return []
        for split in ("train", "validation"):
            before, now = (getattr(facts, f"num_{split}_images") for facts in (kept, self))
            if before and now and before != now:
                moved = (
                    "with which its epochs, its learning rate and its end would move"
                    if split == "train"
                    else "on which its best checkpoint was not chosen"
                )
                raise ConfigError(
                    f"`data_dir` is {data_dir!r}, which holds {now:,} {split} images, {moved}; the"
                    f" run in `model_dir` {model_dir!r} began with {before:,}. Give the data that"
                    " it began with, or another --model_dir."
                )
        warnings = [
            f"the {split} files in {data_dir} are not those that the run began with, though as many"
            " images: it goes on with them, in their own order"
            for split in ("train", "validation")
            if "" != getattr(kept, f"{split}_files") != getattr(self, f"{split}_files") != ""
        ]
        if kept.num_replicas != self.num_replicas:
            warnings.append(
                f"the run began on {kept.num_replicas} replicas and goes on with"
                f" {self.num_replicas}: batch moments are of other groups of images, and random"
                " numbers are others"
            )
        return warnings


def mark_as_saved(model_dir: str) -> None:
    """Notes that the run has written a checkpoint."""
    facts = RunFacts.read(model_dir)
    if facts is not None and not facts.has_saved:
        dataclasses.replace(facts, has_saved=True).write(model_dir)
