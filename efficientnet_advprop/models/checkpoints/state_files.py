"""Which checkpoints a folder holds, newest first: by TensorFlow's state file and by
what is there.

    held = list_checkpoints("runs/b3/checkpoints")
    held.prefixes                       # ("…/ckpt-400", "…/ckpt-200"), as far as one can tell
    held.problem                        # "", or why the file `checkpoint` does not say so

TensorFlow keeps the order in a small text file, `checkpoint`, beside the checkpoints.
It can be lost, emptied, written over, or copied from elsewhere, and the checkpoints are
as good as before. So "no state that can be read" is never taken for "no checkpoint".
"""

import dataclasses
import os
import posixpath
import re

import tensorflow as tf
from google.protobuf import text_format

from efficientnet_advprop.runtime.files import list_folder

STATE_FILE = "checkpoint"


@dataclasses.dataclass(frozen=True)
class HeldCheckpoints:
    """What `list_checkpoints` finds.

    Args:
        prefixes: of the checkpoints that are there, newest first: in the order of the
            state file, then those that it does not list, by the number at the end of
            their names.
        named: the last part of the path that the state file names as the newest; "" if
            it does not.
        problem: why the state file cannot be used, in words; "" if it can, or if there
            is neither one nor a checkpoint.
    """

    prefixes: tuple[str, ...]
    named: str
    problem: str

    @property
    def is_named_there(self) -> bool:
        """Whether the checkpoint that the state file names is there."""
        return self.named in map(posixpath.basename, self.prefixes)


def list_checkpoints(directory: str) -> HeldCheckpoints:
    """Looks at a folder, local or remote. One that does not exist holds nothing.

    Raises:
        OSError, tf.errors.OpError: the folder cannot be listed.
    """
    entries = list_folder(directory) if tf.io.gfile.isdir(directory) else []
    there = {name.removesuffix(".index") for name in entries if name.endswith(".index")}
    listed, named, problem = [], "", ""
    if STATE_FILE in entries:
        listed, named, problem = _read_state_file(os.path.join(directory, STATE_FILE))
    elif there:
        problem = "there is none"
    if not problem and named and named not in there:
        problem = f"it names {named!r}, which is not there"
    in_order = [name for name in reversed(listed) if name in there]
    others = sorted(there.difference(in_order), key=_number, reverse=True)
    prefixes = tuple(os.path.join(directory, name) for name in (*in_order, *others))
    return HeldCheckpoints(prefixes, named, problem)


def _read_state_file(path: str) -> tuple[list[str], str, str]:
    """The names that it lists, oldest first; the newest one's; and what is wrong with
    the file.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            contents = file.read()
    except tf.errors.OpError as error:
        return [], "", f"it cannot be read ({type(error).__name__})"
    if not contents.strip():
        return [], "", "it is empty"
    is_utf16 = contents.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = contents.decode("utf-16" if is_utf16 else "utf-8-sig")
        state = tf.compat.v1.train.generate_checkpoint_state_proto("/", "/")
        state.Clear()
        text_format.Parse(text, state, allow_unknown_field=True)
    except (UnicodeDecodeError, text_format.ParseError):
        return [], "", "it is not a state file of TensorFlow's"
    # Folders are copied and moved: of a path only the last part still counts.
    listed = [posixpath.basename(name) for name in state.all_model_checkpoint_paths]
    named = posixpath.basename(state.model_checkpoint_path)
    if not named:
        return listed, "", "it names no checkpoint"
    if named in listed:
        listed.remove(named)
    # TensorFlow, which reads the file as well, knows UTF-8 without a mark only.
    is_utf8 = not contents.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf"))
    problem = "" if is_utf8 else "it is not plain UTF-8, as TensorFlow writes and reads it"
    return [*listed, named], named, problem


def _number(name: str) -> tuple[int, str]:
    """For the order of training: "ckpt-200" comes before "ckpt-1000"."""
    number = re.search(r"(\d+)$", name)
    return int(number[1]) if number else -1, name


def write_state_file(directory: str, prefixes: tuple[str, ...]) -> None:
    """Writes the state file that lists these checkpoints of the folder, newest first."""
    names = [posixpath.basename(prefix) for prefix in reversed(prefixes)]
    tf.compat.v1.train.update_checkpoint_state(directory, names[-1], names)
