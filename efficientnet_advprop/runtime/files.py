"""Files and folders, local and remote; durations in words.

TensorFlow, which reads and writes remote file systems, is imported only when a remote file
is touched: the config and the flags stand on this module and start without it.
"""

import functools
import json
import math
import os
import re
import tempfile
import uuid
from typing import Any, Optional, Sequence

from efficientnet_advprop.runtime.errors import UsageError, list_names


def is_remote(path: str) -> bool:
    """Returns whether only TensorFlow reaches `path`: "gs://…", and other addresses."""
    return "://" in path


def exists(path: str) -> bool:
    """Returns whether there is such a file or folder."""
    if not is_remote(path):
        return os.path.exists(path)
    import tensorflow as tf

    return tf.io.gfile.exists(path)


def read_text(path: str) -> str:
    """Returns a UTF-8 file's text; raises an OSError or, of a remote one, a `tf.errors.OpError`."""
    if not is_remote(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    import tensorflow as tf

    with tf.io.gfile.GFile(path) as file:
        return file.read()


def to_json(value: Any, *, indent: Optional[int] = 1) -> str:
    """Returns JSON of the standard, in which NaN and the infinities become null."""
    # `json` writes them as NaN and Infinity, which only Python reads.
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def temporary_path(path: str) -> str:
    """Returns where a file is written before it gets its name: in the same folder."""
    return f"{path}.{uuid.uuid4().hex}.tmp"


def remove_temporaries(paths: Sequence[str]) -> None:
    """Removes what killed processes left half-written under these names, all in one folder."""
    import tensorflow as tf

    folder = os.path.dirname(paths[0])
    names = {os.path.basename(path) for path in paths}
    for name in list_folder(folder):
        if re.sub(r"\.[0-9a-f]{32}\.tmp$", "", name) in names - {name}:
            tf.io.gfile.remove(os.path.join(folder, name))


def list_folder(folder: str) -> list[str]:
    """Returns the sorted names in a folder, "" being the present one; no slash ends a name.

    TensorFlow's own listing fails where one name is no text in UTF-8; here such a name is
    as Python keeps it, and `printable` shows it.
    """
    if not is_remote(folder):
        return sorted(os.listdir(folder or "."))
    import tensorflow as tf

    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))


def printable(name: str) -> str:
    """Returns a file's name as text; a byte that is no UTF-8 becomes, for instance, "\\xe9"."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@functools.cache
def _folder_of_links() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="links_")  # removed when the process ends


def without_pattern(path: str) -> str:
    """Returns a path to the same files that TensorFlow's readers cannot take for a pattern.

    They look for a checkpoint by its prefix *as a pattern*, so that below a folder
    "runs [1]" none is ever found. Such a folder or prefix is replaced by one of links in a
    temporary folder, until the process ends.
    """
    if is_remote(path) or not re.search(r"[*?\[\\]", path):
        return path
    folder, prefix = os.path.split(os.path.abspath(path))
    names = list_folder(folder) if os.path.isdir(folder) else []
    linked = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
    if not linked:
        return path  # whoever reads it will say that it is not there
    stand_in = os.path.join(tempfile.mkdtemp(dir=_folder_of_links().name), "files")
    for name in linked:
        os.symlink(os.path.join(folder, name), stand_in + name[len(prefix) :])
    return stand_in


def require_free(argument: str, folder: str, names: Sequence[str]) -> None:
    """Raises a `UsageError` where something has the names that are to be written in a folder.

    Whoever asks has found nothing in the folder that says it is of this project.
    """
    there = [name for name in names if exists(os.path.join(folder, name))]
    if there:
        raise UsageError(
            f"`{argument}` is {folder!r}, which holds {list_names(there)}, but nothing that says it"
            " is of this project; it would be replaced. Name another folder."
        )


def write_atomically(path: str, contents: bytes) -> None:
    """Writes a file that is there whole or not at all; makes its folder if there is none."""
    import tensorflow as tf

    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    temporary = temporary_path(path)
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(contents)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
        raise


def format_duration(seconds: float) -> str:
    """Returns a duration as "42 s", "12 min 05 s" or "3 h 07 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
