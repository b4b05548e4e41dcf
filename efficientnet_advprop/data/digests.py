"""What tells one set of images from every other: a SHA-256 of names, labels and contents.

    digest_rows([("cat/1.png", 0), ("dog/1.png", 1)])
    digest_files([("/data/cat/1.png", "cat/1.png", 0)])

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
from typing import Iterable, Sequence

import tensorflow as tf

from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import DataError

_READERS = 32


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
        digest.update(json.dumps(list(row), default=int).encode() + b"\n")
    return digest.hexdigest()


def file_states(paths: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Returns the `file_state` of each file."""
    paths = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        try:
            return dict(zip(paths, pool.map(file_state, paths)))
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"an image cannot be read: {error}") from error


def digest_files(rows: Sequence[tuple]) -> str:
    """Returns the SHA-256 of rows in which files stand for their sizes and times.

    Args:
        rows: each a file's path, then what else tells, such as an image's name, label, and
            place in the file.
    """
    states = file_states(path for path, *_ in rows)
    return digest_rows((*facts, *states[path]) for path, *facts in rows)
