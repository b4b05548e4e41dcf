"""What TensorFlow's state file says, what is there, and what is made of it if the two
disagree.
"""

import pytest
import tensorflow as tf

from efficientnet_advprop.models.checkpoints.state_files import list_checkpoints, write_state_file

STATE = (
    'model_checkpoint_path: "ckpt-200"\nall_model_checkpoint_paths:'
    ' "ckpt-100"\nall_model_checkpoint_paths: "ckpt-200"\n'
)


def folder_with(path, *names, state=None):
    path.mkdir(exist_ok=True)
    for name in names:
        (path / f"{name}.index").touch()
    if state is not None:
        (path / "checkpoint").write_bytes(state)
    return str(path)


def names_in(held):
    return [prefix.rpartition("/")[2] for prefix in held.prefixes]


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        held = list_checkpoints(str(path))
        assert (held.prefixes, held.named, held.problem) == ((), "", "")


def test_the_state_file_says_the_order(tmp_path):
    # As TensorFlow itself writes it.
    folder = folder_with(tmp_path, "ckpt-100", "ckpt-200", "ckpt-30")
    tf.compat.v1.train.update_checkpoint_state(
        folder, f"{folder}/ckpt-30", [f"{folder}/ckpt-200", f"{folder}/ckpt-30"]
    )
    held = list_checkpoints(folder)
    assert names_in(held) == ["ckpt-30", "ckpt-200", "ckpt-100"] and held.named == "ckpt-30"
    assert held.is_named_there and not held.problem


@pytest.mark.parametrize(
    "state, problem",
    [
        (None, "there is none"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\x00\xff\x13 no text", "it is not a state file"),
        (b"some other text", "it is not a state file"),
        (b'all_model_checkpoint_paths: "ckpt-100"', "it names no checkpoint"),
        (b'model_checkpoint_path: "ckpt-300"', "it names 'ckpt-300', which is not there"),
    ],
)
def test_without_a_state_of_use_the_numbers_say_the_order(tmp_path, state, problem):
    folder = folder_with(tmp_path, "ckpt-1000", "ckpt-200", "ckpt-100", state=state)
    held = list_checkpoints(folder)
    assert problem in held.problem and not held.is_named_there
    if state != b'all_model_checkpoint_paths: "ckpt-100"':
        assert names_in(held) == ["ckpt-1000", "ckpt-200", "ckpt-100"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_what_editors_of_other_systems_make_of_it(tmp_path, encoding):
    mark = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}.get(encoding, "")
    folder = folder_with(
        tmp_path, "ckpt-100", "ckpt-200", "ckpt-300", state=(mark + STATE).encode(encoding)
    )
    held = list_checkpoints(folder)
    assert held.named == "ckpt-200" and names_in(held) == ["ckpt-200", "ckpt-100", "ckpt-300"]


def test_a_named_checkpoint_is_missed_where_nothing_is_there(tmp_path):
    held = list_checkpoints(folder_with(tmp_path, state=STATE.encode()))
    assert held.prefixes == () and "'ckpt-200', which is not there" in held.problem


def test_a_written_state_is_one_that_tensorflow_reads(tmp_path):
    folder = folder_with(tmp_path, "ckpt-100", "ckpt-200")
    write_state_file(folder, list_checkpoints(folder).prefixes)
    assert tf.train.latest_checkpoint(folder) == f"{folder}/ckpt-200"
    paths = tf.train.get_checkpoint_state(folder).all_model_checkpoint_paths
    assert list(paths) == [f"{folder}/ckpt-100", f"{folder}/ckpt-200"]
