"""Versioned directories, as TensorFlow Serving wants them: `<export_dir>/1`, `/2`, …,
each there as a whole or not at all.

    with new_version(export_dir, num_bytes) as version:
        # write into version.staging; an exception in here leaves nothing behind
        ...
    print(version.path)
"""

import contextlib
import os
import re
import shutil
import tempfile
from typing import Iterator

import tensorflow as tf

from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import RunError, brief_message

_STAGING_PREFIX = "unfinished-"  # no number, so TensorFlow Serving does not look at it


class Version:
    """A version in the making: `staging` is a local folder to write into, `path` where
    its contents have gone; set in the end, since another export may have been faster.
    """

    def __init__(self, staging: str):
        self.staging, self.path = staging, ""


def next_version(export_dir: str) -> int:
    """Returns one more than the highest version in `export_dir`; 1 if there is none."""
    names = files.list_folder(export_dir) if tf.io.gfile.isdir(export_dir) else []
    return max((int(name) for name in names if re.fullmatch("[0-9]+", name)), default=0) + 1


@contextlib.contextmanager
def new_version(export_dir: str, num_bytes: int) -> Iterator[Version]:
    """Makes room for the next free version of some `num_bytes` in `export_dir`, local or
    remote, and moves it into place if the block ends without an exception.

    Raises a `RunError` if `export_dir` is a file or cannot be written, or there is no space.
    """
    is_remote = files.is_remote(export_dir)
    try:
        if tf.io.gfile.exists(export_dir) and not tf.io.gfile.isdir(export_dir):
            raise RunError(
                f"`export_dir` is {export_dir!r}, which is a file; give a directory, which may"
                " exist."
            )
        is_new = not tf.io.gfile.exists(export_dir)
        tf.io.gfile.makedirs(export_dir)
        staging = tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=None if is_remote else export_dir)
    except (OSError, tf.errors.OpError) as error:
        raise _cannot_write(export_dir, error) from error
    version = Version(staging)
    try:
        free = shutil.disk_usage(staging).free
        if free < num_bytes:
            raise RunError(
                f"`export_dir` is {export_dir!r}, where {free / 1e6:.0f} MB are free, but"
                f" {num_bytes / 1e6:.0f} MB are needed; make room or give another directory."
            )
        yield version
        os.chmod(staging, 0o755)  # mkdtemp lets only its owner in; the server may be another user
        version.path = _publish(staging, export_dir, is_remote)
    except (OSError, tf.errors.OpError) as error:
        raise _cannot_write(export_dir, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not is_remote and not version.path:
            with contextlib.suppress(OSError):
                os.rmdir(export_dir)  # only if empty


def _publish(staging: str, export_dir: str, is_remote: bool) -> str:
    while True:
        path = os.path.join(export_dir, str(next_version(export_dir)))
        if is_remote:
            _upload(staging, path)
            return path
        try:
            os.rename(staging, path)
            return path
        except OSError:
            if not os.path.exists(path):
                raise  # otherwise another export has just taken this number


def _upload(staging: str, path: str) -> None:
    """Copies a tree; `saved_model.pb`, by which a server knows a version, comes last."""
    tree = os.walk(staging)
    written = [os.path.join(folder, name) for folder, _, names in tree for name in names]
    for file in sorted(written, key=lambda file: (file.endswith("saved_model.pb"), file)):
        target = os.path.join(path, os.path.relpath(file, staging))
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(file, target)


def _cannot_write(export_dir: str, error: BaseException) -> RunError:
    return RunError(
        f"`export_dir` is {export_dir!r}, where the export cannot be written:"
        f" {brief_message(error)}. Nothing was left behind."
    )
