"""Starting from released weights: what is loaded, what stays, and how fast the rest
learns.
"""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.training import build, fine_tuning, optimizers
from efficientnet_advprop.training.checkpoints import (
    Checkpoints,
    load_averaged_model,
    write_released_checkpoint,
)
from tests.conftest import DATA, make_tiny
from tests.efficientnet_advprop.training.tiny_run import make_config, train
from tests.released_format import AVERAGE, read_checkpoint

TINY = str(DATA / "tiny_ckpt")


@pytest.mark.parametrize("method", ["vanilla", pytest.param("advprop", marks=pytest.mark.slow)])
def test_a_run_with_a_frozen_backbone_changes_the_classifier_alone(data_dir, tmp_path, method):
    config = make_config(method)
    config.init.checkpoint, config.init.freeze = TINY, "backbone"
    config.training.num_epochs = 0.6  # 2 steps
    lines = []
    train(config, data_dir, tmp_path, log=lines.append)
    text = "\n".join(lines)
    assert "averaged weights" in text
    assert "not loaded, as they were: head/dense/kernel, head/dense/bias" in text
    wanted = read_checkpoint(DATA / "tiny_ckpt" / "model.ckpt-1234")
    # The averages, too, began at these weights, statistics included.
    for variable in load_averaged_model(str(tmp_path), which="last").variables:
        name = variable.name.split(":")[0]
        if "dense" not in name:
            np.testing.assert_allclose(variable, wanted[name + AVERAGE], rtol=1e-5, atol=1e-6)
    _check_release(config, str(tmp_path), str(tmp_path / "out" / "model.ckpt"))
    # A second call goes on, and does not load them again.
    lines.clear()
    train(config, data_dir, tmp_path, log=lines.append)
    assert "averaged weights" not in "\n".join(lines) and "going on from" in "\n".join(lines)


def _check_release(config, model_dir, prefix):
    """What the run wrote comes back from the released format, plain weights and
    averages, bit for bit.
    """
    state = build.make_state(config)
    Checkpoints(model_dir, state, 3).restore()
    step = write_released_checkpoint(model_dir, prefix, which="last")
    written = read_checkpoint(prefix)
    assert written.pop("global_step") == step == 2
    wanted = {variable.name.split(":")[0]: variable for variable in state.model.variables}
    wanted |= {
        variable.name.split(":")[0] + AVERAGE: shadow
        for variable, shadow in zip(state.ema.averaged, state.ema.shadows)
    }
    assert written.keys() == {name for name in wanted if "/aux/" not in name}
    for name, value in written.items():
        np.testing.assert_array_equal(value, wanted[name])
    kernel = "efficientnet-b0/head/dense/kernel"
    assert np.any(written[kernel] != written[kernel + AVERAGE])


def test_a_checkpoint_that_does_not_fit_stops_the_run(data_dir, tmp_path):
    config = make_config("vanilla")
    config.model.width_coefficient, config.init.checkpoint = 0.5, TINY
    with pytest.raises(CheckpointError, match="looks like an EfficientNet of width 0.25"):
        train(
            config,
            data_dir=data_dir,
            model_dir=str(tmp_path),
            strategy=tf.distribute.get_strategy(),
        )


def test_averages_start_at_the_loaded_weights():
    config = make_config("advprop")
    config.model.num_classes, config.init.checkpoint = 10, TINY
    state = build.make_state(config)
    fine_tuning.initialize(state, config.init)
    wanted = read_checkpoint(DATA / "tiny_ckpt" / "model.ckpt-1234")
    for variable, shadow in zip(state.ema.averaged, state.ema.shadows):
        value = wanted[variable.name.split(":")[0].replace("/aux/", "/") + AVERAGE]
        np.testing.assert_array_equal(variable, value)
        np.testing.assert_array_equal(shadow, value)


@pytest.mark.parametrize(
    "up_to, num_frozen_blocks, head_is_frozen",
    [("none", 0, False), ("stem", 0, False), ("blocks_2", 3, False), ("backbone", 8, True)],
)
def test_freezing(up_to, num_frozen_blocks, head_is_frozen):
    model = make_tiny()
    fine_tuning.freeze(model, up_to)
    trained = {variable.name.split("/", 1)[1] for variable in model.trainable_variables}
    assert any(name.startswith("stem/") for name in trained) == (up_to == "none")
    for index in range(8):
        assert any(name.startswith(f"blocks_{index}/") for name in trained) == (
            index >= num_frozen_blocks
        )
    assert ("head/conv2d/kernel:0" in trained) != head_is_frozen
    assert ("head/tpu_batch_normalization/aux/gamma:0" in trained) != head_is_frozen
    assert {"head/dense/kernel:0", "head/dense/bias:0"} <= trained


def test_frozen_statistics_stay():
    model = make_tiny()
    fine_tuning.freeze(model, "blocks_2")
    statistics = [variable for variable in model.variables if "moving_" in variable.name]
    before = [variable.numpy() for variable in statistics]
    images = tf.random.stateless_uniform([4, 32, 32, 3], [0, 1], 0, 255)
    model(images, training=True, branch="aux", seed=tf.constant([0, 0]))
    moved = [v.name for v, value in zip(statistics, before) if np.any(v != value)]
    parts = {name.split("/")[1] for name in moved}
    assert parts == {*(f"blocks_{index}" for index in range(3, 8)), "head"}
    assert all("/aux/" in name for name in moved)


@pytest.mark.parametrize("up_to", ["blocks_8", "head", "half"])
def test_parts_that_there_are_not(up_to):
    with pytest.raises(ConfigError, match="`config.init.freeze`.*from 'stem' to 'blocks_7'"):
        fine_tuning.freeze(make_tiny(), up_to)


def test_layer_wise_learning_rates():
    model = make_tiny()
    factors = fine_tuning.learning_rate_factors(model, layer_decay=0.5, head_factor=10.0)
    by_name = {
        variable.name.split("/", 1)[1]: factor
        for variable, factor in zip(model.trainable_variables, factors)
    }
    wanted = {"head/dense/kernel": 10.0, "head/dense/bias": 10.0, "head/conv2d/kernel": 1.0}
    wanted |= {"blocks_7/conv2d/kernel": 0.5, "blocks_7/tpu_batch_normalization/aux/gamma": 0.5}
    wanted |= {"blocks_0/conv2d/kernel": 0.5**8, "stem/conv2d/kernel": 0.5**9}
    assert {name: by_name[f"{name}:0"] for name in wanted} == wanted


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_factors_are_factors_of_the_learning_rate(name):
    """One variable at a factor of 0.3, another at 1: as two optimizers, one of which
    gets 0.3 times the rate.
    """
    start, gradients = [1.0, -2.0], [tf.constant([0.5, 1.5]), tf.constant([-1.0, 0.2])]
    both = [tf.Variable(start), tf.Variable(start)]
    alone = [tf.Variable(start), tf.Variable(start)]
    together = optimizers.make_optimizer(name, both, learning_rate_factors=[0.3, 1.0])
    apart = [optimizers.make_optimizer(name, [variable]) for variable in alone]
    for _ in range(3):
        together.apply(gradients, tf.constant(0.1))
        for optimizer, gradient, rate in zip(apart, gradients, (0.1 * 0.3, 0.1)):
            optimizer.apply([gradient], tf.constant(rate))
    for one, other in zip(both, alone):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_factors_must_be_as_many_as_variables():
    with pytest.raises(ValueError, match="`learning_rate_factors` are 2, but there are 1"):
        optimizers.SGD([tf.Variable(1.0)], [1.0, 2.0])
