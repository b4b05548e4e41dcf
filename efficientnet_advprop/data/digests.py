"""What tells one set of images from every other: a SHA-256 of names, labels and contents.

    digest_rows([("cat/1.png", 0), ("dog/1.png", 1)])
    digest_images([Located("cat/1.png", 0, "/data/cat/1.png")])

`prepare`, `train`, `evaluate` and the built-in data sets compare these, never counts or
sizes alone: an image repaired in place or moved to another class keeps both. Image files
are told apart by size and time of change, since reading 50,000 of them would take as long
as their evaluation; records by the checksums that TFRecord files hold anyway
(`records.Split.digest`), so that a copy of them counts as the same.
"""

import concurrent.futures
import hashlib
import json
import os
from typing import Iterable, NamedTuple, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import DataError

_READERS = 32


class Located(NamedTuple):
    """An image and where its bytes are: a file, or `size` bytes of it from `offset` on."""

    name: str
    label: int
    path: str
    offset: Optional[int] = None
    size: int = 0


def file_state(path: str) -> tuple[int, str]:
    """Returns a file's size in bytes and a text that changes whenever it is written."""
    if files.is_remote(path):
        remote = tf.io.gfile.stat(path)
        return remote.length, str(remote.mtime_nsec)
    local = os.stat(path)
    return local.st_size, str(local.st_mtime_ns)


def digest_rows(rows: Iterable[Sequence]) -> str:
    """Returns the SHA-256 of rows of numbers and texts, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()


def file_states(paths: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Returns the `file_state` of each file.

    Raises:
        DataError: one is not there.
    """
    paths = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        try:
            return dict(zip(paths, pool.map(file_state, paths)))
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"an image cannot be read: {error}") from error


def digest_images(images: Sequence[Located]) -> str:
    """Returns the SHA-256 of images' names, labels, and the sizes and times of their files.

    Raises:
        DataError: a file is not there.
    """
    states = file_states(image.path for image in images)
    return digest_rows(
        (image.name, image.label, image.offset, image.size, *states[image.path]) for image in images
    )
