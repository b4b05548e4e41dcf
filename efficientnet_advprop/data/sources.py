"""Where the records of a run come from: `config.data.source` and a split's name ->
`records.Split`.

Whatever the source, the pipeline reads TFRecord files; a source only says which, and
what their features are called:

    "tfrecord"   the official layout in `data_dir`
    "digits"     a built-in data set, written into `data_dir` on first use
    "tfds:NAME"  a data set that TensorFlow Datasets has prepared in `data_dir`, whose
                 TFRecords are read as they are
"""

import dataclasses
import difflib
import itertools
import random
import typing

from efficientnet_advprop.config.tables import BACKGROUND, background_offset
from efficientnet_advprop.data import class_names, records, synthetic
from efficientnet_advprop.data.builtin_datasets import BUILTIN_DATASETS
from efficientnet_advprop.runtime.errors import DataError, UsageError, list_names

if typing.TYPE_CHECKING:
    from efficientnet_advprop.config.experiment import DataConfig


def open_split(data: "DataConfig", data_dir: str, split: str) -> records.Split:
    """Opens a split: "train", "validation" or, of TFRecords in the official layout,
    another prefix. What is returned is handed on; nothing opens it a second time.

    With `data.holdout_shards`, "train" lacks its first so many files and "validation"
    is those ("minival"), as in the official code; otherwise "validation" is what
    `data.validation_prefix` says. `data.num_train_examples` then takes the first
    records of every training file; with `data.subset_seed`, all records of as many files
    as it needs, drawn by that seed.
    """
    if data_dir == synthetic.NAME:
        return synthetic.open_split(split)
    held_out = data.holdout_shards if split in ("train", "validation") else 0
    prefix = data.validation_prefix if split == "validation" else split
    opened = _open_whole_split(data, data_dir, "train" if held_out else prefix)
    if held_out:
        num_files = len(opened.files)
        if held_out >= num_files:
            raise DataError(
                f"`config.data.holdout_shards` is {held_out}, but there are only {num_files}"
                f" training files in {data_dir}."
            )
        opened = opened.select(range(held_out, num_files) if split == "train" else range(held_out))
    if split == "train" and data.num_train_examples is not None:
        if data.subset_seed is not None:
            opened = _draw_files(opened, data.num_train_examples, data.subset_seed)
        opened = _limit_examples(opened, data.num_train_examples)
    return opened


def _draw_files(split: records.Split, num_examples: int, seed: int) -> records.Split:
    """Draws files until they hold `num_examples`, or all."""
    order = list(range(len(split.files)))
    random.Random(seed).shuffle(order)
    held = itertools.accumulate(split.counts[index] for index in order)
    num_files = 1 + sum(count < num_examples for count in held)
    return split.select(sorted(order[:num_files]))


def _limit_examples(split: records.Split, num_examples: int) -> records.Split:
    """Keeps the first records of every shard, as even as can be, `num_examples` in all."""
    num_files = len(split.files)
    counts = [
        max(0, (num_examples - index + num_files - 1) // num_files) for index in range(num_files)
    ]
    if num_examples < 1 or any(wanted > there for wanted, there in zip(counts, split.counts)):
        raise DataError(
            f"`config.data.num_train_examples` is {num_examples}, but must be positive and not more"
            f" than the training files hold, evenly over them ({min(split.counts) * num_files} of"
            f" {split.num_records})."
        )
    return dataclasses.replace(split, counts=counts)


def _open_whole_split(data: "DataConfig", data_dir: str, split: str) -> records.Split:
    if data.source.startswith("tfds:"):
        return open_tfds_split(data.source[len("tfds:") :], data_dir, split)
    if data.source in BUILTIN_DATASETS:
        BUILTIN_DATASETS[data.source].ensure(data_dir)
    return records.open_split(data_dir, split)


def open_tfds_split(name: str, data_dir: str, split: str) -> records.Split:
    """Opens the files of a prepared TFDS data set with an image and a label in each example.

    "validation" is the data set's test split where it has none of that name.
    """
    import tensorflow_datasets as tfds  # takes seconds to import, and only this source needs it

    try:
        info = tfds.builder(name, data_dir=data_dir).info
        prepared = info.splits
    except tfds.core.DatasetNotFoundError as error:  # its own message lists all there are
        similar = difflib.get_close_matches(name, tfds.list_builders(), n=3)
        raise DataError(
            f"TensorFlow Datasets has no data set {name!r}, nor does {data_dir!r} hold one of that"
            f" name{'; did you mean ' + ' or '.join(map(repr, similar)) + '?' if similar else '.'}"
        ) from error
    except Exception as error:  # whatever the data set's code raises
        raise DataError(
            f"`config.data.source` is 'tfds:{name}', but TensorFlow Datasets cannot open it:"
            f" {error}"
        ) from error
    if not prepared:
        raise DataError(
            f"the data set {name!r} is not prepared in {data_dir!r}; run `tfds build {name}"
            f" --data_dir={data_dir}`, or give the folder that holds it as `data_dir`."
        )
    if split == "validation" and split not in prepared:
        split = "test"
    if split not in prepared:
        raise DataError(
            f"the data set {name!r} has no split {split!r}; it has"
            f" {', '.join(map(repr, prepared))}."
        )
    features = info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in kinds.items()):
        raise DataError(
            f"the data set {name!r} has no features 'image' and 'label'; it has"
            f" {', '.join(map(repr, features))}."
        )
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DataError(
            f"the data set {name!r} is kept as {info.file_format.value}; only tfrecord can be read."
            " Prepare it again."
        )
    return records.Split(
        [str(path) for path in prepared[split].filepaths],
        list(prepared[split].shard_lengths),
        image_feature="image",
        label_feature="label",
        label_offset=0,
    )


def find_class_names(
    data: "DataConfig", data_dir: str, num_classes: int
) -> typing.Optional[typing.List[str]]:
    """Returns the names of a network's classes, from the records of its run; None where
    nothing tells them. 1001 classes have a background before those of the data.
    """
    if data_dir == synthetic.NAME:
        return None
    if data.source.startswith("tfds:"):
        names = tfds_class_names(data.source[len("tfds:") :], data_dir)
    elif data.source in BUILTIN_DATASETS:
        names = list(BUILTIN_DATASETS[data.source].class_names)
    else:
        names = class_names.find_class_names(data_dir)
    offset = background_offset(num_classes)
    if names is not None and offset and len(names) == num_classes - offset:
        names = [BACKGROUND] * offset + names
    if names is not None and len(names) != num_classes:
        raise UsageError(
            f"`config.model.num_classes` is {num_classes}, but the data in {data_dir!r} have"
            f" {len(names)} classes: {list_names(names)}. Set"
            f" --config.model.num_classes={len(names)}."
        )
    return names


def tfds_class_names(name: str, data_dir: str) -> typing.List[str]:
    """Returns the names of a TFDS data set's classes, in the order of the labels."""
    import tensorflow_datasets as tfds

    return list(tfds.builder(name, data_dir=data_dir).info.features["label"].names)
