"""A run from start to end: what it writes, how it stops and goes on, what it refuses."""

import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.data import records
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.models import CheckpointError, load_released_checkpoint
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
from efficientnet_advprop.runtime.errors import RunError, UsageError
from efficientnet_advprop.training import (
    build,
    checkpoints,
    checks,
    continuous_evaluation,
    loop,
    progress,
    run_directory,
)
from tests.efficientnet_advprop.training import tiny_run
from tests.efficientnet_advprop.training.tiny_run import last_checkpoint, train
from tpu_utils.strategy import make_strategy


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
    assert run_directory.read_config(model_dir) == tiny_run.make_config()
    assert (
        lines[0].startswith("advprop training of efficientnet-b0")
        and "all 6 steps are done" in lines[-1]
    )
    assert any("tracing" in line for line in lines[1:3])
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1 and "only 6 updates" in warnings[0]
    assert "`config.training.global_batch_size` is 10" in warnings[0]


@pytest.mark.parametrize(
    "batch, num_images, total_steps, named",
    [
        (10, 10, 100, []),  # both bounds are met
        (10, 9, 100, ["`config.training.global_batch_size` is 10, but there are 9 "]),
        (10, 10, 99, ["only 99 updates"]),
        (4096, 60, 5, ["is 4,096, but there are 60 ", "only 5 updates"]),
    ],
)
def test_a_batch_too_large_for_the_data_is_told(batch, num_images, total_steps, named):
    config = tiny_run.make_config()
    config.training.global_batch_size = batch
    warnings = loop._warnings(config, num_images, total_steps)
    assert len(warnings) == len(named)
    assert all(text in warning for text, warning in zip(named, warnings))


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
    for batch in labeled_images.make_eval_dataset(config.data, split, global_batch_size=1):
        correct += int(np.argmax(model(batch["images"])[0]) == int(batch["labels"][0]))
    assert progress.read_metrics(model_dir)[-1]["eval_top1"] == pytest.approx(
        correct / tiny_run.NUM_VALIDATION
    )


def test_started_again_when_done_does_nothing(small, data_dir):
    model_dir = small
    before = tiny_run.saved_values(last_checkpoint(model_dir))
    lines = []
    assert train(tiny_run.make_small_config(), data_dir, model_dir, log=lines.append).step == 6
    assert (
        "going on from" in lines[0] and tiny_run.saved_values(last_checkpoint(model_dir)) == before
    )


@pytest.fixture(scope="module")
def small(data_dir, tmp_path_factory):
    """The folder of an uninterrupted run of the small network."""
    model_dir = tmp_path_factory.mktemp("small") / "run"
    train(tiny_run.make_small_config(), data_dir, model_dir)
    return model_dir


@pytest.mark.parametrize("step, at", [(0, "advprop training"), (3, "step 3/6")])
def test_stopped_it_saves_and_the_next_start_ends_with_the_same_bits(
    small, data_dir, tmp_path, step, at
):
    """Also before the first step, where there is no checkpoint yet."""
    handlers, lines = [signal.getsignal(number) for number in (2, 15)], []

    def stop_there(line):
        lines.append(line)
        if line.startswith(at):
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_run.make_small_config()
    result = train(config, data_dir, tmp_path, log=stop_there)
    assert (result.step, result.total_steps, result.stopped_by) == (step, 6, "SIGTERM")
    assert f"stopped by SIGTERM; step {step} of 6 is saved" in lines[-1]
    assert [signal.getsignal(number) for number in (2, 15)] == handlers
    assert last_checkpoint(tmp_path).endswith(f"ckpt-{step}")
    # Boundaries are a matter of operation, not of what is computed.
    config.training.steps_per_loop = 1
    assert train(config, data_dir, tmp_path).step == 6
    assert tiny_run.saved_values(last_checkpoint(tmp_path)) == tiny_run.saved_values(
        last_checkpoint(small)
    )
    steps = [entry["step"] for entry in progress.read_metrics(str(tmp_path))]
    assert steps == [3, 4, 6, 6]


