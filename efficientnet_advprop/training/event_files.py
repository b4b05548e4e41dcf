"""TensorBoard's event files of a run that goes on: what a dead process wrote after its
last checkpoint is dropped.

    drop_later_events("runs/b3/summaries", last_step=400)

A run that is started again repeats those steps; without this its curves would show them
twice.
"""

import os

import tensorflow as tf
from absl import logging

from efficientnet_advprop.runtime.files import list_folder, temporary_path
from tpu_utils.errors import brief_message

_MARK = ".tfevents."


def drop_later_events(directory: str, last_step: int) -> None:
    """Rewrites those event files of a folder, local or remote, that hold events of
    later steps.

    A file that a dying process left unfinished keeps its whole events. One without any
    event but its header is removed. A file that cannot be rewritten stays, with a
    warning.
    """
    if not tf.io.gfile.isdir(directory):
        return
    for name in list_folder(directory):
        path = os.path.join(directory, name)
        if _MARK not in name or name.endswith(".tmp"):
            continue
        try:
            _drop_from(path, last_step)
        except (tf.errors.OpError, OSError) as error:
            logging.warning("%s still shows later steps: %s", path, brief_message(error))


def _drop_from(path: str, last_step: int) -> None:
    kept, num_dropped, num_kept_summaries = [], 0, 0
    for row in _whole_rows(path):
        event = tf.compat.v1.Event.FromString(row)
        if event.step > last_step:
            num_dropped += 1
            continue
        kept.append(row)
        num_kept_summaries += event.HasField("summary")
    if not num_dropped:
        return
    if not num_kept_summaries:
        tf.io.gfile.remove(path)
        return
    temporary = temporary_path(path)
    with tf.io.TFRecordWriter(temporary) as writer:
        for row in kept:
            writer.write(row)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def _whole_rows(path: str) -> list[bytes]:
    rows = []
    try:
        for row in tf.data.TFRecordDataset(path).as_numpy_iterator():
            rows.append(row)
    except tf.errors.DataLossError:
        pass  # killed while it was writing this one
    return rows
