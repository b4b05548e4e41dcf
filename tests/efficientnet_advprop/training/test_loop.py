"""A run from start to end: what it writes, how it stops and goes on, and what it says
when it cannot.
"""

import importlib.util
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.data import pipeline, records
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.models import CheckpointError, load_released_checkpoint
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
from efficientnet_advprop.runtime.errors import RunError
from efficientnet_advprop.training import checkpoints, continuous_evaluation, loop, progress
from tpu_utils.devices.strategy import make_strategy

_spec = importlib.util.spec_from_file_location(
    "tiny_run", pathlib.Path(__file__).parent / "tiny_run.py"
)
tiny_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_run)


def last_checkpoint(model_dir):
    return tf.train.latest_checkpoint(os.path.join(model_dir, "checkpoints"))


def train(config, data_dir, model_dir, strategy=None, log=lambda line: None):
    return loop.train(
        config,
        data_dir=data_dir,
        model_dir=str(model_dir),
        strategy=strategy or make_strategy(),
        log=log,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny_run.write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """(model_dir, what `train` returned, its lines) of an uninterrupted AdvProp run."""
    model_dir, lines = str(tmp_path_factory.mktemp("tiny") / "run"), []
    return model_dir, train(tiny_run.make_config(), data_dir, model_dir, log=lines.append), lines


def test_it_ends_where_it_should(finished):
    model_dir, result, lines = finished
    assert (result.step, result.total_steps) == (6, 6)
    kept = sorted(path.name for path in pathlib.Path(model_dir, "checkpoints").glob("*.index"))
    assert kept == ["ckpt-2.index", "ckpt-4.index", "ckpt-6.index"]
    assert checkpoints.read_config(model_dir) == tiny_run.make_config()
    assert (
        lines[0].startswith("advprop training of efficientnet-b0")
        and "all 6 steps are done" in lines[-1]
    )


def test_reports(finished):
    model_dir, result, lines = finished
    entries = progress.read_metrics(model_dir)
    training = [entry for entry in entries if "clean_loss" in entry]
    evaluations = [entry for entry in entries if "eval_top1" in entry]
    assert [entry["step"] for entry in training] == [3, 6] and [
        entry["step"] for entry in evaluations
    ] == [4, 6]
    # Official staircase with warm-up from 0: at the third update (after 2) 0.016 ·
    # 10/256, past the warm-up of 2 updates.
    assert training[0]["learning_rate"] == pytest.approx(0.016 * 10 / 256)
    assert set(training[1]) > {
        "adversarial_loss",
        "adversarial_accuracy",
        "clean_accuracy",
        "images_per_second",
        "epoch",
    }
    assert {entry["eval_num_images"] for entry in evaluations} == {tiny_run.NUM_VALIDATION}
    assert result.best_accuracy == pytest.approx(max(entry["eval_top1"] for entry in evaluations))
    (events,) = pathlib.Path(model_dir, "summaries").iterdir()
    tags = {
        value.tag
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert {"clean/loss", "adversarial/accuracy", "eval/top1", "run/learning_rate"} < tags
    assert "clean | perturbation x16 | adversarial" in tags


def test_accuracy_is_that_of_the_averaged_weights(finished, data_dir):
    model_dir, *_ = finished
    model = checkpoints.load_averaged_model(model_dir, which="last")
    assert not any("aux" in variable.name for variable in model.variables)
    reader = tf.train.load_checkpoint(last_checkpoint(model_dir))
    averages = [
        name for name in reader.get_variable_to_shape_map() if "ExponentialMovingAverage" in name
    ]
    assert any(
        np.array_equal(shadow, model.variables[0]) for shadow in map(reader.get_tensor, averages)
    )
    config = tiny_run.make_config()
    correct = 0
    split = records.open_split(data_dir, "validation")
    for batch in pipeline.make_eval_dataset(config.data, split, global_batch_size=1):
        correct += int(np.argmax(model(batch["images"])[0]) == int(batch["labels"][0]))
    assert progress.read_metrics(model_dir)[-1]["eval_top1"] == pytest.approx(
        correct / tiny_run.NUM_VALIDATION
    )


def test_started_again_when_done_does_nothing(finished, data_dir):
    model_dir, *_ = finished
    before = tiny_run.saved_values(last_checkpoint(model_dir))
    lines = []
    assert train(tiny_run.make_config(), data_dir, model_dir, log=lines.append).step == 6
    assert (
        "going on from" in lines[0] and tiny_run.saved_values(last_checkpoint(model_dir)) == before
    )


def test_sigterm_saves_and_the_next_start_ends_with_the_same_bits(finished, data_dir, tmp_path):
    def interrupt(line):
        lines.append(line)
        if line.startswith("step 3/6"):
            os.kill(os.getpid(), signal.SIGTERM)

    lines = []
    handler = signal.getsignal(signal.SIGTERM)
    result = train(tiny_run.make_config(), data_dir, tmp_path, log=interrupt)
    assert (result.step, result.total_steps) == (
        3,
        6,
    ) and "stopped by SIGTERM; step 3 of 6 is saved" in lines[-1]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert last_checkpoint(tmp_path).endswith("ckpt-3")
    # Other boundaries than before: they are a matter of operation, not of what is
    # computed.
    config = tiny_run.make_config()
    config.training.steps_per_loop = 1
    assert train(config, data_dir, tmp_path).step == 6
    assert tiny_run.saved_values(last_checkpoint(tmp_path)) == tiny_run.saved_values(
        last_checkpoint(finished[0])
    )
    assert [entry["step"] for entry in progress.read_metrics(str(tmp_path))] == [3, 4, 6, 6]


def test_a_model_dir_of_another_config(finished, data_dir):
    model_dir, *_ = finished
    before = tiny_run.saved_values(last_checkpoint(model_dir))
    config = tiny_run.make_config()
    config.attack.epsilon, config.training.seed, config.training.keep_last = 2.0, 5, 9
    with pytest.raises(ConfigError) as error:
        train(config, data_dir, model_dir)
    assert (
        "`config.attack.epsilon` is 8.0 there and 2.0 here, `config.training.seed` is 0 there and 5"
        " here." in str(error.value)
    )
    assert "keep_last" not in str(error.value)
    assert tiny_run.saved_values(last_checkpoint(model_dir)) == before
    assert checkpoints.read_config(model_dir) == tiny_run.make_config()


def copy_of(run, folder):
    shutil.copytree(run, folder)
    return folder


@pytest.mark.parametrize(
    "state",
    [
        None,
        # test_state_files.py has these too, without a run.
        pytest.param("utf-16", marks=pytest.mark.slow),
        pytest.param(b"", marks=pytest.mark.slow),
        pytest.param(b"\xff\x00", marks=pytest.mark.slow),
        pytest.param(b'model_checkpoint_path: "ckpt-200"\n', marks=pytest.mark.slow),
    ],
)
def test_a_lost_or_damaged_state_file_is_no_new_run(finished, data_dir, tmp_path, state):
    run = copy_of(finished[0], tmp_path / "run")
    path = run / "checkpoints" / "checkpoint"
    contents = path.read_text().encode("utf-16") if state == "utf-16" else state
    path.unlink() if contents is None else path.write_bytes(contents)
    before, lines = progress.read_metrics(str(run)), []
    assert train(tiny_run.make_config(), data_dir, run, log=lines.append).step == 6
    assert "going on from" in lines[0] and "ckpt-6" in lines[0]
    assert progress.read_metrics(str(run)) == before
    assert last_checkpoint(run).endswith("ckpt-6")  # the file is whole again
    listed = tf.train.get_checkpoint_state(str(run / "checkpoints")).all_model_checkpoint_paths
    assert [os.path.basename(path) for path in listed] == ["ckpt-2", "ckpt-4", "ckpt-6"]


@pytest.mark.parametrize("lost", ["checkpoints", "index files", "checkpoints, of an older version"])
def test_a_run_whose_checkpoints_are_lost_does_not_begin_anew(finished, data_dir, tmp_path, lost):
    run = copy_of(finished[0], tmp_path / "run")
    if lost == "index files":
        for path in (run / "checkpoints").glob("*.index"):
            path.unlink()
    else:
        shutil.rmtree(run / "checkpoints")
    if "older" in lost:
        (run / "run.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        checkpoints.CheckpointError, match="has lost its checkpoints: .*Bring them back"
    ):
        train(tiny_run.make_config(), data_dir, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_other_numbers_of_images_are_another_run(finished, tmp_path):
    run = copy_of(finished[0], tmp_path / "run")
    other = tiny_run.write_data(tmp_path / "more", tiny_run.examples(25, 0))
    with pytest.raises(ConfigError) as error:
        train(tiny_run.make_config(), other, run)
    assert "45 train images" in str(error.value) and "began with 40" in str(error.value)
    assert "another --model_dir" in str(error.value)


def test_other_files_with_as_many_images_are_told(finished, tmp_path):
    run, lines = copy_of(finished[0], tmp_path / "run"), []
    other = tiny_run.write_data(tmp_path / "other", tiny_run.examples(20, 7))
    assert train(tiny_run.make_config(), other, run, log=lines.append).step == 6
    assert lines[0].startswith("warning: the train files in ") and "going on from" in lines[1]


def test_a_run_in_use_is_refused(finished, data_dir, tmp_path):
    run = copy_of(finished[0], tmp_path / "run")
    with DirectoryLock(str(run), "model_dir"):
        with pytest.raises(RunError, match="`model_dir` is .*is at work"):
            train(tiny_run.make_config(), data_dir, run)


def test_a_longer_run_is_told_the_way(finished, data_dir):
    config = tiny_run.make_config()
    config.training.num_epochs = 3.0
    with pytest.raises(
        ConfigError, match="is 1.5 there and 3.0 here.*release --model_dir=.*init.checkpoint=PREFIX"
    ):
        train(config, data_dir, finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "adversarial", "adversarial_only"])
def test_rivals_with_accumulation_over_replicas(data_dir, tmp_path, method, two_replicas):
    config = tiny_run.make_config(method)
    config.training.num_epochs, config.training.accumulation_steps, config.optimizer.ema_decay = (
        0.75,
        5,
        0.0,
    )
    assert train(config, data_dir, tmp_path, two_replicas).step == 3
    entries = progress.read_metrics(str(tmp_path))
    assert entries[-1]["eval_num_images"] == tiny_run.NUM_VALIDATION
    assert ("adversarial_loss" in entries[0]) == (method != "vanilla")
    assert ("clean_loss" in entries[0]) == (method != "adversarial_only")
    model = checkpoints.load_averaged_model(str(tmp_path))
    assert all(np.isfinite(variable).all() for variable in model.variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, compute_dtype, views",
    [
        ("fine_grained", "float32", {"clean", "augmented", "adversarial"}),
        ("fast_advprop", "float32", {"clean", "noisy", "adversarial"}),
        ("advprop", "float16", {"clean", "adversarial"}),
    ],
)
def test_other_methods_and_float16_over_replicas(
    data_dir, tmp_path, method, compute_dtype, views, two_replicas
):
    config = tiny_run.make_config(method)
    config.training.num_epochs, config.optimizer.warmup_epochs = 0.5, 0.25
    config.model.compute_dtype = compute_dtype
    assert train(config, data_dir, tmp_path, two_replicas).step == 2
    entry = next(entry for entry in progress.read_metrics(str(tmp_path)) if "clean_loss" in entry)
    assert {name.removesuffix("_loss") for name in entry if name.endswith("_loss")} == views
    saved = tf.train.load_checkpoint(last_checkpoint(str(tmp_path))).get_variable_to_shape_map()
    assert any("loss_scale" in name for name in saved) == (compute_dtype == "float16")


def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    config = tiny_run.make_config("vanilla")
    (
        config.optimizer.name,
        config.optimizer.learning_rate_per_256,
        config.optimizer.warmup_epochs,
    ) = (
        "sgd",
        1e3,
        1.2,
    )
    config.optimizer.weight_decay = 1e3
    config.training.num_epochs, config.training.checkpoint_every_steps = 5, 1
    with pytest.raises((RunError, checkpoints.CheckpointError)) as error:
        train(config, data_dir, tmp_path)
    assert (
        "not finite" in str(error.value)
        and "intact" in str(error.value)
        and "learning_rate_per_256" in str(error.value)
    )
    for path in tf.train.get_checkpoint_state(
        str(tmp_path / "checkpoints")
    ).all_model_checkpoint_paths:
        reader = tf.train.load_checkpoint(path)
        for name, dtype in reader.get_variable_to_dtype_map().items():
            assert not dtype.is_floating or np.isfinite(reader.get_tensor(name)).all(), (path, name)


def test_non_finite_steps_are_named():
    losses = np.array([1.0, np.nan, 2.0, np.inf], np.float32)
    sums = {
        "clean_loss": np.ones(4, np.float32),
        "adversarial_loss": losses,
        "num_images": np.ones(4, np.float32),
    }
    with pytest.raises(
        RunError, match=r"not finite at steps 12, 14\. Nothing was saved after step 10"
    ):
        loop._check_losses(sums, 10, tiny_run.make_config())


def test_boundaries():
    # 100 updates a loop, but never past a report every 30, a checkpoint every 250, or
    # the end.
    steps, at = [], 0
    while at < 260:
        at += loop._steps_to_boundary(at, 260, 100, (30, 250))
        steps.append(at)
    assert steps == [30, 60, 90, 120, 150, 180, 210, 240, 250, 260]


def test_batches_and_groups_must_divide_by_replicas(data_dir, tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
    with pytest.raises(
        ConfigError,
        match=r"`config.training.global_batch_size` is 10, but must divide by the 3 replicas",
    ):
        train(tiny_run.make_config(), data_dir, tmp_path, strategy)
    config = tiny_run.make_config()
    config.training.global_batch_size = 12
    with pytest.raises(
        ConfigError,
        match=r"`config.training.eval_batch_size` is 16, but must divide by the 3 replicas",
    ):
        train(config, data_dir, tmp_path, strategy)
    config.training.eval_batch_size, config.model.batch_norm_group_size = 18, 2
    with pytest.raises(
        ConfigError,
        match=r"`config.model.batch_norm_group_size` is 2 .* must divide the 3 replicas",
    ):
        train(config, data_dir, tmp_path, strategy)
    config.use_method("fast_advprop")
    config.training.global_batch_size = 6
    with pytest.raises(
        ConfigError,
        match=r"`config.training.global_batch_size` is 6, but 'fast_advprop' makes 0.2 of the 2",
    ):
        train(config, data_dir, tmp_path, strategy)
    assert not list(tmp_path.iterdir())


def truncate(folder):
    path = folder / "train-00000-of-00002"
    path.write_bytes(path.read_bytes()[:-100])


GOOD = tiny_run.examples(20, 0)
FOREIGN = tf.train.Example(features=tf.train.Features(feature={})).SerializeToString()
BAD_DATA = {
    "label out of range": (
        [
            *GOOD[:-1],
            records.make_example(tf.io.encode_png(tf.zeros([32, 32, 3], tf.uint8)).numpy(), 4),
        ],
        "its label 5",
    ),
    "no feature": ([*GOOD[:-1], FOREIGN], "no feature 'image/encoded'"),
    "unreadable image": (
        [*GOOD[:-1], records.make_example(b"no image", 0)],
        "its image cannot be decoded",
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        "label out of range",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("no feature", "unreadable image")
        ),
    ],
)
def test_bad_records_are_named(tmp_path, kind):
    rows, message = BAD_DATA[kind]
    data_dir = tiny_run.write_data(tmp_path / "data", rows)
    with pytest.raises(DataError) as error:
        train(tiny_run.make_config("vanilla"), data_dir, tmp_path / "run")
    assert message in str(error.value) and "train-00000-of-00002, record 19" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_empty_and_truncated_data(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        train(tiny_run.make_config(), str(tmp_path / "none"), tmp_path / "run")
    with pytest.raises(DataError, match="holds no file 'train-"):
        train(tiny_run.make_config(), str(tmp_path), tmp_path / "run")
    data_dir = tiny_run.write_data(tmp_path / "data")
    truncate(tmp_path / "data")
    with pytest.raises(DataError, match="train-00000-of-00002"):
        train(tiny_run.make_config(), data_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_evaluation_no_validation_images_are_needed(data_dir, finished, tmp_path):
    """The same training, to the last bit; and a follower finds what the run itself
    would have found.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    for path in pathlib.Path(data_dir).glob("train-*"):
        (folder / path.name).symlink_to(path)
    config, lines = tiny_run.make_config(), []
    config.training.evaluate_every_epochs = 0.0
    result = train(config, str(folder), tmp_path / "run", log=lines.append)
    assert result.best_accuracy is None and "without evaluation" in lines[0]
    assert not (tmp_path / "run" / "best").exists()
    run, other = (last_checkpoint(folder) for folder in (str(tmp_path / "run"), finished[0]))
    values, wanted = tiny_run.saved_values(run), tiny_run.saved_values(other)
    assert {k: v for k, v in values.items() if "best_accuracy" not in k} == {
        k: v for k, v in wanted.items() if "best_accuracy" not in k
    }

    followed = continuous_evaluation.follow(
        model_dir=str(tmp_path / "run"),
        data_dir=data_dir,
        strategy=make_strategy(),
        timeout_seconds=0.0,
        log=lines.append,
    )
    entries = [entry for entry in progress.read_metrics(finished[0]) if "eval_top1" in entry]
    assert (followed.step, followed.best_step, followed.is_complete) == (6, 6, True)
    assert followed.best_accuracy == pytest.approx(entries[-1]["eval_top1"])
    model = checkpoints.load_averaged_model(str(tmp_path / "run"))
    last = checkpoints.load_averaged_model(finished[0], which="last")
    for variable, value in zip(model.variables, last.variables):
        np.testing.assert_array_equal(variable, value)
    # Started again, it knows the best and repeats no worse one.
    again = continuous_evaluation.follow(
        model_dir=str(tmp_path / "run"),
        data_dir=data_dir,
        strategy=make_strategy(),
        timeout_seconds=0.0,
        log=lines.append,
    )
    assert (again.best_step, again.best_accuracy) == (6, followed.best_accuracy)


def test_a_follower_of_nothing_or_of_a_run_that_evaluates_itself(data_dir, finished, tmp_path):
    arguments = dict(data_dir=data_dir, strategy=make_strategy(), timeout_seconds=0.0)
    with pytest.raises(CheckpointError, match="no run has begun within 0 seconds"):
        continuous_evaluation.follow(model_dir=str(tmp_path), **arguments)
    with pytest.raises(ConfigError, match="evaluates every 1 epochs itself"):
        continuous_evaluation.follow(model_dir=finished[0], **arguments)


@pytest.mark.slow
def test_synthetic_images_need_no_folder(tmp_path):
    config = tiny_run.make_config("vanilla")
    config.training.num_epochs = 30 / 1_281_167  # of ImageNet's images: three updates
    config.optimizer.warmup_epochs = 0.0
    config.training.evaluate_every_epochs = 0.0
    lines = []
    result = train(config, "synthetic", tmp_path / "run", log=lines.append)
    assert result.step == result.total_steps == 3
    assert "1,281,167 images, without evaluation" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lite0", "edgetpu-S", "condconv-b0-4e"])
@pytest.mark.parametrize("method", ["advprop", "fine_grained", "fast_advprop"])
def test_every_kind_of_network_is_trained_by_methods_with_several_batch_norms(
    data_dir, tmp_path, variant, method
):
    """It runs to its end, every batch norm's statistics have moved, and what is
    released is read back.
    """
    config = tiny_run.make_config(method)
    config.model.variant = variant
    config.model.normalization = "lite"
    result = train(config, data_dir, tmp_path / "run")
    assert result.step == result.total_steps
    reader = tf.train.load_checkpoint(last_checkpoint(str(tmp_path / "run")))
    means = [name for name in reader.get_variable_to_shape_map() if "moving_mean" in name]
    trained = [name for name in means if "Average" not in name]
    assert any("aux" in name for name in trained)
    assert all(np.any(reader.get_tensor(name)) for name in trained)
    prefix = str(tmp_path / "released" / "model.ckpt")
    checkpoints.write_released_checkpoint(str(tmp_path / "run"), prefix)
    model = checkpoints.load_averaged_model(str(tmp_path / "run"))
    values = [variable.numpy() for variable in model.variables]
    load_released_checkpoint(model, prefix)
    for variable, value in zip(model.variables, values):
        np.testing.assert_array_equal(variable, value)
