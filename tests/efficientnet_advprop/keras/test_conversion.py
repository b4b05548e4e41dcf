"""What a conversion keeps: weights, outputs, classes, files; through every branch, and
back.
"""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.keras import (
    BranchModel,
    ModelError,
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
    use_branch,
)
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.models.converted.conversion import find_batch_norms
from tests.efficientnet_advprop.keras import converted_models as models

layers = keras.layers
KINDS = (models.sequential, models.functional, models.subclassed)
NUM_NORMS = {models.sequential: 1, models.functional: 2, models.subclassed: 6}
BRANCHES = ("main", "aux", "aux_2")
TINY = dict(num_classes=5, width_coefficient=0.1, depth_coefficient=0.1)


def outputs(model, branch="main"):
    with use_branch(branch):
        return models.outputs_of(model)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(found, expected):
    """To the rounding of another graph of the same operations."""
    for one, other in zip(found, expected, strict=True):
        # An output near 0 is a sum of terms near 1, with the rounding of those.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def same_weights():
    keras.utils.set_random_seed(1)


def differ(one, other):
    return all(np.abs(a - b).max() > 1e-3 for a, b in zip(one, other))


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def converted(request):
    """The converted model, and its branches' outputs after they were made different."""
    model = request.param()
    kind, before = type(model), outputs(model)
    dual = add_auxiliary_batch_norms(model, 2)
    assert dual is model and isinstance(dual, kind)
    for branch in BRANCHES:  # auxiliary branches start as copies
        assert_equal(outputs(dual, branch), before)
    assert len(find_batch_norms(dual).branched) == NUM_NORMS[request.param]
    assert f"{NUM_NORMS[request.param]} batch norms" in dual.summary_of_branches()
    models.separate(dual)
    branches = {branch: outputs(dual, branch) for branch in BRANCHES}
    assert differ(branches["main"], branches["aux"]) and differ(branches["aux"], branches["aux_2"])
    return dual, branches


@pytest.mark.parametrize("how", ["keras", "SavedModel", "set_weights", "h5 weights", "TF weights"])
def test_saved_loaded_and_cloned_with_all_branches(converted, how, tmp_path):
    dual, branches = converted
    if how == "keras":
        dual.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    elif how == "SavedModel":
        dual.save(tmp_path / "model", save_format="tf")
        again = keras.models.load_model(tmp_path / "model")
    else:
        again = type(dual).from_config(dual.get_config())
        again(models.inputs_of(dual))
        path = str(tmp_path / ("w.weights.h5" if how == "h5 weights" else "w"))
        if how == "set_weights":
            again.set_weights(dual.get_weights())
        else:
            dual.save_weights(path)
            again.load_weights(path)
    assert again.num_aux_branches == 2 and again.plain_class is dual.plain_class
    for branch, expected in branches.items():
        assert_close(outputs(again, branch), expected)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("file", ["w.weights.h5", "w"], ids=["h5", "TF"])
def test_dual_weights_restore_into_the_plain_model(make, file, tmp_path):
    dual = add_auxiliary_batch_norms(make())
    models.separate(dual)
    dual.save_weights(str(tmp_path / file))
    plain = make()
    status = plain.load_weights(str(tmp_path / file))
    if status is not None:
        status.assert_existing_objects_matched().expect_partial()
    assert_close(outputs(plain), outputs(dual))


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_removed_again_nothing_is_left(make, tmp_path):
    model = make()
    kind, names, config = type(model), [v.name for v in model.variables], model.get_config()
    dual = add_auxiliary_batch_norms(model)
    dual.save(tmp_path / "dual", save_format="tf")  # Keras leaves bound calls in the layers
    models.separate(dual)
    expected = outputs(dual)
    plain = remove_auxiliary_batch_norms(dual)
    assert type(plain) is kind and plain.get_config() == config
    assert [variable.name for variable in plain.variables] == names
    assert_equal(outputs(plain), expected)
    assert_equal(outputs(plain, "aux"), expected)  # there is no such branch any more
    plain.save_weights(str(tmp_path / "plain"))
    saved = [name for name, _ in tf.train.list_variables(str(tmp_path / "plain"))]
    assert not [name for name in saved if "aux" in name]


