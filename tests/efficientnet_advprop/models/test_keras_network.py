"""A Keras model as a network: what the function must return, and what passes through it."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.keras import ModelError, use_branch
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import KerasNetwork, make_network
from efficientnet_advprop.models.converted.conversion import find_batch_norms
from efficientnet_advprop.models.network import NORMALIZATIONS
from efficientnet_advprop.models.normalization import batch_norms, moving_statistics
from efficientnet_advprop.training import losses, optimizers, passes, steps
from efficientnet_advprop.training.state import (
    ExponentialMovingAverage,
    TrainState,
    averaged_variables,
)
from tests.efficientnet_advprop.keras.converted_models import separate

FUNCTIONS = "tests.efficientnet_advprop.models.keras_functions"
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
LABELS = np.arange(4, dtype=np.int32)


def make(name, aux_branches=1, **arguments):
    arguments = {"num_classes": 4, "image_size": 32, **arguments}
    return make_network(f"keras:{FUNCTIONS}:{name}", aux_branches=aux_branches, **arguments)


@pytest.mark.parametrize("name", ["small", "subclassed"])
def test_branches_and_pixels(name):
    network = make(name, 2, normalization="imagenet")
    assert (network.num_classes, network.aux_branches, network.image_size) == (4, 2, 32)
    assert network.fixed_image_size == (32 if name == "small" else None)
    separate(network)
    mean, deviation = NORMALIZATIONS["imagenet"]
    pixels = ((IMAGES - np.array(mean)) / np.array(deviation)).astype("float32")
    for branch in ("main", "aux", "aux_2"):
        with use_branch(branch):
            expected = network.keras_model(pixels)
        found = network(IMAGES, branch=branch)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`branch` is 'aux_3'"):
        network(IMAGES, branch="aux_3")


def test_statistics_move_in_the_branch_that_trains_and_only_if_they_may():
    for aux_branches, branch in ((1, "main"), (1, "aux"), (0, "main")):
        network = make("small", aux_branches)
        before = {variable.name: variable.numpy() for variable in network.variables}

        def moved(network=network, before=before):
            return {v.name for v in network.variables if (v.numpy() != before[v.name]).any()}

        network(IMAGES, training=True, branch=branch, update_statistics=False)
        network(IMAGES, training=False, branch=branch)
        assert not moved()
        network(IMAGES, training=True, branch=branch)
        assert len(moved()) == 4 and all(
            ("/aux/" in name) == (branch == "aux") and "/moving_" in name for name in moved()
        )


def test_every_model_of_a_function_has_the_same_names():
    dual, plain = make("small"), make("small", 0)
    names = {variable.name for variable in dual.variables}
    assert {variable.name for variable in plain.variables} < names
    assert {name.split("/")[-2] for name in names - {v.name for v in plain.variables}} == {"aux"}
    assert not any(variable.name.startswith("/") for variable in dual.variables)


def test_what_decays_what_is_averaged_and_what_moves():
    network = make("small")
    norms = batch_norms(network)
    assert norms == find_batch_norms(network).branched and len(norms) == 2
    decayed = {variable.name.split(":")[0] for variable in losses.decayed_variables(network)}
    kinds = {name.split("/")[-1] for name in decayed}
    assert kinds == {"kernel", "depthwise_kernel", "pointwise_kernel", "bias"} and len(decayed) == 6
    assert len(moving_statistics(network)) == 2 * 2 * 2
    counters = [v for v in network.variables if not v.dtype.is_floating]
    assert len(counters) == 1
    averaged = averaged_variables(network)
    assert len(averaged) == len(network.variables) - len(counters)
    norms[0].trainable = False
    assert len(moving_statistics(network)) == 2 * 2


@pytest.mark.parametrize("name", ["small", "recomputing"])
def test_a_step_is_the_gradient_of_both_losses_and_of_weight_decay(name):
    """By hand, from the Keras model and its context."""
    network = make(name, normalization="unit" if name == "small" else "none")
    separate(network)
    attack = PGD(epsilon=4.0, step_size=4.0, targeted=False, random_start=0.0, num_classes=4)
    model, norms = network.keras_model, find_batch_norms(network).branched
    images, labels = tf.cast(IMAGES, tf.float32), tf.constant(LABELS)

    def loss_of(pixels, branch, training):
        with use_branch(branch):
            logits = model(pixels / 255.0 if name == "small" else pixels, training=training)
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    with use_branch("aux"), tf.GradientTape() as tape:
        tape.watch(images)
        loss = loss_of(images, "aux", False)
        gradient = tape.gradient(loss, images)
    adversarial = tf.clip_by_value(images + 4.0 * tf.sign(gradient), 0.0, 255.0)
    trained = network.trainable_variables
    of_norms = {id(variable) for norm in norms for variable in norm.trainable_variables}
    statistics = [variable.numpy() for variable in moving_statistics(network)]
    totals = []
    for branch, pixels in (("main", images), ("aux", adversarial)):
        with use_branch(branch), tf.GradientTape() as tape:
            loss = loss_of(pixels, branch, True)
            totals.append(tape.gradient(loss, trained, unconnected_gradients="zero"))
    moved = [variable.numpy() for variable in moving_statistics(network)]
    for variable, value in zip(moving_statistics(network), statistics):
        variable.assign(value)
    expected = [
        variable.numpy()
        - 0.1 * (one + other + (0.0 if id(variable) in of_norms else 0.01 * variable)).numpy()
        for variable, one, other in zip(trained, *totals)
    ]
    state = TrainState(
        network, optimizers.SGD(trained), ExponentialMovingAverage(averaged_variables(network))
    )
    step = steps.make_train_step(
        "advprop",
        state,
        lambda step: tf.constant(0.1),
        global_batch_size=4,
        attack=attack,
        label_smoothing=0.0,
        weight_decay=0.01,
    )
    tf.function(step)({"images": tf.constant(IMAGES), "labels": labels})
    for variable, value in zip(trained, expected):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5, err_msg=variable.name)
    for variable, value in zip(moving_statistics(network), moved):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5, err_msg=variable.name)


def test_python_that_asks_a_tensor_is_rewritten():
    network = make("asks_a_tensor", normalization="none")
    run = tf.function(lambda images: network(images, branch="aux"), autograph=False)
    logits = run(tf.constant(IMAGES // 2))
    assert np.ptp(logits) > 0.1
    np.testing.assert_array_equal(run(tf.constant(255 - IMAGES // 2)), logits)


def test_the_policy_is_the_functions_while_it_runs():
    before = keras.mixed_precision.global_policy().name
    network = make("small", compute_dtype="bfloat16")
    assert network.keras_model.layers[1].compute_dtype == "bfloat16"
    assert network(IMAGES).dtype == tf.float32
    assert keras.mixed_precision.global_policy().name == before
    plain = network.for_inference()
    assert plain.keras_model.layers[1].compute_dtype == "float32" and plain.aux_branches == 0
    values = {variable.name: variable.numpy() for variable in network.variables}
    for variable in plain.variables:
        np.testing.assert_array_equal(variable, values[variable.name], err_msg=variable.name)
    assert plain.variables[0].dtype == tf.float32 and len(averaged_variables(network)) > 15


def test_a_finished_model_whose_outputs_are_probabilities():
    model = keras.Sequential(
        [keras.layers.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    network = KerasNetwork(model, image_size=8, output="probabilities", normalization="unit")
    images = IMAGES[:, :8, :8]
    wanted = model(images / np.float32(255))
    np.testing.assert_allclose(tf.nn.softmax(network(images)), wanted, rtol=1e-5)


REFUSED = {
    "no_model": (1, "returned a builtins.int, but must return a Model of Keras 2"),
    "probabilities": (1, "ends in probabilities.*classifier_activation=None"),
    "decayed": (1, "1 losses of its own.*`config.optimizer.weight_decay`"),
    "of_64_pixels": (1, "`image_size` = 32.*let the function have an argument `image_size`"),
    "of_seven_classes": (1, r"returns \(None, 7\).*`num_classes` = 4.*argument `num_classes`"),
    "of_flat_vectors": (1, "`num_classes` = 4"),
    "without_norms": (1, "has no batch norms"),
    "needs_more": (1, "needs width, but it can be given only num_classes and image_size"),
    "fails": (1, "its function failed: RuntimeError: of its own .line .*keras_functions.py"),
    "converted": (1, "a model with branches"),
    "twice_the_same_name": (1, "several variables called.*names of their own"),
    "smal": (1, "has no function 'smal'; its functions are small"),
    "of_keras_3": (1, "has no function 'of_keras_3'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_that_are_refused(name):
    aux_branches, message = REFUSED[name]
    with pytest.raises((ModelError, ModelError), match=message) as error:
        make(name, aux_branches)
    assert len(str(error.value).splitlines()) == 1


def test_a_model_that_comes_again_is_refused():
    make("the_same_again")
    with pytest.raises(ModelError, match="returned the same model again"):
        make("the_same_again")


def test_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import numpy as np\nnp.no_such_thing\n")
    (tmp_path / "needy_module.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, message in {
        "no_such_module": "finds no module 'no_such_module'.*PYTHONPATH",
        "tests.no_such_module": "finds no module 'tests.no_such_module'",
        "broken_module": "cannot be imported: AttributeError",
        "needy_module": (
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
        ),
    }.items():
        with pytest.raises(ModelError, match=message):
            make_network(f"keras:{module}:make", num_classes=4, image_size=32)
        sys.modules.pop(module, None)


def with_fields(**fields):
    config = config_lib.ExperimentConfig()
    config.model.variant = "keras:my_models.small:make"
    for name, value in fields.items():
        section, field = name.split("__")
        setattr(getattr(config, section), field, value)
    return config


def test_the_config_knows_the_form_of_the_name():
    with_fields().validate()
    for variant in (
        "keras:",
        "keras:module",
        "keras:a.b:",
        "keras:a b:c",
        "keras:a:b:c",
        "Keras:a:b",
    ):
        with pytest.raises(config_lib.ConfigError, match="or keras:PACKAGE.MODULE:FUNCTION"):
            with_fields(model__variant=variant).validate()


@pytest.mark.parametrize(
    "name, value",
    [
        ("model__aux_shares", "affine"),
        ("model__recomputed_blocks", 1),
        ("model__batch_norm_group_size", 2),
        ("init__checkpoint", "b0-advprop"),
        ("init__freeze", "stem"),
        ("init__layer_decay", 0.9),
        ("optimizer__name", "lars"),
    ],
)
def test_what_a_keras_model_has_not_is_refused(name, value):
    field = name.replace("__", ".")
    with pytest.raises(config_lib.ConfigError, match=f"`config.{field}` is {value!r}.*Keras"):
        with_fields(**{name: value}).validate()


def test_what_its_function_decides_is_reported():
    config = with_fields(model__dropout_rate=0.3, model__survival_prob=1.0)
    assert config.fields_without_effect() == ["model.dropout_rate", "model.survival_prob"]
    assert config_lib.ExperimentConfig().fields_without_effect() == []


def test_attacked_through_the_branch_that_is_named():
    network = make("small")
    separate(network)
    logits = passes.attacked_network(network, "aux", "running")(IMAGES)
    with use_branch("aux"):
        np.testing.assert_allclose(logits, network.keras_model(IMAGES.astype("float32")), rtol=1e-5)
