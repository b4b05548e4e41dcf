"""Folders of images by class: `<directory>/<class>/<image>`.

    images = label_folder(directory, num_classes=1000)           # for a network
    names_by_folder, skipped = read_image_tree(directory)        # for a new data set

Which number a class has, `class_numbers` says. What is not read, such as images beside
the class folders or files of other kinds, is counted and named in `skipped`.
"""

import os
from typing import Iterable, Mapping, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.data.image_formats import IMAGE_SUFFIXES, is_hidden, is_image
from efficientnet_advprop.images.class_numbers import match_classes, require_known
from efficientnet_advprop.images.labeled_images import FileImages
from efficientnet_advprop.runtime.errors import DataError, list_names
from efficientnet_advprop.runtime.files import is_remote, printable

_SUFFIXES = ", ".join(IMAGE_SUFFIXES)
_BESIDE = "beside the class folders"
_BELOW = "in folders below the class folders"
_HIDDEN = "hidden (the name begins with a dot)"
_OTHER_KIND = f"of other kinds than {_SUFFIXES}"
_NO_FILE = "no files, but broken links or the like"


class Skipped:
    """What a reader of folders does not read: how many, why, and which for instance."""

    _NUM_EXAMPLES = 5

    def __init__(self):
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one; `name` is its path from the directory that is read."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < self._NUM_EXAMPLES:
            examples.append(printable(name))

    def describe(self) -> list[str]:
        """Returns a line for each reason: "passed over: 3 beside the class folders: a.jpg, …"."""
        lines = []
        for reason, count in self._counts.items():
            shown = self._examples[reason]
            more = ", …" if count > len(shown) else ""
            lines.append(f"passed over: {count:,} {reason}: {', '.join(shown)}{more}")
        return lines


def read_image_tree(
    directory: str, *, allow_empty: bool = False
) -> tuple[dict[str, list[str]], Skipped]:
    """Looks through a folder with one sub-folder per class; hidden folders are no classes.

    With `allow_empty`, class folders may be without images.

    Returns:
        Class folder → the names of its images, all sorted; and everything else.
    """
    if not tf.io.gfile.isdir(directory):
        raise DataError(f"{directory!r} is no folder.")
    skipped, images = Skipped(), {}
    folders, files, _ = _list(directory)
    for name in files:
        skipped.add(_HIDDEN if is_hidden(name) else _BESIDE, name)
    for folder in folders:
        if is_hidden(folder):
            skipped.add(_HIDDEN, f"{folder}/")
        else:
            images[folder] = _read_class(directory, folder, skipped)
    paths = (f"{folder}/{name}" for folder, names in images.items() for name in names)
    _require_text((*images, *paths), directory)
    hint = "".join(f" ({line}.)" for line in skipped.describe())
    if not any(images.values()):
        raise DataError(
            f"the folders in {directory!r} hold no image ({_SUFFIXES}); there must be one folder "
            f"per class with images in it.{hint}"
        )
    empty = [folder for folder, names in images.items() if not names]
    if empty and not allow_empty:
        raise DataError(
            f"{directory!r} has {len(empty)} of {len(images)} class folders without an image "
            f"({_SUFFIXES}): {list_names(empty)}. Put images into them, or remove them.{hint}"
        )
    return images, skipped


def _require_text(names: Iterable[str], directory: str) -> None:
    unnamed = [printable(name) for name in names if not _is_text(name)]
    if unnamed:
        raise DataError(
            f"{directory!r} holds {len(unnamed)} names that are no text in UTF-8: "
            f"{list_names(unnamed)}; rename them."
        )


def _is_text(name: str) -> bool:
    return name.isascii() or printable(name) == name


def _read_class(directory: str, folder: str, skipped: Skipped) -> list[str]:
    """Returns the names of a class's images, sorted."""
    images = []
    folders, files, others = _list(os.path.join(directory, folder))
    for name in files:
        if is_hidden(name):
            skipped.add(_HIDDEN, f"{folder}/{name}")
        elif not is_image(name):
            skipped.add(_OTHER_KIND, f"{folder}/{name}")
        elif name in others:
            skipped.add(_NO_FILE, f"{folder}/{name}")
        else:
            images.append(name)
    for name in folders:
        if is_hidden(name):
            skipped.add(_HIDDEN, f"{folder}/{name}/")
            continue
        for path in _files_below(os.path.join(directory, folder, name)):
            skipped.add(_HIDDEN if is_hidden(path) else _BELOW, f"{folder}/{name}/{path}")
    return images


def _files_below(directory: str) -> Iterable[str]:
    """Yields the paths of all files below a folder, from it; hidden folders and links are
    not entered.
    """
    folders, files, _ = _list(directory)
    yield from files
    for folder in folders:
        path = os.path.join(directory, folder)
        if not is_hidden(folder) and (is_remote(path) or not os.path.islink(path)):
            yield from (f"{folder}/{name}" for name in _files_below(path))


def _list(directory: str) -> tuple[list[str], list[str], frozenset[str]]:
    """Returns the folders and the files in a folder, sorted, and which of these are none, but
    broken links or the like.
    """
    folders, files, others = [], [], []
    if not is_remote(directory):
        with os.scandir(directory) as entries:
            for entry in entries:
                is_folder = entry.is_dir()
                (folders if is_folder else files).append(entry.name)
                if not is_folder and not entry.is_file():
                    others.append(entry.name)
        return sorted(folders), sorted(files), frozenset(others)
    for name in filter(None, tf.io.gfile.listdir(directory)):  # "": the folder's own placeholder
        # Remote file systems mark folders by a slash; those that do not must be asked,
        # a request for each name, which is spared for what looks like an image.
        is_folder = name.endswith("/") or (
            not is_image(name) and tf.io.gfile.isdir(os.path.join(directory, name))
        )
        (folders if is_folder else files).append(name.rstrip("/"))
    return sorted(folders), sorted(files), frozenset()


def list_folders(directory: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    return [name for name in _list(directory)[0] if not is_hidden(name)]


def list_images(directory: str) -> list[str]:
    """Returns the paths of the images that lie in a folder itself, sorted by name; hidden
    ones do not count.
    """
    names = [name for name in _list(directory)[1] if is_image(name)]
    _require_text(names, directory)
    return [os.path.join(directory, name) for name in names]


def label_folder(
    directory: str,
    num_classes: int,
    labels: Optional[Mapping[str, int]] = None,
    what: str = "none of the classes",
    *,
    class_names: Optional[Sequence[str]] = None,
    allow_empty: bool = False,
) -> FileImages:
    """Returns the images below a folder with one sub-folder per class, by class and name,
    labelled for a network.

    Args:
        directory: local or gs://.
        num_classes: of the network.
        labels: name of a sub-folder → its label, for those that there may be; None: see
            `class_numbers.match_classes`.
        what: what an unknown sub-folder is, for the message.
        class_names: of the network, by label; None: not known.
        allow_empty: see `read_image_tree`.
    """
    images, skipped = read_image_tree(directory, allow_empty=allow_empty)
    if labels is None:
        labels = match_classes(list(images), directory, num_classes, class_names)
    require_known(list(images), labels, directory, what)
    paths = [os.path.join(directory, folder, name) for folder in images for name in images[folder]]
    own_labels = [labels[folder] for folder in images for _ in images[folder]]
    return FileImages(paths, own_labels, directory, skipped.describe())
