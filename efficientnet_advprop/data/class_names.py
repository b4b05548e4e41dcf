"""The names of a data set's classes, in a file beside its records and with every run:
`labels_map.txt`, such as {"0": "cat", "1": "dog"}.

The form is that of the official tool: a JSON object from each label, counted from 0, to
a name. `prepare` writes it, `train` keeps a copy in the run's folder, from which
`evaluate`, `export` and `classify` have it.
"""

import itertools
import json
import os
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.config.tables import BACKGROUND, background_offset
from efficientnet_advprop.runtime.errors import UsageError, brief_message
from efficientnet_advprop.runtime.files import write_atomically

LABELS_MAP = "labels_map.txt"


def write_class_names(directory: str, names: Sequence[str]) -> None:
    """Writes the labels map of a folder, whole or not at all."""
    table = {str(label): name for label, name in enumerate(names)}
    contents = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    write_atomically(os.path.join(directory, LABELS_MAP), contents.encode())


def require_same_names(directory: str, names: Sequence[str], what: str) -> None:
    """Raises a `UsageError` if a folder has a labels map with other names, so that what is
    there (`what`, for the message) and what would follow would not mean the same by a label.
    """
    there = find_class_names(directory)
    if there is None or there == list(names):
        return
    both = itertools.zip_longest(there, names)
    label, (old, new) = next((i, pair) for i, pair in enumerate(both) if pair[0] != pair[1])
    raise UsageError(
        f"{directory!r} holds {what} of {len(there)} classes ({LABELS_MAP}), and now there are "
        f"{len(names)}; the first to differ is class {label}, {old!r} there and {new!r} here. Take "
        "another folder."
    )


def find_class_names(directory: str) -> Optional[list[str]]:
    """Returns the class names of a folder of records or of a run; None if it holds no
    labels map.
    """
    path = os.path.join(directory, LABELS_MAP)
    return read_class_names(path) if tf.io.gfile.exists(path) else None


def read_class_names(path: str, num_classes: Optional[int] = None) -> list[str]:
    """Reads the names of the classes, in the order of their labels, from a labels map.

    Args:
        path: of a JSON object {"0": "tench, Tinca tinca", …} in UTF-8.
        num_classes: of the network; None: as many as the file names. Its background
            class, if it has one, needs no name.
    """
    form = '{"0": "tench, Tinca tinca", "1": …}'
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        pairs = json.loads(text, object_pairs_hook=list)
    except (tf.errors.OpError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the labels map {path!r} must be a JSON object {form}, but {brief_message(error)}."
        ) from error
    # An object comes as a list of tuples, from which a list of lists is told so.
    is_object = isinstance(pairs, list) and pairs and all(isinstance(p, tuple) for p in pairs)
    table = dict(pairs) if is_object else {}
    if not table or not all(isinstance(name, str) for name in table.values()):
        raise UsageError(
            f"the labels map {path!r} must be a JSON object {form}, but it is of another form."
        )
    count = len(table) if num_classes is None else num_classes
    offset = background_offset(count)
    if offset and len(table) == count - offset:
        return [BACKGROUND] * offset + read_class_names(path)
    if len(pairs) > len(table):
        keys = [key for key, _ in pairs]
        twice = next(key for key in table if keys.count(key) > 1)
        raise UsageError(f"the labels map {path!r} names class {twice!r} more than once.")
    if len(table) != count:
        raise UsageError(
            f"the labels map {path!r} has {len(table)} names, but the network has {count} classes. "
            f'Give a file with one name for each, from "0" to "{count - 1}"'
            + (", without a background class." if len(table) == count + 1 else ".")
        )
    labels = list(map(str, range(count)))
    strangers = sorted(set(table) - set(labels))
    if strangers:
        raise UsageError(
            f'the labels map {path!r} names a class {strangers[0]!r}, but labels run from "0" to '
            f'"{count - 1}".'
        )
    return [table[label] for label in labels]
