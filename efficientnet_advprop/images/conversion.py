"""Making records: images from archives, folders or TFDS, as shuffled shards in the
official layout.

    sources = list_image_folder("/data/flowers", "train")        # one folder per class
    report = convert(sources, "/data/records", "train", num_shards=64, num_workers=8)

Shards are written in parallel, each whole or not at all, so that a killed conversion
goes on where it was. What is no RGB or gray JPEG (PNG, GIF, BMP, WebP, CMYK, whatever
its name says) is encoded anew as one, of quality 100, from the pixels that every other
reader sees (`image_formats`).
"""

import concurrent.futures
import dataclasses
import os
import random
import re
import tarfile
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import tensorflow as tf
from absl import logging

from efficientnet_advprop.data import image_formats, records
from efficientnet_advprop.data.digests import Located, digest_images
from efficientnet_advprop.data.image_formats import is_hidden, is_image
from efficientnet_advprop.images import image_folders
from efficientnet_advprop.images.class_numbers import class_name, number_classes, require_known
from efficientnet_advprop.images.tar_archives import index_members, read_tar_index
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import list_names
from tpu_utils.errors import brief_message

_SHUFFLE_SEED = 0
_JPEG_QUALITY = 100


class ImageSource(NamedTuple):
    """One image to be converted: where its bytes are, its class (from 0) and the
    class's name.
    """

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
    """Images of a shard that cannot be converted, so that the shard is not written; the
    argument is what is wrong with each.
    """


@dataclasses.dataclass
class Report:
    """What a conversion wrote, by class name; `failures` names the images that could
    not be read.
    """

    num_images: int
    num_per_class: Dict[str, int]
    num_reencoded: int
    failures: List[str]


def list_image_folder(
    folder: str,
    class_names: Optional[Sequence[str]] = None,
    log: Callable[[str], None] = logging.warning,
) -> List[ImageSource]:
    """The images of a folder with one folder per class.

    Args:
        folder: local or remote.
        class_names: which number each class has, as `list_class_names` gives it of the
            training set; None: as `class_numbers.number_classes` numbers the classes of
            this folder.
        log: takes a line for each kind of file that is passed over, and one for classes
            of `class_names` that this folder lacks.

    Raises:
        records.DataError: there is no folder, no class, no image; a class without an
            image, or one that `class_names` lacks; or a name that is no text.
    """
    tree = image_folders.read_image_tree(folder)
    found = number_classes(tree.images, folder)
    names = found if class_names is None else class_names
    label_of = {name: label for label, name in enumerate(names)}
    require_known(found, label_of, folder, "no class of the training set")
    for line in tree.passed_over.describe():
        log(f"{folder}: {line}")
    lacking = [name for name in names if name not in found]
    if lacking:
        log(f"{folder}: no images of {len(lacking)} of {len(names)} classes: {list_names(lacking)}")
    return [
        ImageSource(os.path.join(folder, name, image), image, label_of[synset], synset)
        for name, images in tree.images.items()
        for synset in [class_name(name)]
        for image in images
    ]


def list_class_names(sources: Sequence[ImageSource]) -> List[str]:
    """The names of the classes in the order of their labels, of a set that has images
    of each.
    """
    return [name for _, name in sorted({source.label: source.synset for source in sources}.items())]


