"""Class folders to numbers: the one place that does it, for every split and every
reader.

    # ["9", "10"]: of a new data set, by label
    number_classes(["10", "9"], where)
    match_classes(folders, where, num_classes=1000)          # of a network: folder → label

A new data set's classes are numbered in the order of their names; names that are whole
numbers come in the order of the numbers. A network's classes are told by name where the
names are known, otherwise by the same order.
"""

import collections
import functools
import pathlib
import re
import unicodedata
from typing import Iterable, Mapping, Optional, Sequence

from efficientnet_advprop.runtime.errors import DataError, list_names

_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[0-9]+")
# As in the package tensorflow-datasets (imagenet2012/labels.txt, Apache-2.0): the
# official order.
_WORDNET_IDS_FILE = pathlib.Path(__file__).with_name("imagenet_wnids.txt")


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """Returns the WordNet ids of ImageNet's 1000 classes, in the order of the labels."""
    return tuple(_WORDNET_IDS_FILE.read_text().split())


def class_name(folder: str) -> str:
    """Returns the class that a folder of this name stands for."""
    # macOS and Linux may spell the same letter, such as "ä", by different code points.
    return unicodedata.normalize("NFC", folder)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers, and there is one at least."""
    names = list(names)
    return bool(names) and all(map(_NUMBER.fullmatch, names))


def number_classes(folders: Iterable[str], where: str) -> list[str]:
    """Returns the class names of a new data set in the order of their labels."""
    names = [class_name(folder) for folder in folders]
    in_numbers = are_numbers(names)
    keys = [int(name) if in_numbers else name for name in names]
    counts = collections.Counter(keys)
    twice = sorted(name for name, key in zip(names, keys) if counts[key] > 1)
    if twice:
        raise DataError(
            f"{where!r} holds several folders for one class: {list_names(twice)}; make one of them."
        )
    return [name for _, name in sorted(zip(keys, names))]


def match_classes(
    folders: Sequence[str], where: str, num_classes: int, names: Optional[Sequence[str]] = None
) -> dict[str, int]:
    """Returns which label of a network each class folder stands for.

    By the network's class names, if they are known. Otherwise a folder's number if they
    are 0 to `num_classes` − 1; its place among as many folders as classes; or its
    WordNet id, of which there may be fewer. Numbers that begin elsewhere are refused,
    for nobody knows whether 1 is the first class or the second.

    Args:
        folders: names of the class folders.
        where: what holds them, for messages.
        num_classes, names: of the network; names None: not known.
    """
    if not folders:
        raise DataError(f"{where!r} holds no folders; there must be one for each class.")
    in_order = number_classes(folders, where)
    labels = _label_classes(in_order, where, num_classes, names)
    return {folder: labels[class_name(folder)] for folder in folders}


def _label_classes(
    classes: Sequence[str], where: str, num_classes: int, names: Optional[Sequence[str]]
) -> dict[str, int]:
    in_order = {name: label for label, name in enumerate(classes)}
    if names is not None:
        known = [class_name(name) for name in names]
        counts = collections.Counter(known)
        by_name = {name: label for label, name in enumerate(known) if counts[name] == 1}
        if set(classes) <= set(by_name):
            return by_name
    else:
        known = []
    are_ids = all(map(_WORDNET_ID.fullmatch, classes))
    if are_ids and num_classes == 1000 and not any(map(_WORDNET_ID.fullmatch, known)):
        of_imagenet = {name: label for label, name in enumerate(imagenet_ids())}
        require_known(classes, of_imagenet, where, "none of ImageNet's 1000 classes")
        return of_imagenet
    in_numbers = are_numbers(classes)
    is_label = in_numbers and list(map(int, classes)) == list(range(num_classes))
    if names is not None and not (is_label and not are_numbers(known)):
        require_known(classes, by_name, where, f"no class of the network: {list_names(known)}")
    if in_numbers and not is_label:
        raise DataError(
            f"{where!r} holds {len(classes)} folders named by numbers, {classes[0]} to "
            f"{classes[-1]}, but the labels of the network's {num_classes} classes are 0 to "
            f"{num_classes - 1}. Name the folders by all of these, or give the names of the "
            "classes by `--labels_map_file`."
        )
    if len(classes) != num_classes:
        raise DataError(
            f"{where!r} holds {len(classes)} folders, but the network has {num_classes} classes; "
            "there must be one for each, or for some of ImageNet's, named by their WordNet ids."
        )
    return in_order


def require_known(names: Sequence[str], labels: Mapping[str, int], where: str, what: str) -> None:
    """Raises a `DataError` that names the classes that are not in `labels`."""
    unknown = [name for name in names if name not in labels]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        raise DataError(f"{where!r} holds {list_names(unknown)}, which {verb} {what}.")
