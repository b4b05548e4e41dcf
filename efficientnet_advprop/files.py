"""Files that are there whole or not at all, and durations in words.

    write_atomically("gs://bucket/run/config.json", text.encode())
    format_duration(725)                                          # "12 min 05 s"

TensorFlow, which reads and writes remote file systems, is imported only when a file is touched:
the config and the flags stand on this module and start without it.
"""

import os
import re
import uuid
from typing import Sequence


def temporary_path(path: str) -> str:
    """Where a file is written before it gets its name: in the same folder, so that it can be renamed."""
    return f"{path}.{uuid.uuid4().hex}.tmp"


def remove_temporaries(paths: Sequence[str]) -> None:
    """Removes what killed processes have left half-written under these names, all in one folder."""
    import tensorflow as tf

    folder = os.path.dirname(paths[0])
    names = {os.path.basename(path) for path in paths}
    for name in tf.io.gfile.listdir(folder):
        if re.sub(r"\.[0-9a-f]{32}\.tmp$", "", name) in names - {name}:
            tf.io.gfile.remove(os.path.join(folder, name))


def write_atomically(path: str, contents: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    import tensorflow as tf

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
    """A duration as "42 s", "12 min 05 s" or "3 h 07 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
