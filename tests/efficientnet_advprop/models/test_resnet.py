"""ResNets against Keras's own, the published sizes, and what an AdvProp step needs of them."""

import functools
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import (
    KERAS_ARGUMENTS,
    CheckpointError,
    ResNet,
    load_keras_weights,
    make_network,
)
from efficientnet_advprop.models.layers import Convolution
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from efficientnet_advprop.training import fine_tuning, losses, optimizers, steps
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import (
    ExponentialMovingAverage,
    Role,
    TrainState,
    averaged_variables,
    role_of,
)


def make_tiny(**overrides):
    """Four blocks of an eighth of ResNet-50’s width."""
    arguments = dict(num_classes=10, width_coefficient=0.125, depth_coefficient=0.16)
    return ResNet("resnet50", **{**arguments, **overrides})


def pixels(size, count=2):
    return np.random.RandomState(size).uniform(0, 255, [count, size, size, 3]).astype(np.float32)


def randomize(model, seed=0):
    """Weights with which nothing vanishes on its way up: positive gammas, biases that matter."""
    random = np.random.RandomState(seed)
    for variable in model.weights:
        shape, name = variable.shape.as_list(), variable.name
        if "kernel" in name:
            variable.assign(random.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape))
        else:
            centre = 1.0 if "gamma" in name or "variance" in name else 0.0
            variable.assign(centre + random.uniform(-0.3, 0.3, shape))


def logits_of(keras_model, images, training=False):
    images = keras.applications.resnet.preprocess_input(images.copy())
    return keras_model(images, training=training).numpy()


@functools.lru_cache(maxsize=None)
def keras_resnet50():
    model = keras.applications.ResNet50(
        weights=None, classifier_activation=None, classes=11, input_shape=(97, 97, 3)
    )
    randomize(model)
    return model


# He et al.’s networks have these sizes wherever they are implemented; Keras’s are
# larger by its convolutions’ biases.
PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet200": 64_673_832,
}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.slow
@pytest.mark.parametrize("variant", PARAMETERS)
def test_number_of_parameters_is_the_published_one(variant):
    assert count(make_network(variant, aux_branches=0).trainable_variables) == PARAMETERS[variant]


def test_number_of_parameters_of_resnet50_is_the_published_one(loaded):
    without_aux = [v for v in loaded.trainable_variables if "/aux/" not in v.name]
    assert count(without_aux) - (2048 + 1) * 11 == PARAMETERS["resnet50"] - (2048 + 1) * 1000


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("keras") / "weights.h5")
    keras_resnet50().save_weights(path)
    return path


@pytest.fixture(scope="module")
def loaded(keras_file):
    model = ResNet("resnet50", num_classes=11, aux_branches=1, **KERAS_ARGUMENTS)
    assert load_keras_weights(model, keras_file).network == "a ResNet of Keras"
    return model


def test_logits_of_a_keras_file_are_kerass(loaded):
    images = pixels(97)
    wanted = logits_of(keras_resnet50(), images)
    for branch in ("main", "aux"):
        logits = loaded(images, branch=branch)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    # With batch moments too, in which the convolutions' biases cancel.
    weights = keras_resnet50().get_weights()
    wanted = logits_of(keras_resnet50(), images, training=True)
    keras_resnet50().set_weights(weights)  # its statistics have moved
    logits = loaded(images, training=True, update_statistics=False)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_strides_in_the_3x3_are_those_of_the_official_network(loaded):
    """Keras's network with its strides moved.

    At 97 pixels every strided convolution meets an odd size, where "SAME" is symmetric.
    """
    config = keras_resnet50().get_config()
    for layer in config["layers"]:
        strided = re.fullmatch("conv[345]_block1_([12])_conv", layer["name"])
        if strided:
            layer["config"]["strides"] = (int(strided[1]),) * 2
    reference = keras.Model.from_config(config)
    reference.set_weights(keras_resnet50().get_weights())
    arguments = dict(normalization="caffe", batch_norm_epsilon=1.001e-5)
    model = ResNet("resnet50", num_classes=11, aux_branches=1, **arguments)
    model.set_weights(loaded.get_weights())
    images = pixels(97)
    wanted = logits_of(reference, images)
    np.testing.assert_allclose(model(images), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(loaded(images) - wanted).max() > 1e-2 * np.abs(wanted).max()


def test_padding_of_strides_and_pooling_where_sizes_are_even():
    x = tf.constant(np.random.RandomState(0).uniform(0, 1, [1, 8, 8, 2]), tf.float32)
    layer = Convolution(4, 3, 2, symmetric_padding=True)
    padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    np.testing.assert_allclose(
        layer(x), tf.nn.conv2d(padded, layer.kernel, 2, "VALID"), rtol=0, atol=1e-5
    )

    def by_numpy(first):
        return np.max(
            [
                padded[:, first + i : first + i + 8 : 2, first + j : first + j + 8 : 2]
                for i in range(3)
                for j in range(3)
                if first + i < 3 and first + j < 3
            ],
            0,
        )

    symmetric = make_tiny(pool_padding="symmetric").pool(x)
    np.testing.assert_array_equal(symmetric, by_numpy(0)[:, :4, :4])
    same = make_tiny().pool(x).numpy()
    assert same.shape == symmetric.shape and same[0, 0, 0, 0] == x.numpy()[0, :3, :3, 0].max()


def test_files_that_do_not_fit_are_refused_with_every_name(loaded, keras_file, tmp_path):
    import h5py

    changed = str(tmp_path / "changed.h5")
    shutil.copy(keras_file, changed)
    with h5py.File(changed, "a") as file:
        del file["conv3_block2_2_bn"]
        file["more/x:0"] = [1.0]
        head = file["predictions/predictions"]
        del head["bias:0"]
        head["bias:0"] = np.zeros(12)
        file["conv1_bn/conv1_bn/beta:0"][3] = np.nan
    before = [variable.numpy() for variable in loaded.variables]
    with pytest.raises(CheckpointError) as raised:
        load_keras_weights(loaded, changed)
    for said in (
        "resnet50), which is unchanged",
        "4 missing in the file: conv3_block2_2_bn/gamma, conv3_block2_2_bn/beta",
        "1 of another shape in the file: predictions/bias [12] instead of [11]",
        "1 in the file but not in the model: more/x",
        "1 hold values that are not finite: conv1_bn/beta",
    ):
        assert said in str(raised.value)
    for variable, value in zip(loaded.variables, before):
        np.testing.assert_array_equal(variable, value)
    with pytest.raises(
        CheckpointError,
        match="`stride_in` is '3x3', not '1x1', `pool_padding`.*`normalization` is 'imagenet'",
    ):
        load_keras_weights(make_tiny(), keras_file)
    (tmp_path / "not.h5").write_text("no")
    with pytest.raises(CheckpointError, match="damaged or of another format"):
        load_keras_weights(loaded, str(tmp_path / "not.h5"))


def test_reductions_parts_and_roles():
    model = make_tiny(aux_branches=2)
    endpoints = model.features(pixels(64))
    assert [endpoints[f"reduction_{i}"].shape[1] for i in range(1, 6)] == [32, 16, 8, 4, 2]
    assert endpoints["features"].shape[-1] == endpoints["pooled_features"].shape[-1] == 256
    blocks = [f"blocks_{i}" for i in range(4)]
    assert fine_tuning.part_names(model) == ["stem", *blocks, "head"]
    decayed = set(map(id, losses.decayed_variables(model)))
    for variable in model.variables:
        is_norm = "batch_normalization" in variable.name
        role = Role.SHARED if not is_norm else Role.AUX if "/aux" in variable.name else Role.MAIN
        assert role_of(variable.name) is role
        assert variable.trainable is False or (id(variable) in decayed) is not is_norm
    last = [v for v in model.variables if re.search("batch_normalization_2/.*gamma", v.name)]
    assert len(last) == 3 * len(model.blocks) and not any(map(np.any, last))
    again = ResNet.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(pixels(64)), model(pixels(64)))
    fine_tuning.freeze(model, "backbone")
    assert [variable.shape[-1] for variable in model.trainable_variables] == [10, 10]


