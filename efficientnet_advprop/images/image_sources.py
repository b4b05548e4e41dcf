"""Lists the images that `prepare` turns into records: of a folder, of ImageNet's archives,
of a TFDS data set; and divides them into splits.

    images = list_image_folder("/data/flowers/train")            # one folder per class
    images[0].read(), images[0].label, images[0].synset
    train, held = hold_out(images, "minival.txt")
"""

import concurrent.futures
import hashlib
import io
import itertools
import os
import posixpath
import tarfile
from typing import Callable, Mapping, NamedTuple, Optional, Sequence

import tensorflow as tf
from absl import logging
from PIL import Image

from efficientnet_advprop.data import idx_files, records
from efficientnet_advprop.data.image_formats import is_hidden, is_image
from efficientnet_advprop.images import image_folders
from efficientnet_advprop.images.class_numbers import class_name, number_classes, require_known
from efficientnet_advprop.images.ground_truth import read_text, validation_number
from efficientnet_advprop.images.tar_archives import index_members, read_tar_index
from efficientnet_advprop.runtime.errors import DataError, list_names

_READERS = 32


class ImageSource(NamedTuple):
    """An image to be converted.

    Args:
        path: of the file that holds its bytes.
        name: of the image.
        label: its class, from 0.
        synset: its class's name.
        offset, size: of an image in an archive or a TFRecord, its bytes; None: the whole
            file.
        feature: these bytes are a tf.train.Example, of which this feature is the image.
    """

    path: str
    name: str
    label: int
    synset: str
    offset: Optional[int] = None
    size: int = 0
    feature: Optional[str] = None
    pixels: Optional[bytes] = None  # of an IDX file: its image as PNG, in place of all these

    def read(self) -> bytes:
        if self.pixels is not None:
            return self.pixels

        def read() -> bytes:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                if self.offset is None:
                    return file.read()
                file.seek(self.offset)
                return file.read(self.size)

        contents = records.retry_reads(read, f"Reading {self.path}")
        if self.feature is None:
            return contents
        features = tf.train.Example.FromString(contents).features.feature
        return features[self.feature].bytes_list.value[0]


def list_image_folder(
    folder: str,
    class_names: Optional[Sequence[str]] = None,
    log: Callable[[str], None] = logging.warning,
) -> list[ImageSource]:
    """Lists the images of a folder with one folder per class.

    Args:
        folder: local or remote.
        class_names: by label, of the training set; None: as `number_classes` numbers the
            classes of this folder.
        log: takes a line for each kind of file that is skipped, and one for classes of
            `class_names` that this folder lacks.
    """
    images_of, skipped = image_folders.read_image_tree(folder)
    found = number_classes(images_of, folder)
    names = found if class_names is None else class_names
    label_of = {name: label for label, name in enumerate(names)}
    require_known(found, label_of, folder, "no class of the training set")
    for line in skipped.describe():
        log(f"{folder}: {line}")
    present = set(found)
    lacking = [name for name in names if name not in present]
    if lacking:
        log(f"{folder}: no images of {len(lacking)} of {len(names)} classes: {list_names(lacking)}")
    return [
        ImageSource(os.path.join(folder, name, image), image, label_of[synset], synset)
        for name, images in images_of.items()
        for synset in [class_name(name)]
        for image in images
    ]


def list_splits(
    folder: str, log: Callable[[str], None] = logging.warning
) -> tuple[dict[str, list[ImageSource]], list[str]]:
    """Lists train/, validation/ and test/ in a folder, where it holds train/; otherwise all of
    its images as "train".

    Returns the images of each, and the names of the classes.
    """
    if not tf.io.gfile.isdir(f"{folder}/train"):
        train = list_image_folder(folder, log=log)
        return {"train": train}, list_class_names(train)
    images_of = {"train": list_image_folder(f"{folder}/train", log=log)}
    names = list_class_names(images_of["train"])
    for split in ("validation", "test"):
        if tf.io.gfile.isdir(f"{folder}/{split}"):
            images_of[split] = list_image_folder(f"{folder}/{split}", names, log=log)
    return images_of, names


def list_class_names(sources: Sequence[ImageSource]) -> list[str]:
    """Returns the names of the classes in the order of their labels, of a set that has
    images of each.
    """
    return [name for _, name in sorted({source.label: source.synset for source in sources}.items())]


