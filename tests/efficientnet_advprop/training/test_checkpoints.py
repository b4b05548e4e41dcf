"""Saving and restoring, with what can go wrong: damaged files, full disks, values that
are not finite.
"""

import dataclasses
import os
import pathlib
import resource

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    default_checkpoint,
    load_averaged_model,
    read_config,
)


class State(tf.Module):
    """Stands in for a `TrainState`: a step and 400 kB of weights."""

    def __init__(self):
        super().__init__()
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64, name="global_step")
        self.weights = tf.Variable(tf.zeros([100_000]), name="weights")

    def train(self, num_steps=1):
        self.step.assign_add(num_steps)
        self.weights.assign(tf.fill([100_000], float(self.step.numpy())))


def saved_run(model_dir, num_checkpoints=3):
    state = State()
    saved = Checkpoints(str(model_dir), state, keep_last=3)
    for _ in range(num_checkpoints):
        state.train()
        saved.save()
    saved.wait()
    return state, saved


def restored(model_dir):
    state = State()
    path = Checkpoints(str(model_dir), state, keep_last=3).restore()
    assert (state.weights.numpy() == state.step.numpy()).all()
    return path, int(state.step.numpy())


def steps_in(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("ckpt-*.index"))


def test_nothing_to_restore(tmp_path):
    assert restored(tmp_path) == (None, 0)


def test_a_path_that_looks_like_a_pattern(tmp_path):
    saved_run(tmp_path / "run [1] *?", 2)
    path, step = restored(tmp_path / "run [1] *?")
    assert step == 2 and path == str(tmp_path / "run [1] *?" / "checkpoints" / "ckpt-2")


def test_the_last_ones_are_kept(tmp_path):
    saved_run(tmp_path, 5)
    assert steps_in(tmp_path / "checkpoints") == [3, 4, 5] and restored(tmp_path)[1] == 5


def test_the_directory_may_move(tmp_path):
    saved_run(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert restored(tmp_path / "there")[1] == 3


def damage(how, folder):
    data, index = folder / "ckpt-3.data-00000-of-00001", folder / "ckpt-3.index"
    if how == "data cut off":
        data.write_bytes(data.read_bytes()[:1000])
    elif how == "data flipped":
        content = bytearray(data.read_bytes())
        content[200_000] ^= 255
        data.write_bytes(content)
    elif how == "data missing":
        data.unlink()
    elif how == "index missing":
        index.unlink()
    elif how == "index cut off":
        index.write_bytes(index.read_bytes()[:-10])


@pytest.mark.parametrize(
    "how", ["data cut off", "data flipped", "data missing", "index missing", "index cut off"]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, how):
    saved_run(tmp_path)
    damage(how, tmp_path / "checkpoints")
    assert restored(tmp_path)[1] == 2


def test_what_a_dying_process_leaves_behind(tmp_path):
    saved_run(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "ckpt-4_temp").mkdir()
    (folder / "ckpt-4_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (folder / "ckpt-4.data-00000-of-00001").write_bytes(b"no index yet")
    assert restored(tmp_path)[1] == 3
    state = State()
    saved = Checkpoints(str(tmp_path), state, keep_last=3)
    saved.restore()
    state.train()
    saved.save()
    saved.wait()
    assert restored(tmp_path)[1] == 4


def test_none_is_readable(tmp_path):
    saved_run(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.data*"):
        path.write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint can be read.*ckpt-3 .*ckpt-1 .*empty --model_dir",
    ):
        restored(tmp_path)


def test_checkpoint_of_another_network(tmp_path):
    saved_run(tmp_path)
    state = State()
    state.weights = tf.Variable(tf.zeros([7]), name="weights")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        Checkpoints(str(tmp_path), state, keep_last=3).restore()


def test_a_full_disk(tmp_path):
    state, saved = saved_run(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    state.train()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100_000, limits[1])
    )  # of each file; what a full disk does to one, too
    try:
        with pytest.raises(CheckpointError) as error:
            saved.save()
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(error.value)
    assert (
        message.startswith("the checkpoint of step 4 could not be written into")
        and "\n" not in message
    )
    assert "the earlier ones are intact" in message and "Make room" in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
    saved.save()
    saved.wait()
    assert restored(tmp_path)[1] == 4


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    state, saved = saved_run(tmp_path)
    state.train()
    state.weights.assign(tf.concat([state.weights[1:], [np.nan]], 0))
    with pytest.raises(
        CheckpointError, match="the state of step 4 is not saved, because 'weights' .*intact"
    ):
        saved.save()
        saved.wait()
    assert restored(tmp_path)[1] == 3


def test_the_best_one(tmp_path):
    state, saved = saved_run(tmp_path, 1)
    assert saved.best_accuracy is None and saved.save_if_best(0.5)
    saved.wait()
    state.train()
    assert not saved.save_if_best(0.25) and not saved.save_if_best(0.5)
    assert steps_in(tmp_path / "best") == [1]
    saved.save()
    saved.wait()
    again = Checkpoints(str(tmp_path), State(), keep_last=3)
    again.restore()
    assert again.best_accuracy == 0.5
    state.train()
    assert saved.save_if_best(0.75)
    saved.wait()
    assert steps_in(tmp_path / "best") == [3]


def test_another_worker_leaves_the_writing_to_the_first(tmp_path):
    saved = Checkpoints(str(tmp_path), State(), keep_last=3, writes=False)
    saved.save()
    assert saved.save_if_best(0.5) and not saved.save_if_best(0.4)
    saved.wait()
    assert os.listdir(tmp_path) == []


def test_the_best_counts_where_it_was_chosen_on_images_held_out():
    config = ExperimentConfig()
    assert default_checkpoint(config) == "last"
    config.data.validation_prefix = "minival"
    assert default_checkpoint(config) == "best"
    config.data = dataclasses.replace(ExperimentConfig().data, holdout_shards=20)
    assert default_checkpoint(config) == "best"


def test_what_is_not_there(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no config.json; give the --model_dir of a training run"
    ):
        read_config(str(tmp_path))
    with pytest.raises(CheckpointError, match="config.json"):
        load_averaged_model(str(tmp_path))
    with pytest.raises(ValueError, match="`which` is 'first'"):
        load_averaged_model(str(tmp_path), which="first")


def test_unwritable_model_dir(tmp_path):
    from efficientnet_advprop.training.run_directory import initialize_run_dir

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="`model_dir` is .*, which cannot be written"):
        initialize_run_dir(str(pathlib.Path(tmp_path, "file", "run")), ExperimentConfig())