def test_the_served_network_is_the_models():
    model = make_tiny(aux_branches=0)
    randomize(model)
    images = tf.constant(pixels(64))
    endpoints, features = InferenceNetwork(model, 64)(images), model.features(images)
    for name in endpoints.keys() - {"logits"}:
        found, wanted = endpoints[name], features[name]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(endpoints["logits"], model(images), rtol=1e-4, atol=1e-4)


def advprop_step(**options):
    model = make_tiny(survival_prob=0.8, dropout_rate=0.1)
    randomize(model)
    average = ExponentialMovingAverage(averaged_variables(model))
    state = TrainState(model, optimizers.Momentum(model.trainable_variables), average)
    rate, attack = (
        LearningRate(0.1, 1.0, "constant", warmup_epochs=0),
        PGD(2.0, 1.0, 2, num_classes=10),
    )
    step = steps.make_train_step("advprop", state, rate, global_batch_size=4, attack=attack)
    images = tf.constant(pixels(32, 4).astype(np.uint8))
    return model, tf.function(step, **options), {"images": images, "labels": tf.range(1, 5)}


def test_an_advprop_step_moves_every_variable():
    model, step, data = advprop_step()
    before = {variable.name: variable.numpy() for variable in model.variables}
    sums = step(data)
    assert np.isfinite([float(value) for value in sums.values()]).all()
    assert not [v.name for v in model.variables if np.array_equal(v, before[v.name])]


@pytest.mark.slow
def test_an_advprop_step_is_one_xla_program():
    _, step, data = advprop_step(jit_compile=True)
    program = step.experimental_get_compiler_ir(data)(stage="hlo")
    assert program.startswith("HloModule") and "convolution(" in program and "while(" in program


@pytest.mark.slow
def test_a_trained_alpha_of_each_place_learns_and_is_not_decayed():
    """SmoothReLU: stem, three in each of four blocks; shared by clean and adversarial images."""
    model = make_tiny(activation="smooth_relu", aux_branches=1)
    roots = [v for v in model.trainable_variables if v.name.endswith("/root_of_alpha:0")]
    assert len(roots) == 1 + 3 * 4 and len({v.name for v in roots}) == len(roots)
    assert all(float(v) == 20.0 for v in roots)  # α = 400
    decayed = set(map(id, losses.decayed_variables(model)))
    assert all(role_of(v.name) is Role.SHARED and id(v) not in decayed for v in roots)
    randomize(model)
    for variable in roots:
        variable.assign(2.0)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(pixels(48), training=True, branch="aux"))
    assert all(abs(float(g)) > 0 for g in tape.gradient(total, roots))
    again = ResNet.from_config(model.get_config())
    assert [v.name for v in again.variables] == [v.name for v in model.variables]


def test_pooling_behind_an_activation_below_zero_sees_no_padding():
    """silu is as low as −0.28: an edge padded with zeros would win."""
    for activation, least in (("silu", -0.25), ("relu", 0.0)):
        model = make_tiny(activation=activation, pool_padding="symmetric", aux_branches=0)
        pooled = model.pool(tf.fill([1, 8, 8, 3], least))
        np.testing.assert_array_equal(pooled, np.full([1, 4, 4, 3], least))
