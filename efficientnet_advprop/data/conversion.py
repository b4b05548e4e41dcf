"""Making records: images from archives, folders or TFDS, as shuffled shards in the official layout.

    sources = list_image_folder("/data/flowers", "train")        # one folder per class
    report = convert(sources, "/data/records", "train", num_shards=64, num_workers=8)

Shards are written in parallel, each whole or not at all, so that a killed conversion goes on where it was. What is no RGB JPEG
(PNG, GIF, BMP, CMYK, whatever its name says) is encoded anew as one, of quality 100, as the official converter does with the 23
such files of ImageNet.
"""

import concurrent.futures
import dataclasses
import io
import os
import random
import re
import tarfile
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from efficientnet_advprop import files
from efficientnet_advprop.data import records
from efficientnet_advprop.data.labeled_images import IMAGE_SUFFIXES, is_image

_SHUFFLE_SEED = 0
_JPEG_QUALITY = 100


class ImageSource(NamedTuple):
    """One image to be converted: where its bytes are, its class (from 0) and the class's name."""

    path: str
    name: str
    label: int
    synset: str
    offset: Optional[int] = (
        None  # in an archive or a TFRecord; None: the path is the image's own file
    )
    size: int = 0  # bytes from the offset on
    feature: Optional[str] = (
        None  # the bytes are a tf.train.Example, and this feature of it is the image
    )

    def read(self) -> bytes:
        def read() -> bytes:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                if self.offset is None:
                    return file.read()
                file.seek(self.offset)
                return file.read(self.size)

        contents = records.retry_reads(read, f"Reading {self.path}")
        if self.feature is None:
            return contents
        return (
            tf.train.Example.FromString(contents).features.feature[self.feature].bytes_list.value[0]
        )


class _ImagesFailed(Exception):
    """Images of a shard that cannot be converted, so that the shard is not written; the argument is what is wrong with each."""


@dataclasses.dataclass
class Report:
    """What a conversion wrote, by class name; `failures` names the images that could not be read."""

    num_images: int
    num_per_class: Dict[str, int]
    num_reencoded: int
    failures: List[str]


def list_image_folder(
    folder: str, class_names: Optional[Sequence[str]] = None
) -> List[ImageSource]:
    """The images of a folder with one folder per class; the classes are numbered in the order of their names.

    Args:
      folder: local or remote.
      class_names: which number each class has; None: those of this folder, sorted.

    Raises:
      records.DataError: there is no folder, no class, no image, or a class that `class_names` lacks.
    """
    if not tf.io.gfile.isdir(folder):
        raise records.DataError(f"{folder!r} is no folder.")
    found = sorted(
        name.rstrip("/")
        for name in tf.io.gfile.listdir(folder)
        if tf.io.gfile.isdir(os.path.join(folder, name))
    )
    class_names = list(class_names or found)
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise records.DataError(
            f"{folder!r} holds classes that the training set lacks: {', '.join(unknown[:5])}."
        )
    sources = [
        ImageSource(os.path.join(folder, synset, name), name, class_names.index(synset), synset)
        for synset in found
        for name in sorted(tf.io.gfile.listdir(os.path.join(folder, synset)))
        if is_image(name)
    ]
    if not sources:
        raise records.DataError(
            f"{folder!r} holds no images; expected one folder per class with {', '.join(IMAGE_SUFFIXES)} files in it."
        )
    return sources


def list_imagenet_train(archive: str) -> List[ImageSource]:
    """The images of ILSVRC2012_img_train.tar, an archive of one archive per class, read in place.

    Raises:
      records.DataError: the archive is not there, is damaged or of another kind.
    """
    sources = []
    try:
        with tf.io.gfile.GFile(archive, "rb") as file, tarfile.open(fileobj=file) as outer:
            members = sorted(
                (member for member in outer if member.name.endswith(".tar")),
                key=lambda member: member.name,
            )
            for label, member in enumerate(members):
                synset = os.path.splitext(os.path.basename(member.name))[0]
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    sources += [
                        ImageSource(
                            archive,
                            image.name,
                            label,
                            synset,
                            member.offset_data + image.offset_data,
                            image.size,
                        )
                        for image in inner
                        if image.isfile()
                    ]
    except (tarfile.TarError, tf.errors.OpError, OSError, EOFError) as error:
        raise records.DataError(
            f"the archive cannot be read to its end: {error}", archive
        ) from error
    if not sources:
        raise records.DataError(
            "it holds no archives of images by class; is it ILSVRC2012_img_train.tar?", archive
        )
    return sources