def test_killed_in_any_stage_a_run_ends_with_the_same_bits(data_dir, tmp_path, monkeypatch):
    """Stages of 24 and 32 pixels, the second one with mixed labels, of three updates each."""
    config = tiny_run.make_small_config()
    config.data.num_stages, config.data.stage_base_size = 2, 16
    with pytest.raises(ConfigError, match="train_image_size.*have 24, 32 pixels, but .* 32 alone"):
        build.make_model(config)
    config.model.variant = config.model.variant.replace("small", "any_size")
    config.data.image_size, config.data.train_image_size = 40, 32
    config.data.mixup_alpha = 0.2
    config.training.checkpoint_every_steps, config.training.keep_last = 1, 9
    config.training.evaluate_every_epochs = 0.0
    traced, make_step = [], build.make_step

    def make_counted_step(*args):
        step = make_step(*args)

        def count(batch):
            traced.append((batch["images"].shape[1], batch["labels"].shape.rank))
            return step(batch)

        return count

    monkeypatch.setattr(build, "make_step", make_counted_step)
    lines = []
    assert train(config, data_dir, tmp_path / "whole", log=lines.append).step == 6
    assert traced == [(24, 1), (32, 2)]  # once for each stage
    assert [line for line in lines if "px" in line] == [
        "up to step 3, training images have 24 px",
        "up to step 6, training images have 32 px",
    ]
    wanted = tiny_run.saved_values(last_checkpoint(tmp_path / "whole"))
    for killed_after in (2, 3, 4):
        run = copy_of(tmp_path / "whole", tmp_path / f"killed{killed_after}")
        for path in (run / "checkpoints").glob("ckpt-*"):
            if int(path.name.removeprefix("ckpt-").split(".")[0]) > killed_after:
                path.unlink()
        traced.clear()
        assert train(config, data_dir, run).step == 6
        assert traced == [(24, 1), (32, 2)][killed_after >= 3 :]
        assert tiny_run.saved_values(last_checkpoint(run)) == wanted


def test_a_model_dir_of_another_config(small, data_dir):
    model_dir = small
    before = tiny_run.saved_values(last_checkpoint(model_dir))
    config = tiny_run.make_small_config()
    config.attack.epsilon, config.training.seed, config.training.keep_last = 2.0, 5, 9
    with pytest.raises(ConfigError) as error:
        train(config, data_dir, model_dir)
    assert (
        "`config.attack.epsilon` is 8.0 there and 2.0 here, `config.training.seed` is 0 there and 5"
        " here." in str(error.value)
    )
    assert "keep_last" not in str(error.value)
    assert tiny_run.saved_values(last_checkpoint(model_dir)) == before
    assert run_directory.read_config(model_dir) == tiny_run.make_small_config()


def copy_of(run, folder):
    shutil.copytree(run, folder)
    return folder


@pytest.mark.parametrize("state", [None, b"", b"\xff\x00", b'model_checkpoint_path: "ckpt-200"\n'])
def test_checkpoints_are_ordered_by_their_names_whatever_the_state_file_says(
    small, tmp_path, state
):
    run = copy_of(small, tmp_path / "run")
    path = run / "checkpoints" / "checkpoint"
    path.unlink() if state is None else path.write_bytes(state)
    assert run_directory.check_run_dir(str(run), tiny_run.make_small_config())
    names = [pathlib.Path(path).name for path in run_directory.list_checkpoints(str(run))]
    assert names == ["ckpt-6", "ckpt-4", "ckpt-2"]
    assert checkpoints.load_averaged_model(str(run), which="last") is not None


@pytest.mark.parametrize("lost", ["checkpoints", "index files"])
def test_a_run_whose_checkpoints_are_lost_does_not_begin_anew(small, data_dir, tmp_path, lost):
    run = copy_of(small, tmp_path / "run")
    if lost == "index files":
        for path in (run / "checkpoints").glob("*.index"):
            path.unlink()
    else:
        shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="has lost its checkpoints: .*Bring them back"):
        train(tiny_run.make_small_config(), data_dir, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "name", ["config.json", "labels_map.txt", "metrics.jsonl", "best/a", "checkpoints/a"]
)
def test_a_new_run_replaces_nobodys_files(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="`model_dir`"):
        run_directory.check_run_dir(str(tmp_path), tiny_run.make_small_config())
    run_directory.initialize_run_dir(str(tmp_path / "own"), tiny_run.make_small_config())
    assert not run_directory.check_run_dir(str(tmp_path / "own"), tiny_run.make_small_config())