def test_removed_model_loads_without_this_package(tmp_path):
    dual = add_auxiliary_batch_norms(models.sequential())
    models.separate(dual)
    plain = remove_auxiliary_batch_norms(dual)
    plain.save(tmp_path / "model.keras")
    plain.save(tmp_path / "model", save_format="tf")
    np.save(tmp_path / "images.npy", models.IMAGES)
    np.save(tmp_path / "outputs.npy", plain(models.IMAGES))
    package = "tf_keras" if keras.__name__.startswith("tf_keras") else "tensorflow.keras"
    program = f"""
import sys, numpy as np
import {package} as keras
for name in ("model.keras", "model"):
    outputs = keras.models.load_model(r"{tmp_path}/" + name)(np.load(r"{tmp_path}/images.npy"))
    np.testing.assert_allclose(outputs, np.load(r"{tmp_path}/outputs.npy"), rtol=1e-5)
assert not [name for name in sys.modules if name.startswith("efficientnet_advprop")]
"""
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)


def test_each_pass_of_one_graph_sees_its_own_branch():
    """Also where a layer's call is a `tf.function`, in XLA, and with main before and
    after.
    """
    dual = add_auxiliary_batch_norms(models.subclassed(), 2)
    models.separate(dual)
    order = ("main", "aux", "aux_2", "main", "aux")

    def run(images):
        results = []
        for branch in order:
            with use_branch(branch):
                results.append(dual(images))
        return results

    def outside(images):
        inner = tf.function(BranchModel(dual, "aux"))
        return [dual(images), inner(images), dual(images)]

    expected = {branch: outputs(dual, branch)[0] for branch in BRANCHES}
    for jit_compile in (None, True):
        found = tf.function(run, jit_compile=jit_compile)(models.IMAGES)
        for branch, result in zip(order, found):
            np.testing.assert_allclose(result, expected[branch], rtol=1e-4, atol=1e-3)
    for branch, result in zip(("main", "aux", "main"), tf.function(outside)(models.IMAGES)):
        np.testing.assert_allclose(result, expected[branch], rtol=1e-5, atol=1e-4)


def test_threads_do_not_disturb_each_other():
    dual = add_auxiliary_batch_norms(models.sequential())
    models.separate(dual)
    expected = {branch: outputs(dual, branch)[0] for branch in ("main", "aux")}
    found, meet = {}, threading.Barrier(2)

    def run(branch):
        with use_branch(branch):
            meet.wait()  # both contexts are open before either traces
            found[branch] = tf.function(dual)(models.IMAGES).numpy()
            meet.wait()

    threads = [threading.Thread(target=run, args=(branch,)) for branch in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for branch, result in found.items():
        np.testing.assert_allclose(result, expected[branch], rtol=1e-5)


def test_predictions_by_branch_have_functions_of_their_own():
    dual = add_auxiliary_batch_norms(models.sequential())
    before = dual.predict(models.IMAGES, verbose=0)
    models.separate(dual)
    aux = BranchModel(dual, "aux")
    for model, branch in ((dual, "main"), (aux, "aux"), (dual, "main")):
        assert_close([model.predict(models.IMAGES, verbose=0)], outputs(dual, branch))
    assert differ([before], [dual.predict(models.IMAGES, verbose=0)])


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 0.02)])
def test_batch_moments_without_update_are_training_mode_without_update(dtype, tolerance):
    norm = layers.BatchNormalization(dtype=keras.mixed_precision.Policy(dtype))
    dual = add_auxiliary_batch_norms(keras.Sequential([layers.Input((8, 8, 3)), norm]))
    models.separate(dual)
    before = [variable.numpy() for variable in dual.variables]
    found = []
    with use_branch("aux", update_statistics=False):
        found.append(dual(models.IMAGES, training=True))
    with use_branch("aux", batch_moments=True):
        found.append(dual(models.IMAGES, training=False))
    assert_equal([variable.numpy() for variable in dual.variables], before)
    with use_branch("aux"):
        expected = tf.cast(dual(models.IMAGES, training=True), tf.float32)
    for result in found:
        np.testing.assert_allclose(tf.cast(result, tf.float32), expected, atol=tolerance)
    moved = [v.name for v, old in zip(dual.variables, before) if (v.numpy() != old).any()]
    assert len(moved) == 2 and all("/aux/moving_" in name for name in moved)