def list_imagenet_train(
    archive: str, log: Callable[[str], None] = logging.warning
) -> list[ImageSource]:
    """Lists the images of ILSVRC2012_img_train.tar, an archive of one archive per class,
    read in place; `log` takes a line for each kind of member that is skipped.
    """
    skipped, images = image_folders.Skipped(), {}
    try:
        with tf.io.gfile.GFile(archive, "rb") as file:
            for member in index_members(file, archive):
                synset, suffix = os.path.splitext(os.path.basename(member.name))
                if suffix != ".tar" or is_hidden(member.name):
                    skipped.add("in it that are no archives of a class", member.name)
                    continue
                if synset in images:
                    raise DataError(f"it holds two archives {synset}.tar; take one out.", archive)
                file.seek(member.offset)
                images[synset] = []
                for image in index_members(file, f"{archive}: {member.name}", member.size):
                    if is_image(image.name):
                        images[synset].append(image)
                    else:
                        skipped.add("in its archives that are no images", image.name)
    except (tarfile.TarError, tf.errors.OpError, OSError, EOFError) as error:
        raise DataError(f"the archive cannot be read to its end: {error}", archive) from error
    if not any(images.values()):
        raise DataError(
            "it holds no archives of images by class; is it ILSVRC2012_img_train.tar?", archive
        )
    empty = [synset for synset, members in images.items() if not members]
    if empty:
        raise DataError(
            f"it holds archives without an image: {list_names(empty)}; copy or make it again.",
            archive,
        )
    for line in skipped.describe():
        log(f"{archive}: {line}")
    return [
        ImageSource(archive, image.name, label, synset, image.offset, image.size)
        for label, synset in enumerate(number_classes(images, archive))
        for image in images[synset]
    ]