def list_imagenet_validation(
    archive: str, synset_labels: str, class_names: Sequence[str]
) -> List[ImageSource]:
    """The images of ILSVRC2012_img_val.tar; line i of `synset_labels` is the class of image i, in the order of the names.

    Raises:
      records.DataError: a file is not there, they have different lengths, or a class is unknown.
    """
    try:
        with tf.io.gfile.GFile(synset_labels) as file:
            synsets = file.read().split()
        with tf.io.gfile.GFile(archive, "rb") as file, tarfile.open(fileobj=file) as opened:
            images = sorted(
                (member for member in opened if member.isfile()), key=lambda member: member.name
            )
    except (tarfile.TarError, tf.errors.OpError, OSError, EOFError) as error:
        raise records.DataError(f"the validation set cannot be read: {error}", archive) from error
    if len(synsets) != len(images):
        raise records.DataError(
            f"{synset_labels} has {len(synsets)} lines for {len(images)} images.", archive
        )
    unknown = sorted(set(synsets) - set(class_names))
    if unknown:
        raise records.DataError(
            f"{synset_labels} names classes that the training set lacks: {', '.join(unknown[:5])}."
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    return [
        ImageSource(
            archive,
            os.path.basename(image.name),
            label_of[synset],
            synset,
            image.offset_data,
            image.size,
        )
        for image, synset in zip(images, synsets)
    ]


def list_tfds(split: records.Split, class_names: Sequence[str]) -> List[ImageSource]:
    """The images of a prepared TFDS split: see `sources.open_tfds_split` and `sources.tfds_class_names`.

    Raises:
      records.DataError: a file is cut off.
    """
    sources = []
    for path, count in zip(split.files, split.counts):
        offsets, is_whole = records.record_offsets(path)
        if not is_whole or len(offsets) != count:
            raise records.DataError(
                f"the file has {len(offsets)} whole records instead of {count}; prepare the data set again.",
                path,
            )
        for index, row in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
            label = (
                tf.train.Example.FromString(row)
                .features.feature[split.label_feature]
                .int64_list.value[0]
            )
            sources.append(
                ImageSource(
                    path,
                    f"{os.path.basename(path)}:{index}",
                    label,
                    class_names[label],
                    offsets[index] + records.HEADER_BYTES,
                    len(row),
                    split.image_feature,
                )
            )
    return sources


def to_rgb_jpeg(encoded: bytes) -> "tuple[bytes, int, int, bool]":
    """An image's bytes as an RGB (or gray) JPEG, its height and width, and whether it had to be encoded anew.

    Raises:
      OSError, SyntaxError or ValueError: it cannot be decoded to its end.
    """
    image = Image.open(io.BytesIO(encoded))
    image.load()
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        return encoded, image.height, image.width, False
    # As TensorFlow decodes it: for CMYK that is what the official converter does.
    if image.format == "JPEG":
        pixels = tf.io.decode_jpeg(encoded, channels=3)
    else:
        pixels = tf.constant(np.asarray(image.convert("RGB")))
    return (
        tf.io.encode_jpeg(pixels, format="rgb", quality=_JPEG_QUALITY).numpy(),
        image.height,
        image.width,
        True,
    )


def _write_shard(path: str, sources: Sequence[ImageSource]) -> int:
    """Writes one file; returns how many images were encoded anew."""
    num_reencoded, failures = 0, []
    with records.ShardWriter(path) as writer:
        for source in sources:
            try:
                encoded, height, width, is_new = to_rgb_jpeg(source.read())
            except (OSError, SyntaxError, ValueError, tf.errors.OpError) as error:
                failures.append(
                    f"{source.path}{'' if source.offset is None else f' ({source.name})'}: {error}"
                )
                continue
            num_reencoded += is_new
            writer.write(
                records.make_example(
                    encoded,
                    source.label,
                    height=height,
                    width=width,
                    synset=source.synset,
                    filename=source.name,
                )
            )
        if failures:
            raise _ImagesFailed(failures)
    return num_reencoded


def convert(
    sources: Sequence[ImageSource],
    output_dir: str,
    prefix: str,
    *,
    num_shards: int,
    num_workers: int = 8,
    shuffle: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Writes `prefix`-00000-of-… into `output_dir`.

    Shards that an earlier, killed call with the same sources has written are passed over; what it left half-written is removed
    at the end.

    Args:
      sources: the images.
      output_dir: local or remote; is made.
      prefix: "train" or "validation".
      num_shards: how many files.
      num_workers: threads; decoding and reading release Python's lock.
      shuffle: in an order that depends on nothing but the number of sources. Training files must be, to mix the classes.
      progress: called with the number of shards done and of all.

    Returns:
      What was written. Where an image failed, its shard is missing: the set is never silently short.

    Raises:
      records.DataError: the folder holds shards of another conversion, there are more shards than images, or a file cannot be
        written (a full disk, say).
    """
    if not 1 <= num_shards <= len(sources):
        raise records.DataError(
            f"`num_shards` is {num_shards}, but must be between 1 and the {len(sources)} images of {prefix!r}."
        )
    tf.io.gfile.makedirs(output_dir)
    order = list(range(len(sources)))
    if shuffle:
        random.Random(_SHUFFLE_SEED).shuffle(order)
    parts = [
        [
            sources[i]
            for i in order[
                len(order) * shard // num_shards : len(order) * (shard + 1) // num_shards
            ]
        ]
        for shard in range(num_shards)
    ]
    pattern = re.compile(re.escape(prefix) + r"-\d{5}-of-\d{5}$")
    names = [records.shard_name(prefix, shard, num_shards) for shard in range(num_shards)]
    foreign = [
        name
        for name in tf.io.gfile.listdir(output_dir)
        if pattern.match(name) and name not in names
    ]
    if foreign:
        raise records.DataError(
            f"{output_dir} already holds {prefix!r} files of another set, such as {foreign[0]}; take another folder."
        )
    paths = [os.path.join(output_dir, name) for name in names]
    done = [tf.io.gfile.exists(path) for path in paths]
    for path, part in zip(paths, parts):
        if tf.io.gfile.exists(path) and records.count_records(path) != (len(part), True):
            raise records.DataError(
                f"it does not hold the {len(part)} images of this conversion; it is from another one. Remove it.",
                path,
            )
    if any(done):
        logging.info("%d of %d shards are there already.", sum(done), num_shards)
    num_reencoded, failures, finished = 0, [], sum(done)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        tasks = {
            pool.submit(_write_shard, path, part): path
            for path, part, is_there in zip(paths, parts, done)
            if not is_there
        }
        try:
            for task in concurrent.futures.as_completed(tasks):
                try:
                    num_reencoded += task.result()
                    finished += 1
                except _ImagesFailed as error:
                    failures += error.args[0]
                except (OSError, tf.errors.OpError) as error:
                    raise records.DataError(
                        f"the file cannot be written: {error}. The whole files stay; the same command goes on from them.",
                        tasks[task],
                    ) from error
                progress(finished, num_shards)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    per_class: Dict[str, int] = {}
    for source in sources:
        per_class[source.synset] = per_class.get(source.synset, 0) + 1
    if not failures:
        files.remove_temporaries(paths)  # of killed calls
        sizes = [tf.io.gfile.stat(path).length for path in paths]
        records.save_counts(output_dir, prefix, sizes, [len(part) for part in parts])
    return Report(len(sources) - len(failures), per_class, num_reencoded, failures)
