"""Folders of images by class: `<directory>/<class>/<image>`.

    folder = ImageFolder(directory, num_classes=1000)
    folder.paths, folder.labels

The classes are the sub-folders in sorted order, which for ImageNet's (named by WordNet id) is the official order of the labels.
A folder with only some of ImageNet's ids (Imagenette, ImageNet-A, …) keeps the labels of the full set.
"""

import os
import pathlib
import re
from typing import Mapping, Optional

import tensorflow as tf

from efficientnet_advprop.data.labeled_images import IMAGE_SUFFIXES, is_image
from efficientnet_advprop.data.records import DataError

_WORDNET_ID = re.compile(r"n\d{8}")
# As in the package tensorflow-datasets (imagenet2012/labels.txt, Apache-2.0), whose order is the official one.
_WORDNET_IDS_FILE = pathlib.Path(__file__).with_name("imagenet_wnids.txt")


def imagenet_ids() -> list[str]:
    """The WordNet ids of ImageNet's 1000 classes, in the order of the labels."""
    return _WORDNET_IDS_FILE.read_text().split()


def label_folders(folders: list[str], where: str, num_classes: int) -> dict[str, int]:
    """Which label each class folder stands for: its number, its place among as many folders as classes, or its WordNet id's.

    Args:
        folders: their names, sorted.
        where: what holds them, for messages.
        num_classes: of the network.

    Raises:
        DataError: there is no telling.
    """
    if set(folders) == set(map(str, range(num_classes))):
        return {
            name: int(name) for name in folders
        }  # as in ImageNet-V2; sorted as text, "10" would come before "2"
    if len(folders) == num_classes:
        return {name: label for label, name in enumerate(folders)}
    if num_classes == 1000 and folders and all(map(_WORDNET_ID.fullmatch, folders)):
        labels = {name: label for label, name in enumerate(imagenet_ids())}
        require_known(folders, labels, where, "none of ImageNet's 1000 classes")
        return labels
    raise DataError(
        f"{where!r} holds {len(folders)} folders, but the network has {num_classes} classes; there must be one for each, or "
        "for some of ImageNet's, named by their WordNet ids."
    )


def require_known(folders: list[str], labels: Mapping[str, int], where: str, what: str) -> None:
    """Raises a `DataError` that names the folders that are not in `labels`."""
    unknown = [name for name in folders if name not in labels]
    if unknown:
        shown = ", ".join(unknown[:5]) + (
            f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        )
        raise DataError(
            f"{where!r} holds {shown}, which {'is' if len(unknown) == 1 else 'are'} {what}."
        )


class ImageFolder:
    """The images below a folder with one sub-folder per class.

    Args:
        directory: local or gs://.
        num_classes: of the network.
        labels: name of a sub-folder → its label, for those that there may be; None: see `label_folders`.
        what: what an unknown sub-folder is, for the message.

    Attributes:
        paths, labels: of the images, by class and name.
        folders: the sub-folders, sorted.

    Raises:
        DataError: there are no such folders or images, or there is no telling which folder is which class.
    """

    def __init__(
        self,
        directory: str,
        num_classes: int,
        labels: Optional[Mapping[str, int]] = None,
        what: str = "none of the classes",
    ):
        if not tf.io.gfile.isdir(directory):
            raise DataError(f"{directory!r} is no folder.")
        self.folders = list_folders(directory)
        if labels is None:
            labels = label_folders(self.folders, directory, num_classes)
        require_known(self.folders, labels, directory, what)
        self.directory, self.paths, self.labels = directory, [], []
        for folder in self.folders:
            names = sorted(tf.io.gfile.listdir(os.path.join(directory, folder)))
            found = [os.path.join(directory, folder, name) for name in names if is_image(name)]
            self.paths += found
            self.labels += [labels[folder]] * len(found)
        if not self.paths:
            raise DataError(
                f"the folders in {directory!r} hold no image ({', '.join(IMAGE_SUFFIXES)}); there must be one folder per class."
            )


def list_folders(directory: str) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    if "://" not in directory:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
    names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    return [
        name
        for name in names
        if not name.startswith(".") and tf.io.gfile.isdir(os.path.join(directory, name))
    ]
