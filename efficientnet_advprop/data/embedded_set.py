"""A data set that needs no download: its images are made here and written as sharded
TFRecords, with corrupted test sets, into the folder that a run or an evaluation names.

    DIGITS.ensure("/tmp/digits")                              # writes both splits, once
    DIGITS.ensure_corrupted("/tmp/digits", "gaussian_noise", severity=3)   # -> a folder

`embedded_sets.EMBEDDED_SETS` lists them.
"""

import dataclasses
import io
import os
import uuid
from typing import Callable, List, Sequence, Tuple

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from efficientnet_advprop.data import corruptions, records
from efficientnet_advprop.runtime import files

_NUM_SHARDS = {"train": 8, "validation": 4}


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_split(folder: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    num_shards = _NUM_SHARDS[split]
    for shard in range(num_shards):
        with records.ShardWriter(
            os.path.join(folder, records.shard_name(split, shard, num_shards))
        ) as writer:
            for index in range(shard, len(labels), num_shards):
                writer.write(
                    records.make_example(
                        _encode(images[index]),
                        int(labels[index]),
                        height=images.shape[1],
                        width=images.shape[2],
                        image_format="PNG",
                        filename=f"{split}-{index:05d}.png",
                    )
                )


def _is_complete(directory: str, splits: Sequence[str]) -> bool:
    return all(
        tf.io.gfile.exists(
            os.path.join(directory, records.shard_name(split, shard, _NUM_SHARDS[split]))
        )
        for split in splits
        for shard in range(_NUM_SHARDS[split])
    )


def _publish(directory: str, write: Callable[[str], None]) -> None:
    """Has `write(folder)` fill a folder of its own, then moves it into place: two
    processes at once end with one whole set.
    """
    directory = directory.rstrip("/")
    temporary = f"{directory}.{uuid.uuid4().hex}.tmp"
    tf.io.gfile.makedirs(temporary)
    try:
        write(temporary)
        tf.io.gfile.makedirs(directory)
        # File by file: the folder may hold other things, and both processes' files are
        # the same.
        for name in files.list_folder(temporary):
            tf.io.gfile.rename(
                os.path.join(temporary, name), os.path.join(directory, name), overwrite=True
            )
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)


@dataclasses.dataclass(frozen=True)
class EmbeddedSet:
    """What distinguishes one of them.

    Args:
        name: of `config.data.source`, and of the suite; that of the corrupted images
            has "_c" behind it.
        words: what messages call the images.
        class_names: by label.
        image_size: height and width, pixels.
        num_validation: images of the split "validation", which are the test images.
        load: "train" or "validation" → images (uint8 [n, image_size, image_size, 3])
            and labels (int64 [n]), the same ones at every call.
    """

    name: str
    words: str
    class_names: Tuple[str, ...]
    image_size: int
    num_validation: int
    load: Callable[[str], Tuple[np.ndarray, np.ndarray]]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def corrupted_name(self) -> str:
        return f"{self.name}_c"

    def ensure(self, directory: str) -> None:
        """Writes the `train-*` and `validation-*` files into `directory` unless they are
        there.

        Always the same bytes.

        Raises:
            records.DataError: the folder cannot be written.
        """
        if not directory:
            raise records.DataError(
                f"`data_dir` is empty; give a folder in which {self.words} may be written."
            )
        splits = list(_NUM_SHARDS)
        if not _is_complete(directory, splits):
            logging.info("Writing %s into %s.", self.words, directory)
            self._write(directory, splits, self.load)

    def ensure_corrupted(self, directory: str, corruption: str, severity: int) -> str:
        """Writes the validation images under one corruption unless they are there.

        Args:
            directory: the one given to `ensure`; the corrupted set lies below it.
            corruption: a name of `corruptions.CORRUPTIONS`.
            severity: 1…5.

        Returns:
            The folder with its `validation-*` files: the same images in the same order
            as the clean ones.
        """

        def load(split):
            images, labels = self.load(split)
            corrupted = [
                corruptions.corrupt(image, corruption, severity, seed=index)
                for index, image in enumerate(images)
            ]
            return np.stack(corrupted), labels

        folder = os.path.join(directory, "corrupted", corruption, str(severity))
        if not _is_complete(folder, ["validation"]):
            self._write(folder, ["validation"], load)
        return folder

    def _write(self, directory: str, splits: List[str], load) -> None:
        def write(folder: str) -> None:
            for split in splits:
                _write_split(folder, split, *load(split))

        try:
            _publish(directory, write)
        except (OSError, tf.errors.OpError) as error:
            raise records.DataError(
                f"{self.words} cannot be written into {directory!r}: {error}"
            ) from error
        assert _is_complete(directory, splits)