@pytest.mark.parametrize("contents", [b"", b"\xff\x00", b"[]", b"{"])
def test_damaged_metadata_are_one_error(small, data_dir, tmp_path, contents):
    run = copy_of(small, tmp_path / "run")
    (run / "run.json").write_bytes(contents)
    with pytest.raises(CheckpointError, match="run.json cannot be read"):
        train(tiny_run.make_small_config(), data_dir, run)
    assert (run / "run.json").read_bytes() == contents


def relabelled_examples():
    """As many records, of equal sizes: two images have changed their classes."""
    rows = tiny_run.examples(tiny_run.NUM_TRAIN // 2, 0)
    first, second = map(tf.train.Example.FromString, rows[:2])
    labels = [row.features.feature["image/class/label"].int64_list for row in (first, second)]
    labels[0].value[0], labels[1].value[0] = labels[1].value[0], labels[0].value[0]
    return [first.SerializeToString(), second.SerializeToString(), *rows[2:]]


@pytest.mark.parametrize(
    "rows, said",
    [
        (tiny_run.examples(25, 0), "train split .* began with: 45 images for 40"),
        (tiny_run.examples(20, 7), "train split .* other images or labels"),
        (relabelled_examples(), "train split .* other images or labels"),
    ],
)
def test_other_data_are_another_run(small, tmp_path, rows, said):
    run = copy_of(small, tmp_path / "run")
    other = tiny_run.write_data(tmp_path / "other", rows)
    before = (run / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=said):
        train(tiny_run.make_small_config(), other, run)
    assert (run / "run.json").read_bytes() == before
    # A copy of the run's own is the same.
    same = tiny_run.write_data(tmp_path / "same")
    assert train(tiny_run.make_small_config(), same, run).step == 6


def test_a_run_in_use_is_refused(small, data_dir, tmp_path):
    run = copy_of(small, tmp_path / "run")
    with DirectoryLock(str(run), "model_dir"):
        with pytest.raises(RunError, match="`model_dir` is .*is at work"):
            train(tiny_run.make_small_config(), data_dir, run)


def test_a_longer_run_is_told_the_way(small, data_dir):
    config = tiny_run.make_small_config()
    config.training.num_epochs = 3.0
    with pytest.raises(
        ConfigError, match="is 1.5 there and 3.0 here.*release --model_dir=.*init.checkpoint=PREFIX"
    ):
        train(config, data_dir, small)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "adversarial", "adversarial_only"])
def test_rivals_with_accumulation_over_replicas(data_dir, tmp_path, method, two_replicas):
    changes = {"training.num_epochs": 0.75, "training.accumulation_steps": 5}
    config = tiny_run.make_config(method, {**changes, "optimizer.ema_decay": 0.0})
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
    changes = {"training.num_epochs": 0.5, "optimizer.warmup_epochs": 0.25}
    config = tiny_run.make_config(method, {**changes, "model.compute_dtype": compute_dtype})
    assert train(config, data_dir, tmp_path, two_replicas).step == 2
    entry = next(entry for entry in progress.read_metrics(str(tmp_path)) if "clean_loss" in entry)
    assert {name.removesuffix("_loss") for name in entry if name.endswith("_loss")} == views
    saved = tf.train.load_checkpoint(last_checkpoint(str(tmp_path))).get_variable_to_shape_map()
    assert any("loss_scale" in name for name in saved) == (compute_dtype == "float16")


def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    optimizer = dict(name="sgd", learning_rate_per_256=1e3, warmup_epochs=1.2, weight_decay=1e3)
    changes = {f"optimizer.{name}": value for name, value in optimizer.items()}
    changes |= {"training.num_epochs": 5, "training.checkpoint_every_steps": 1}
    with pytest.raises((RunError, CheckpointError), match="not finite.*learning_rate_per_256"):
        train(tiny_run.make_small_config("vanilla", changes), data_dir, tmp_path)
    for path in run_directory.list_checkpoints(str(tmp_path)):
        reader = tf.train.load_checkpoint(path)
        for name, dtype in reader.get_variable_to_dtype_map().items():
            assert not dtype.is_floating or np.isfinite(reader.get_tensor(name)).all(), (path, name)