def list_imagenet_train(
    archive: str, log: Callable[[str], None] = logging.warning
) -> List[ImageSource]:
    """The images of ILSVRC2012_img_train.tar, an archive of one archive per class, read
    in place.

    Args:
        archive: local or remote.
        log: takes a line for each kind of member that is passed over.

    Raises:
        records.DataError: the archive is not there, is damaged or of another kind, or
            an archive in it holds no image.
    """
    passed_over, images = image_folders.PassedOver(), {}
    try:
        with tf.io.gfile.GFile(archive, "rb") as file:
            for member in index_members(file, archive):
                synset, suffix = os.path.splitext(os.path.basename(member.name))
                if suffix != ".tar" or is_hidden(member.name):
                    passed_over.add("in it that are no archives of a class", member.name)
                    continue
                file.seek(member.offset)
                images[synset] = []
                for image in index_members(file, f"{archive}: {member.name}", member.size):
                    if is_image(image.name):
                        images[synset].append(image)
                    else:
                        passed_over.add("in its archives that are no images", image.name)
    except (tarfile.TarError, tf.errors.OpError, OSError, EOFError) as error:
        raise records.DataError(
            f"the archive cannot be read to its end: {error}", archive
        ) from error
    if not any(images.values()):
        raise records.DataError(
            "it holds no archives of images by class; is it ILSVRC2012_img_train.tar?", archive
        )
    empty = [synset for synset, members in images.items() if not members]
    if empty:
        raise records.DataError(
            f"it holds archives without an image: {list_names(empty)}; copy or make it again.",
            archive,
        )
    for line in passed_over.describe():
        log(f"{archive}: {line}")
    return [
        ImageSource(archive, image.name, label, synset, image.offset, image.size)
        for label, synset in enumerate(number_classes(images, archive))
        for image in images[synset]
    ]


