"""Data sets that need no preparation: their images are written as sharded TFRecords, with
corrupted test sets, into the folder that a run or an evaluation names.

    DIGITS.ensure("/tmp/digits")                   # train: 797 images, validation: 1,000
    DIGITS.ensure_corrupted("/tmp/digits", "gaussian_noise", severity=3)   # -> a folder

1,797 real handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten
Digits, UCI, CC BY 4.0), 8×8 in 17 grays, come with scikit-learn. Each is enlarged to
32×32 RGB (bicubic) and kept as a PNG. Enough test images are held out that a percentage
is sure to ±1.4 at 95 % accuracy (two standard deviations).

Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747; MIT licence): 60,000 and
10,000 photographs of clothing, 28×28 gray, with a black frame of two pixels. Its IDX files
come with Debian's package dataset-fashion-mnist, or lie in the folder themselves.
"""

import dataclasses
import io
import os
from typing import Callable, Optional, Tuple

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from efficientnet_advprop.data import corruptions, idx_files, records
from efficientnet_advprop.data.digests import digest_rows
from efficientnet_advprop.runtime.errors import DataError

IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_VALIDATION = 1000
_SPLIT_SEED = 0
_NUM_VALIDATION_SHARDS = 4
_FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"  # of Debian's package


@dataclasses.dataclass(frozen=True)
class BuiltinDataset:
    """A data set whose images are made here.

    Args:
        name: of `config.data.source`, and of the suite; that of the corrupted images
            has "_c" behind it.
        words: what messages call the images.
        class_names: by label.
        num_validation: images of the split "validation", which are the test images.
        load: ("train" or "validation", the folder of the records) → images (uint8 [n,
            `IMAGE_SIZE`, `IMAGE_SIZE`, 3]) and labels (int64 [n]), the same ones at every
            call.
        num_train_shards: files of the split "train".
    """

    name: str
    words: str
    class_names: Tuple[str, ...]
    num_validation: int
    load: Callable[[str, str], Tuple[np.ndarray, np.ndarray]]
    num_train_shards: int = 8

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def corrupted_name(self) -> str:
        return f"{self.name}_c"

    def ensure(self, directory: str) -> None:
        """Writes the `train-*` and `validation-*` files into `directory` unless they are
        there; always the same bytes.
        """
        if not directory:
            raise DataError(
                f"`data_dir` is empty; give a folder in which {self.words} may be written."
            )
        for split in ("train", "validation"):
            self._ensure_split(
                directory, split, "clean", lambda split=split: self.load(split, directory)
            )

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

        def load():
            images, labels = self.load("validation", directory)
            corrupted = [
                corruptions.corrupt(image, corruption, severity, seed=index)
                for index, image in enumerate(images)
            ]
            return np.stack(corrupted), labels

        folder = os.path.join(directory, "corrupted", corruption, str(severity))
        self._ensure_split(folder, "validation", f"{corruption}/{severity}", load)
        return folder

    def _ensure_split(self, directory: str, split: str, variant: str, load: Callable) -> None:
        # Of two processes at once each writes what it lacks, whole files of the same bytes.
        num_shards = self.num_train_shards if split == "train" else _NUM_VALIDATION_SHARDS
        names = [records.shard_name(split, shard, num_shards) for shard in range(num_shards)]
        digests = {name: digest_rows([(self.name, variant, name)]) for name in names}
        try:
            there = records.claim_shards(directory, split, digests, self.words)
            if there == set(names):
                return
            # Of corrupted sets there are 75, which one line of the evaluation announces.
            level = logging.INFO if variant == "clean" else logging.DEBUG
            logging.log(level, "Writing %s (%s) into %s.", self.words, split, directory)
            images, labels = load()
            for shard, name in enumerate(names):
                if name in there:
                    continue
                with records.ShardWriter(os.path.join(directory, name)) as writer:
                    for index in range(shard, len(labels), num_shards):
                        image_name = f"{split}-{index:05d}.png"
                        writer.write(_to_record(images[index], int(labels[index]), image_name))
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"{self.words} cannot be written into {directory!r}: {error}") from (
                error
            )


def _to_record(image: np.ndarray, label: int, name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    height, width, _ = image.shape
    return records.make_example(
        buffer.getvalue(), label, height=height, width=width, image_format="PNG", filename=name
    )


def _interleave_classes(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorders so that every leading part holds the classes as evenly as there are
    images of them.
    """
    rank = np.zeros(len(indices), np.int64)
    for label in range(NUM_CLASSES):
        of_class = np.flatnonzero(labels[indices] == label)
        rank[of_class] = np.arange(len(of_class))
    return indices[np.lexsort((labels[indices], rank))]


def load_digits(split: str, directory: str = "") -> Tuple[np.ndarray, np.ndarray]:
    """Returns the images (uint8 [n, 32, 32, 3]) and labels (int64 [n]) of "train" or
    "validation", in the order of the records.
    """
    del directory
    from sklearn import datasets  # imported here: only this data set needs scikit-learn

    source = datasets.load_digits()
    order = _interleave_classes(
        np.random.RandomState(_SPLIT_SEED).permutation(len(source.target)), source.target
    )
    chosen = order[:NUM_VALIDATION] if split == "validation" else order[NUM_VALIDATION:]
    chosen = _interleave_classes(chosen, source.target)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    grays = (source.images[chosen] * (255 / 16)).round().astype(np.uint8)
    enlarged = [Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC) for gray in grays]
    images = np.stack(list(map(np.asarray, enlarged)))
    return np.repeat(images[..., None], 3, axis=-1), source.target[chosen].astype(np.int64)


def load_fashion_mnist(split: str, directory: str) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the images (uint8 [n, 32, 32, 3]) and labels (int64 [n]) of "train" or
    "validation", from the IDX files in `directory` or of Debian's package.
    """
    found = [
        folder
        for folder in (directory, _FASHION_MNIST_DIR)
        if idx_files.find_idx_file(folder, split, "images")
    ]
    if not found:
        raise DataError(
            "Fashion-MNIST's IDX files are neither in it nor in Debian's place; install the"
            " package dataset-fashion-mnist, or put the four files there.",
            directory,
        )
    images, labels = idx_files.read_idx_split(found[0], split)
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(framed[..., None], 3, axis=-1), labels.astype(np.int64)


DIGITS = BuiltinDataset(
    name="digits",
    words="the handwritten digits",
    class_names=tuple(map(str, range(NUM_CLASSES))),
    num_validation=NUM_VALIDATION,
    load=load_digits,
)
FASHION_MNIST = BuiltinDataset(
    name="fashion_mnist",
    words="Fashion-MNIST",
    class_names=tuple(
        "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot".split("|")
    ),
    num_validation=10_000,
    load=load_fashion_mnist,
    # Files of 250 images, so that a training set of some of them can be drawn anew for
    # each seed (`config.data.subset_seed`).
    num_train_shards=240,
)
# By name; `config.experiment.BUILTIN` names them too.
BUILTIN_DATASETS = {dataset.name: dataset for dataset in (DIGITS, FASHION_MNIST)}


def of_suite(suite: str) -> Optional[BuiltinDataset]:
    """Returns the data set whose clean or corrupted test images a suite is; None for others."""
    return BUILTIN_DATASETS.get(suite.removesuffix("_c"))