def test_non_finite_steps_are_named():
    ones, losses = np.ones(4, np.float32), np.array([1.0, np.nan, 2.0, np.inf], np.float32)
    sums = {"clean_loss": ones, "adversarial_loss": losses, "num_images": ones}
    with pytest.raises(RunError, match=r"not finite at steps 12, 14\. .* after step 10"):
        loop._check_losses(sums, 10, tiny_run.make_config())


def test_boundaries():
    # 100 updates a loop, but never past a report every 30, a checkpoint every 250, or
    # the end.
    steps, at = [], 0
    while at < 260:
        at += loop._steps_to_boundary(at, 260, 100, {"report": 30, "save": 250})
        steps.append(at)
    assert steps == [30, 60, 90, 120, 150, 180, 210, 240, 250, 260]


@pytest.mark.parametrize(
    "method, batch, eval_batch, group, said",
    [
        ("advprop", 10, 16, None, "training.global_batch_size` is 10, .* by the 3 replicas"),
        ("advprop", 12, 16, None, "training.eval_batch_size` is 16, .* by the 3 replicas"),
        ("advprop", 12, 18, 2, "model.batch_norm_group_size` is 2 .* divide the 3 replicas"),
        ("fast_advprop", 6, 18, None, "global_batch_size` is 6, .* makes 0.2 of the 2"),
    ],
)
def test_batches_and_groups_must_divide_by_replicas(method, batch, eval_batch, group, said):
    changes = {"training.global_batch_size": batch, "training.eval_batch_size": eval_batch}
    config = tiny_run.make_config(method, {**changes, "model.batch_norm_group_size": group})
    with pytest.raises(ConfigError, match=said):
        checks.check_replicas(config, 3)


FOREIGN = tf.train.Example(features=tf.train.Features(feature={})).SerializeToString()
BLACK = tf.io.encode_png(tf.zeros([32, 32, 3], tf.uint8)).numpy()


