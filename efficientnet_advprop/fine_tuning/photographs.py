"""Looks through a folder of photographs and divides it into training, validation and test.

photographs = look("Photos")
photographs.parts["test"], photographs.class_names, photographs.notes
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
from typing import Mapping, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError
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
            them. Without validation/, what is missing is taken from the training images;
            without test/ alone, the validation images are tested, too.

    Raises:
        UsageError: it is no such folder, or has one class.
        DataError: it has no images, or a class has none or too few to be divided.
    """
    if not tf.io.gfile.isdir(folder):
        raise UsageError(
            f"`folder` is {folder!r}, which is not there; give one that holds a folder per class."
        )
    notes: list[str] = []
    found, names = image_sources.list_splits(folder, notes.append)
    if len(names) < 2:
        raise UsageError(
            f"`folder` is {folder!r}, which holds one class only, {names[0]!r}; a network needs"
            " two at least, with a folder each."
        )
    seen = _see([source for sources in found.values() for source in sources], notes)
    parts = {part: [one for one in sources if one in seen] for part, sources in found.items()}
    readable = {source.label for source in parts["train"]}
    lost = [name for label, name in enumerate(names) if label not in readable]
    if lost:
        raise DataError(f"{folder!r} has classes without a readable image: {list_names(lost)}.")
    if "validation" not in parts:
        fractions = {part: share for part, share in FRACTIONS.items() if part not in parts}
        parts |= image_sources.divide(_group_near(parts["train"], seen), fractions)
    if "test" not in parts:
        notes.append("no test/: the validation images are tested, which choose nothing here")
        parts["test"] = parts["validation"]
    _note_classes(parts, seen, names, notes)
    digest = hashlib.sha256()
    for part in PARTS:
        for source in sorted(parts[part], key=lambda source: (source.synset, source.name)):
            row = f"{part}/{source.synset}/{source.name} {seen[source].digest}\n"
            digest.update(row.encode())
    smallest = min(one.shortest_side for one in seen.values())
    return Photographs(parts, names, smallest, notes, digest.hexdigest())


def _see(sources: Sequence[ImageSource], notes: list[str]) -> dict[ImageSource, _Seen]:
    """Reads the images; leaves out, and notes, those that cannot be read."""

    def see(source: ImageSource):
        contents = source.read()
        try:
            with Image.open(io.BytesIO(contents)) as image:
                shortest = min(image.size)
                image.draft("RGB", (_DRAFT,) * 2)  # faster, of large JPEGs
                small = image.convert("RGB").resize((_THUMBNAIL,) * 2, Image.Resampling.BOX)
        except UnidentifiedImageError:  # whose words name an object in memory
            return f"{source.synset}/{source.name} (no image inside)"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{source.synset}/{source.name} ({error})"
        digest = hashlib.sha256(contents).hexdigest()
        return _Seen(digest, np.asarray(small, np.float32).ravel(), shortest)

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(see, sources))
    damaged = [one for one in found if isinstance(one, str)]
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        notes.append(f"left out, since they cannot be read: {damaged[0]}{more}")
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
        notes.append(f"in more than one class: {double} images")
