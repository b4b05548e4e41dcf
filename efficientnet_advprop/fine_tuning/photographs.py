"""Looks through a folder of photographs and divides it into training, validation and test.

photographs = look("Photos")
photographs.parts["test"], photographs.class_names, photographs.notes
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
from typing import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image
from scipy.spatial import cKDTree

from efficientnet_advprop.images import image_sources
from efficientnet_advprop.images.image_sources import ImageSource
from efficientnet_advprop.runtime.errors import DataError, UsageError, list_names

PARTS = ("train", "validation", "test")
# Shares of a folder that is not divided yet.
FRACTIONS = {"validation": 0.15, "test": 0.15}
FEW_IMAGES = 10  # of a class, which is said
_IMBALANCE = 5  # so many times the images of the smallest class, which is said
_THUMBNAIL = 8  # pixels
_DRAFT = 32 * _THUMBNAIL  # pixels at least; fewer made thumbnails of a PNG and its JPEG differ
# Levels of 255, by which no pixel of the thumbnails of near-identical images differs: `_NEAR` and
# a share of their contrast, at most `_FARTHEST`. Copies that are scaled or stored anew stay within;
# 8 levels joined solar cells that only look alike.
_NEAR, _NEAR_BY_CONTRAST, _FARTHEST = 2.0, 0.12, 10.0
_READERS = 16


@dataclasses.dataclass(frozen=True)
class Photographs:
    """The images of a folder.

    Args:
        parts: "train", "validation" and "test" → their images.
        class_names: by label.
        smallest: pixels of the shortest side of any image.
        notes: what is odd, a line each.
        digest: SHA-256 of all names, parts and contents.
    """

    parts: Mapping[str, Sequence[ImageSource]]
    class_names: Sequence[str]
    smallest: int
    notes: Sequence[str]
    digest: str


@dataclasses.dataclass(frozen=True)
class _Seen:
    digest: str  # SHA-256 of the file
    thumbnail: np.ndarray  # float32 [192]
    shortest_side: int


def look(folder: str) -> Photographs:
    """Lists and reads all images of a folder.

    Args:
        folder: of a folder per class; or of train/, validation/ and perhaps test/ with
            them. Without test/, the validation images are tested, too.

    Raises:
        UsageError: it is no such folder, or has one class.
        DataError: it has no images, or a class has none or too few to be divided.
    """
    if not tf.io.gfile.isdir(folder):
        raise UsageError(f"`Photos` is {folder!r}, but there is no such folder.")
    notes: list[str] = []
    if tf.io.gfile.isdir(f"{folder}/train"):
        found, names = _list_parts(folder, notes.append)
    else:
        listed = image_sources.list_image_folder(folder, log=notes.append)
        names = image_sources.list_class_names(listed)
        found = {"": listed}
    if len(names) < 2:
        raise UsageError(
            f"`Photos` is {folder!r}, which holds one class only, {names[0]!r}; a network needs"
            " two at least, with a folder each."
        )
    seen = {part: _see(sources, notes) for part, sources in found.items()}
    whole = {
        part: [source for source in sources if source in seen[part]]
        for part, sources in found.items()
    }
    readable = {source.label for source in whole.get("", whole.get("train", []))}
    lost = [name for label, name in enumerate(names) if label not in readable]
    if lost:
        raise DataError(f"{folder!r} has classes without a readable image: {list_names(lost)}.")
    if "" in whole:
        whole = image_sources.divide(_group_near(whole[""], seen[""]), FRACTIONS)
    elif "test" not in whole:
        notes.append("no test/: the validation images are tested, which choose nothing here")
        whole["test"], seen["test"] = whole["validation"], seen["validation"]
    of_all = {source: one for part in seen.values() for source, one in part.items()}
    _note_classes(whole, of_all, names, notes)
    digest = hashlib.sha256()
    for part in PARTS:
        for source in sorted(whole[part], key=lambda source: (source.synset, source.name)):
            row = f"{part}/{source.synset}/{source.name} {of_all[source].digest}\n"
            digest.update(row.encode())
    smallest = min(one.shortest_side for one in of_all.values())
    return Photographs(whole, names, smallest, notes, digest.hexdigest())


def _list_parts(folder: str, log: Callable[[str], None]):
    train = image_sources.list_image_folder(f"{folder}/train", log=log)
    names = image_sources.list_class_names(train)
    found = {"train": train}
    for part in ("validation", "test"):
        if tf.io.gfile.isdir(f"{folder}/{part}"):
            found[part] = image_sources.list_image_folder(f"{folder}/{part}", names, log=log)
    if "validation" not in found:
        raise UsageError(
            f"`Photos` is {folder!r}, which holds train/ but no validation/. Add it; or give a"
            " folder with a folder per class, which is divided here."
        )
    return found, names


def _see(sources: Sequence[ImageSource], notes: list[str]) -> dict[ImageSource, _Seen]:
    """Reads the images; leaves out, and notes, those that cannot be read."""

    def see(source: ImageSource):
        contents = source.read()
        try:
            with Image.open(io.BytesIO(contents)) as image:
                shortest = min(image.size)
                image.draft("RGB", (_DRAFT,) * 2)  # faster, of large JPEGs
                small = image.convert("RGB").resize((_THUMBNAIL,) * 2, Image.Resampling.BOX)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{source.synset}/{source.name} ({error})"
        digest = hashlib.sha256(contents).hexdigest()
        return _Seen(digest, np.asarray(small, np.float32).ravel(), shortest)

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(see, sources))
    damaged = [one for one in found if isinstance(one, str)]
    if damaged:
        notes.append(f"{len(damaged)} images cannot be read, and are left out: {damaged[0]}")
        if len(damaged) > 1:
            notes[-1] += f" and {len(damaged) - 1} more"
    return {source: one for source, one in zip(sources, found) if isinstance(one, _Seen)}


def _group_near(sources: Sequence[ImageSource], seen: Mapping[ImageSource, _Seen]):
    """Returns near-identical images of a class together, by its name and the smallest digest."""
    thumbnails = np.stack([seen[source].thumbnail for source in sources])
    # Near thumbnails have near means of quarters, of which few others have.
    quarters = thumbnails.reshape(-1, 2, _THUMBNAIL // 2, 2, _THUMBNAIL // 2, 3).mean(axis=(2, 4))
    pairs = cKDTree(quarters.reshape(len(sources), -1)).query_pairs(
        _FARTHEST, p=np.inf, output_type="ndarray"
    )
    limits = np.minimum(_NEAR + _NEAR_BY_CONTRAST * thumbnails.std(axis=1), _FARTHEST)
    head = np.arange(len(sources))

    def root(index):
        while head[index] != index:
            head[index] = index = head[head[index]]
        return index

    for one, other in pairs:
        difference = np.abs(thumbnails[one] - thumbnails[other]).max()
        is_near = difference <= min(limits[one], limits[other])
        if is_near and sources[one].label == sources[other].label:
            head[root(one)] = root(other)
    groups = collections.defaultdict(list)
    for index, source in enumerate(sources):
        groups[root(index)].append(source)
    return {
        (group[0].synset, min(seen[source].digest for source in group)): group
        for group in groups.values()
    }


def _note_classes(parts, seen, names: Sequence[str], notes: list[str]) -> None:
    counts = collections.Counter(source.label for source in parts["train"])
    few = [
        f"{name} ({counts[label]})"
        for label, name in enumerate(names)
        if counts[label] < FEW_IMAGES
    ]
    if few:
        notes.append(f"fewer than {FEW_IMAGES} training images: {list_names(few)}")
    if max(counts.values()) > _IMBALANCE * min(counts.values()):
        notes.append(
            f"the classes are unequal: {min(counts.values())} to {max(counts.values())} training"
            " images; the report has each class by itself"
        )
    classes = collections.defaultdict(set)
    for source, one in seen.items():
        classes[one.digest].add(source.synset)
    double = sum(len(own) > 1 for own in classes.values())
    if double:
        notes.append(f"{double} files stand in more than one class")