def list_imagenet_validation(
    archive: str, synset_labels: str, class_names: Sequence[str]
) -> List[ImageSource]:
    """The images of ILSVRC2012_img_val.tar.

    Line i of `synset_labels` is the class of image i, in the order of the names.

    Raises:
        records.DataError: a file is not there, they have different lengths, or a class
            is unknown.
    """
    try:
        with tf.io.gfile.GFile(synset_labels) as file:
            synsets = file.read().split()
    except (tf.errors.OpError, ValueError) as error:
        raise records.DataError(f"it cannot be read: {brief_message(error)}", synset_labels) from (
            error
        )
    images = [member for member in read_tar_index(archive) if is_image(member.name)]
    images.sort(key=lambda member: member.name)
    if len(synsets) != len(images):
        raise records.DataError(
            f"{synset_labels} has {len(synsets)} lines for {len(images)} images.", archive
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = sorted(set(synsets) - set(label_of))
    require_known(unknown, label_of, synset_labels, "no class of the training set")
    return [
        ImageSource(
            archive,
            os.path.basename(image.name),
            label_of[synset],
            synset,
            image.offset,
            image.size,
        )
        for image, synset in zip(images, synsets)
    ]


def list_tfds(split: records.Split, class_names: Sequence[str]) -> List[ImageSource]:
    """The images of a prepared TFDS split: see `sources.open_tfds_split` and
    `sources.tfds_class_names`.

    Raises:
        records.DataError: a file is cut off.
    """
    sources = []
    for path, count in zip(split.files, split.counts):
        offsets, is_whole, _ = records.scan_file(path)
        if not is_whole or len(offsets) != count:
            raise records.DataError(
                f"the file has {len(offsets)} whole records instead of {count}; prepare the data"
                " set again.",
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


def hold_out(
    sources: Sequence[ImageSource], names_file: str
) -> "tuple[List[ImageSource], List[ImageSource]]":
    """Training images without, and with, those that a list names: the official
    "minival" is such a list.

    Args:
        sources: the training images.
        names_file: a file name on each line, such as n01440764_10026.JPEG; local or
            gs://. A path before it does not matter.

    Raises:
        records.DataError: the file is missing or empty, or names an image that there is
            not.
    """
    try:
        with tf.io.gfile.GFile(names_file) as file:
            wanted = {line.strip().rsplit("/", 1)[-1] for line in file if line.strip()}
    except tf.errors.OpError as error:
        raise records.DataError(
            f"`--minival_list` is {names_file!r}, which cannot be read: {brief_message(error)}"
        ) from error
    named = [source.name.rsplit("/", 1)[-1] in wanted for source in sources]
    minival = [source for source, is_named in zip(sources, named) if is_named]
    lacking = sorted(wanted - {source.name.rsplit("/", 1)[-1] for source in minival})
    if lacking or not minival:
        raise records.DataError(
            f"`--minival_list` is {names_file!r}, whose names are not all among the"
            f" {len(sources):,} training images:"
            f" {', '.join(lacking[:3]) or 'it is empty'}{' and more' if len(lacking) > 3 else ''}."
        )
    return [source for source, is_named in zip(sources, named) if not is_named], minival


def to_rgb_jpeg(encoded: bytes) -> "tuple[bytes, int, int, bool]":
    """An image's bytes as an RGB (or gray) JPEG, its height and width, and whether it
    had to be encoded anew.

    Colours keep their full resolution in what is encoded anew. The official converter
    halves it; it is meant for a handful of photographs, and would smear small images.

    Raises:
        image_formats.ImageFormatError or tf.errors.InvalidArgumentError: it is of a
            format that is not taken, or cannot be decoded to its end.
    """
    decodable = image_formats.as_decodable(encoded)
    pixels = image_formats.decode(decodable)
    height, width = pixels.shape[:2]
    is_jpeg = bool(image_formats.is_jpeg(decodable))
    if is_jpeg and int(tf.image.extract_jpeg_shape(decodable)[2]) in (1, 3):
        return encoded, height, width, False
    jpeg = tf.io.encode_jpeg(pixels, format="rgb", quality=_JPEG_QUALITY, chroma_downsampling=False)
    return jpeg.numpy(), height, width, True


def _digest(parts: Sequence[Sequence[ImageSource]]) -> str:
    """Returns what tells these shards' images and labels from all others."""
    located = [
        Located(
            f"{shard}: {image.synset}/{image.name}",
            image.label,
            image.path,
            image.offset,
            image.size,
        )
        for shard, part in enumerate(parts)
        for image in part
    ]
    return digest_images(located)


def _write_shard(path: str, sources: Sequence[ImageSource]) -> int:
    """Writes one file; returns how many images were encoded anew."""
    num_reencoded, failures = 0, []
    with records.ShardWriter(path) as writer:
        for source in sources:
            try:
                encoded, height, width, is_new = to_rgb_jpeg(source.read())
            except (OSError, ValueError, tf.errors.OpError) as error:
                where = source.path if source.offset is None else f"{source.path} ({source.name})"
                failures.append(f"{where}: {brief_message(error)}")
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

    Shards that an earlier, killed call with the same sources has written are passed
    over; what it left half-written is removed at the end.

    Args:
        sources: the images.
        output_dir: local or remote; is made.
        prefix: "train" or "validation".
        num_shards: how many files.
        num_workers: threads; decoding and reading release Python's lock.
        shuffle: in an order that depends on nothing but the number of sources. Training
            files must be, to mix the classes.
        progress: called with the number of shards done and of all.

    Returns:
        What was written. Where an image failed, its shard is missing: the set is never
        silently short.

    Raises:
        records.DataError: the folder holds shards of another conversion, there are more
            shards than images, or a file cannot be written (a full disk, say).
    """
    if not 1 <= num_shards <= len(sources):
        raise records.DataError(
            f"`num_shards` is {num_shards}, but must be between 1 and the {len(sources)} images of"
            f" {prefix!r}."
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
        name for name in files.list_folder(output_dir) if pattern.match(name) and name not in names
    ]
    if foreign:
        raise records.DataError(
            f"{output_dir} already holds {prefix!r} files of another set, such as {foreign[0]};"
            " take another folder."
        )
    records.claim_shards(output_dir, prefix, _digest(parts), f"the {len(sources):,} images")
    paths = [os.path.join(output_dir, name) for name in names]
    done = [tf.io.gfile.exists(path) for path in paths]
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
                        f"the file cannot be written: {error}. The whole files stay; the same"
                        " command goes on from them.",
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
        records.save_counts(output_dir, prefix, list(map(len, parts)))
    return Report(len(sources) - len(failures), per_class, num_reencoded, failures)