def list_imagenet_validation(
    archive: str, synset_labels: str, class_names: Sequence[str]
) -> list[ImageSource]:
    """Lists the images of ILSVRC2012_img_val.tar.

    Line n of `synset_labels` is the class of ILSVRC2012_val_<n>.JPEG, in whatever folder
    and order the archive holds it.
    """
    synsets = read_text(synset_labels).split()
    images = {}
    for member in read_tar_index(archive):
        if is_image(member.name):
            number = validation_number(member.name, archive, len(synsets))
            if number in images:
                raise DataError(f"it holds two images of the number {number}.", archive)
            images[number] = member
    if len(synsets) != len(images):
        raise DataError(
            f"{synset_labels} has {len(synsets)} lines for {len(images)} images.", archive
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    require_known(sorted(set(synsets)), label_of, synset_labels, "no class of the training set")
    return [
        ImageSource(
            archive,
            os.path.basename(image.name),
            label_of[synsets[number - 1]],
            synsets[number - 1],
            image.offset,
            image.size,
        )
        for number, image in sorted(images.items())
    ]


def list_tfds(split: records.Split, class_names: Sequence[str]) -> list[ImageSource]:
    """Lists the images of a prepared TFDS split; hidden labels (−1) are refused."""
    sources = []
    for path, count in zip(split.files, split.counts):
        offsets, digest = records.scan_file(path)
        if digest is None or len(offsets) != count:
            raise DataError(
                f"the file has {len(offsets)} whole records instead of {count}; prepare the"
                " data set again.",
                path,
            )
        for index, row in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
            features = tf.train.Example.FromString(row).features.feature
            label = features[split.label_feature].int64_list.value[0]
            if not 0 <= label < len(class_names):
                raise DataError(
                    f"its label is {label}, but must be one of 0 to {len(class_names) - 1}; the"
                    " labels of this split may not be public.",
                    path,
                    index,
                )
            name = f"{os.path.basename(path)}:{index}"
            offset = offsets[index] + records.HEADER_BYTES
            sources.append(
                ImageSource(
                    path, name, label, class_names[label], offset, len(row), split.image_feature
                )
            )
    return sources


def list_idx(
    folder: str, split: str, class_names: Optional[Sequence[str]] = None
) -> list[ImageSource]:
    """Lists the images of MNIST's files for "train" or "validation" (there "t10k").

    Args:
        class_names: by label; None: the numbers.
    """
    images, labels = idx_files.read_idx_split(folder, split)
    num_classes = int(labels.max()) + 1
    names = list(map(str, range(num_classes))) if class_names is None else class_names
    if num_classes > len(names):
        raise DataError(
            f"its labels go up to {num_classes - 1}, but there are {len(names)} names of classes.",
            folder,
        )
    path = idx_files.find_idx_file(folder, split, "images")
    sources = []
    for index, (image, label) in enumerate(zip(images, labels)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        name = f"{split}-{index:05d}.png"
        sources.append(
            ImageSource(
                path, name, int(label), names[label], index, image.size, pixels=buffer.getvalue()
            )
        )
    return sources


def hold_out(
    sources: Sequence[ImageSource], names_file: str
) -> tuple[list[ImageSource], list[ImageSource]]:
    """Divides training images into those that a list does not name, and those that it
    does: the official "minival" is such a list.

    Each line of `names_file` is a file's name, n01440764_10026.JPEG or cat/1.png.
    """
    # "train/cat/1.png" and "cat/1.png" are the same image, "1.png" any of that name.
    lines = filter(None, map(str.strip, read_text(names_file).splitlines()))
    keys = {line: "/".join(posixpath.normpath(class_name(line)).split("/")[-2:]) for line in lines}
    found: dict[str, list[int]] = {key: [] for key in keys.values()}
    for index, source in enumerate(sources):
        name = class_name(os.path.basename(source.name))
        for key in (name, f"{source.synset}/{name}"):
            if key in found:
                found[key].append(index)
    wanted = {line: found[key] for line, key in keys.items()}
    lacking = [line for line, indices in wanted.items() if not indices]
    ambiguous = [line for line, indices in wanted.items() if len(indices) > 1]
    problem = (
        "which is empty"
        if not wanted
        else f"whose names are not all among the {len(sources):,} training images:"
        f" {list_names(lacking)}"
        if lacking
        else f"where a name fits several images: {list_names(ambiguous)}; put its class folder"
        " before it, such as cat/1.png"
        if ambiguous
        else None
    )
    if problem:
        raise DataError(f"`--minival_list` is {names_file!r}, {problem}.")
    held = {index for indices in wanted.values() for index in indices}
    kept = [source for index, source in enumerate(sources) if index not in held]
    return kept, [sources[index] for index in sorted(held)]


def group_equal_files(
    sources: Sequence[ImageSource],
) -> dict[tuple[str, str], list[ImageSource]]:
    """Returns the images by class name and SHA-256 of their contents."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        digests = pool.map(lambda source: hashlib.sha256(source.read()).hexdigest(), sources)
    groups: dict[tuple[str, str], list[ImageSource]] = {}
    for source, digest in zip(sources, digests):
        groups.setdefault((source.synset, digest), []).append(source)
    return groups


def divide(
    groups: Mapping[tuple[str, str], Sequence[ImageSource]], fractions: Mapping[str, float]
) -> dict[str, list[ImageSource]]:
    """Divides a set of images by their contents alone, not by names, times or order.

    A group stands where the hash of its digest says, whatever other groups there are, so that
    adding images moves no other one. Only where a part would have no image of a class, it
    takes one of the largest part.

    Args:
        groups: by class name and a digest of their contents, images that must stand in one
            part.
        fractions: part → its share; together below 1. The rest becomes "train".

    Raises:
        DataError: a class has fewer groups than there are parts.
    """
    of_class: dict[str, list[str]] = {}
    for synset, digest in sorted(groups):
        of_class.setdefault(synset, []).append(digest)
    parts: dict[str, list[ImageSource]] = {part: [] for part in ("train", *fractions)}
    for synset, digests in of_class.items():
        if len(digests) < len(parts):
            raise DataError(
                f"the class {synset!r} has {len(digests)} different images, but needs at least"
                f" {len(parts)}: one each for {', '.join(parts)}."
            )
        own: dict[str, list[str]] = {part: [] for part in parts}
        for digest in digests:
            # Hashed again: the digest of a group may be the smallest of many.
            place = int(hashlib.sha256(digest.encode()).hexdigest()[:12], 16) / 16**12
            ends = itertools.accumulate(fractions.values())
            part = next((part for part, end in zip(fractions, ends) if place < end), "train")
            own[part].append(digest)
        for chosen in own.values():
            if not chosen:
                chosen.append(max(own.values(), key=len).pop(0))
        for part, chosen in own.items():
            parts[part] += [source for digest in chosen for source in groups[synset, digest]]
    return parts