@pytest.mark.parametrize(
    "last, message",
    [
        (records.make_example(BLACK, 4), "its label 5"),
        pytest.param(FOREIGN, "no feature 'image/encoded'", marks=pytest.mark.slow),
        pytest.param(
            records.make_example(b"no image", 0),
            "its image cannot be decoded",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["label", "feature", "image"],
)
def test_bad_records_are_named(tmp_path, last, message):
    data_dir = tiny_run.write_data(tmp_path / "data", [*tiny_run.examples(19, 0), last])
    with pytest.raises(DataError) as error:
        train(tiny_run.make_small_config("vanilla"), data_dir, tmp_path / "run")
    assert message in str(error.value) and "train-00000-of-00002, record 19" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_empty_and_truncated_data(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        train(tiny_run.make_config(), str(tmp_path / "none"), tmp_path / "run")
    with pytest.raises(DataError, match="holds no file 'train-"):
        train(tiny_run.make_config(), str(tmp_path), tmp_path / "run")
    data_dir = tiny_run.write_data(tmp_path / "data")
    path = tmp_path / "data" / "train-00000-of-00002"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="train-00000-of-00002"):
        train(tiny_run.make_config(), data_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def follow(model_dir, data_dir, lines=None):
    return continuous_evaluation.follow(
        model_dir=str(model_dir),
        data_dir=data_dir,
        strategy=make_strategy(),
        timeout_seconds=0.0,
        log=(lambda line: None) if lines is None else lines.append,
    )


@pytest.fixture(scope="module")
def left_alone(data_dir, tmp_path_factory):
    """(model_dir, lines) of a run that leaves its evaluation to others, trained in a folder
    without validation images.
    """
    folder = tmp_path_factory.mktemp("left") / "data"
    folder.mkdir()
    for path in pathlib.Path(data_dir).glob("train-*"):
        (folder / path.name).symlink_to(path)
    config, lines = tiny_run.make_small_config(), []
    config.training.evaluate_every_epochs = 0.0
    result = train(config, str(folder), folder.parent / "run", log=lines.append)
    assert result.best_accuracy is None
    return folder.parent / "run", lines


def test_without_evaluation_it_is_the_same_training(left_alone, small):
    run, lines = left_alone
    assert "without evaluation" in lines[0] and not (run / "best").exists()
    values, wanted = (tiny_run.saved_values(last_checkpoint(folder)) for folder in (run, small))
    assert {k: v for k, v in values.items() if "best_accuracy" not in k} == {
        k: v for k, v in wanted.items() if "best_accuracy" not in k
    }
    with pytest.raises(CheckpointError, match="'best' holds no checkpoint.*--which=last"):
        checkpoints.load_averaged_model(str(run), which="best")


def test_a_follower_finds_what_the_run_itself_would_have_found(
    left_alone, small, data_dir, tmp_path
):
    run = copy_of(left_alone[0], tmp_path / "run")
    followed = follow(run, data_dir)
    entries = [entry for entry in progress.read_metrics(str(small)) if "eval_top1" in entry]
    assert (followed.step, followed.best_step, followed.total_steps) == (6, 6, 6)
    assert followed.best_accuracy == pytest.approx(entries[-1]["eval_top1"])
    model = checkpoints.load_averaged_model(str(run), which="best")
    last = checkpoints.load_averaged_model(str(small), which="last")
    for variable, value in zip(model.variables, last.variables):
        np.testing.assert_array_equal(variable, value)
    # Started again, it knows the best and repeats no worse one.
    again = follow(run, data_dir)
    assert (again.best_step, again.best_accuracy) == (6, followed.best_accuracy)
    # With other validation images it would compare what cannot be compared.
    other = pathlib.Path(tiny_run.write_data(tmp_path / "other"))
    shutil.copy(other / "train-00000-of-00002", other / "validation-00000-of-00001")
    with pytest.raises(ConfigError, match="validation split .* began with"):
        follow(run, str(other))


def set_best(run, step, accuracy):
    """Says that the checkpoint of a step is the run's best, at this accuracy."""
    config = tiny_run.make_small_config()
    with tf.device("CPU:0"):
        state = loop.build.make_state(config)
    saved = checkpoints.Checkpoints(str(run), state, keep_last=3)
    saved.load(str(run / "checkpoints" / f"ckpt-{step}"))
    assert saved.save_if_best(accuracy)
    saved.wait()


@pytest.mark.parametrize("first", ["the run", "a follower"])
def test_a_worse_network_never_replaces_the_best_whoever_found_it(
    left_alone, data_dir, tmp_path, first
):
    run = copy_of(left_alone[0], tmp_path / "run")
    set_best(run, 2, 1.0)
    config = tiny_run.make_small_config()
    if first == "the run":
        result = follow(run, data_dir)
        assert (result.best_step, result.best_accuracy) == (2, 1.0)
    else:  # the run, going on from an earlier step, evaluates itself from now on
        for path in (run / "checkpoints").glob("ckpt-6.*"):
            path.unlink()
        result = train(config, data_dir, run)
        assert result.step == 6 and result.best_accuracy == 1.0
        evaluated = [e for e in progress.read_metrics(str(run)) if "eval_top1" in e]
        assert evaluated and evaluated[-1]["eval_top1"] < 1.0
    assert [path.stem for path in (run / "best").glob("*.index")] == ["ckpt-2"]
    # Where no best one is kept, a worse one is better than none.
    shutil.rmtree(run / "best")
    config.training.evaluate_every_epochs = 0.0
    run_directory.initialize_run_dir(str(run), config)
    assert follow(run, data_dir).best_step == 6


def test_a_follower_refuses_other_data_and_a_run_that_evaluates_itself(
    data_dir, small, left_alone, tmp_path
):
    with pytest.raises(CheckpointError, match="no run has begun within 0 seconds"):
        follow(tmp_path / "none", data_dir)
    with pytest.raises(ConfigError, match="evaluates every 1 epochs itself"):
        follow(small, data_dir)
    other = tiny_run.write_data(tmp_path / "other", tiny_run.examples(4, 0))
    with pytest.raises(ConfigError, match="train split .* 24 images for 40"):
        follow(left_alone[0], other)
    assert not (left_alone[0] / "best").exists()


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