def test_layers_built_later_get_their_branches():
    dual = add_auxiliary_batch_norms(models.Subclassed())  # most layers exist, no variables
    dual(models.IMAGES)
    found = find_batch_norms(dual)
    assert len(found.branched) == 6 and not found.plain
    assert sum("/aux/" in variable.name for variable in dual.variables) == 4 * 6 - 1


def test_frozen_batch_norms_stay_frozen_and_it_is_said():
    model = models.sequential()
    model.layers[1].trainable = False
    dual = add_auxiliary_batch_norms(model)
    assert not [v.name for v in dual.trainable_variables if "aux" in v.name]
    assert "frozen" in dual.summary_of_branches()
    before = [variable.numpy() for variable in dual.variables]
    for branch in ("main", "aux"):
        with use_branch(branch):
            dual(models.IMAGES, training=True)
    assert_equal([variable.numpy() for variable in dual.variables], before)


def test_replicas_of_a_mirrored_strategy():
    """The conversion finds the model's strategy; the context is entered in the
    replica's thread.
    """
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = models.sequential()
    dual = add_auxiliary_batch_norms(model)
    models.separate(dual)
    expected = {branch: outputs(dual, branch)[0] for branch in ("main", "aux")}
    order = ("main", "aux", "main")

    def replica(images):
        results = []
        for branch in order:
            with use_branch(branch):
                results.append(dual(images))
        return results

    run = tf.function(lambda: strategy.run(replica, (tf.constant(models.IMAGES),)))
    for branch, result in zip(order, run()):
        for one in strategy.experimental_local_results(result):
            np.testing.assert_allclose(one, expected[branch], rtol=1e-5)


def test_network_of_this_project():
    network = EfficientNet(aux_branches=0, **TINY)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = network(images).numpy()
    dual = add_auxiliary_batch_norms(network)
    with use_branch("aux"):
        np.testing.assert_array_equal(dual(images), expected)
    models.separate(dual)
    native = EfficientNet(aux_branches=1, **TINY)
    values = {variable.name: variable for variable in dual.variables}
    for variable in native.variables:
        variable.assign(values[variable.name])
    for branch in ("main", "aux"):
        for training in (False, True):
            with use_branch(branch):
                found = dual(images, training=training, seed=[1, 2])
            own = native(images, training=training, branch=branch, seed=[1, 2])
            np.testing.assert_array_equal(found, own)
    assert type(remove_auxiliary_batch_norms(dual)) is EfficientNet


class OwnNorm(layers.BatchNormalization):
    pass


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: keras.Sequential([layers.Dense(1, input_shape=(2,))]), "has no batch norms"),
        (lambda: keras.Sequential([layers.Dense(1)]), "not built yet: call it on a batch"),
        (lambda: keras.Sequential([OwnNorm(input_shape=(2,))]), "OwnNorm"),
        (lambda: layers.Dense(1), "must be a Model of Keras 2"),
        (lambda: add_auxiliary_batch_norms(models.sequential()), "has auxiliary branches already"),
        (lambda: EfficientNet(**TINY), "build it with aux_branches=0"),
    ],
)
def test_models_that_are_refused(make, message):
    with pytest.raises(ModelError, match=message):
        add_auxiliary_batch_norms(make())


def test_arguments_that_are_refused():
    with pytest.raises(ModelError, match="`aux_branches` is 0"):
        add_auxiliary_batch_norms(models.sequential(), 0)
    with pytest.raises(ModelError, match="nothing to remove"):
        remove_auxiliary_batch_norms(models.sequential())
    with pytest.raises(ValueError, match="there is only 'main', 'aux'"):
        BranchModel(add_auxiliary_batch_norms(models.sequential()), "aux_2")
