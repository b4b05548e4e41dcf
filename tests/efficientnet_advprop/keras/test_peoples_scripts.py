"""What people's scripts do with Keras models, against plain Keras: eager steps of one
small network.
"""

import zipfile

import keras as installed_keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras import (
    AdvPropModel,
    BranchModel,
    ModelError,
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
    use_branch,
)
from efficientnet_advprop.keras.model_passes import ModelPassRunner
from efficientnet_advprop.keras2 import keras

layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0, 255, (8, 6, 6, 3)).astype("float32")
LABELS = RANDOM.integers(0, 4, 8)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STILL = PGD(epsilon=0.0, num_steps=3, random_start=0.0, targeted=False)
TARGETED = PGD(epsilon=4.0, step_size=4.0, num_classes=4)
KERAS3 = installed_keras.__version__ >= "3"


def make(training=None, wrap=None, kind=keras.Model, **head):
    keras.utils.set_random_seed(1)
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x, training=training))
    x = x if wrap is None else layers.Lambda(wrap)(x)
    return kind(inputs, layers.Dense(4, **head)(layers.GlobalAveragePooling2D()(x)))


def norm_of(model):
    return next(layer for layer in model.layers if type(layer).__name__ == "BatchNormalization")


def statistics(norm):
    return [norm.moving_mean.numpy(), norm.moving_variance.numpy()]


def fit(model, loss=CROSS_ENTROPY, data=(IMAGES, LABELS), metrics=None, **options):
    """One eager epoch without learning; losses and metrics by name."""
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=metrics, run_eagerly=True)
    history = model.fit(*data, batch_size=8, verbose=0, **options).history
    return {name: values[0] for name, values in history.items()}


@pytest.mark.parametrize("order", ["norms first", "branches first", "whole model"])
def test_frozen_norms_learn_and_move_in_no_branch(order):
    model = make()
    if order == "norms first":
        norm_of(model).trainable = False
    dual = add_auxiliary_batch_norms(model, 2)
    if order == "branches first":
        norm_of(dual).trainable = False
    if order == "whole model":
        dual.trainable = False
    norm = norm_of(dual)
    assert not norm.trainable_variables
    plain_outputs = make().predict_on_batch(IMAGES)  # frozen: inference mode
    for branch in ("main", "aux", "aux_2"):
        with use_branch(branch):
            np.testing.assert_allclose(dual(IMAGES, training=True), plain_outputs, atol=1e-4)
    for layer in (norm, *norm.aux):
        np.testing.assert_array_equal(statistics(layer), [np.zeros(4), np.ones(4)])


@pytest.mark.parametrize("method", ["advprop", "adversarial_only"])
def test_norms_called_with_training_true_move_once_per_step(method):
    plain = make(training=True)
    plain(IMAGES)
    model = make(training=True)
    dual = add_auxiliary_batch_norms(model) if method == "advprop" else model
    fit(AdvPropModel(dual, STILL, method))
    norm = norm_of(dual)
    for layer in (norm, *getattr(norm, "aux", ())):
        np.testing.assert_allclose(statistics(layer), statistics(norm_of(plain)), rtol=1e-5)


def test_norms_called_with_training_false_are_attacked_as_they_are_trained():
    def own(training):
        model = make(training=training)
        norm_of(model).moving_variance.assign([4000.0] * 4)
        return model

    for training in (False, None):
        dual = add_auxiliary_batch_norms(own(training))
        runner = ModelPassRunner(AdvPropModel(dual, STILL, attack_statistics="batch"), None)
        labels = {"other_inputs": {}, "labels": LABELS}
        attacked = runner.attacked_outputs(tf.constant(IMAGES), labels, "aux", "batch")
        expected = own(training)(IMAGES, training=True)
        np.testing.assert_allclose(attacked, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["h5", "ModelCheckpoint", "json"])
def test_hdf5_and_json_of_a_converted_model(how, tmp_path):
    dual, path = add_auxiliary_batch_norms(make()), str(tmp_path / "dual.h5")
    norm_of(dual).aux[0].beta.assign([1.0, 2.0, 3.0, 4.0])
    if how == "json":
        loaded = keras.models.model_from_json(dual.to_json())
        loaded.set_weights(dual.get_weights())
    elif how == "h5":
        dual.save(path)
        loaded = keras.models.load_model(path)
    else:
        dual.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, run_eagerly=True)
        saver = keras.callbacks.ModelCheckpoint(path)
        dual.fit(IMAGES, LABELS, batch_size=8, verbose=0, callbacks=[saver])
        loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(norm_of(loaded).aux[0].beta, [1.0, 2.0, 3.0, 4.0])
    for branch in ("main", "aux"):
        found, expected = (BranchModel(model, branch)(IMAGES) for model in (loaded, dual))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_converted_part_of_another_model_is_removed_with_it(tmp_path):
    part = add_auxiliary_batch_norms(make())
    inputs = layers.Input((6, 6, 3))
    plain = remove_auxiliary_batch_norms(keras.Model(inputs, layers.Dense(2)(part(inputs))))
    plain.save(tmp_path / "plain.keras")
    config = zipfile.ZipFile(tmp_path / "plain.keras").read("config.json").decode()
    assert "efficientnet_advprop" not in config and type(part) is type(make())


NAMED = keras.losses.SparseCategoricalCrossentropy(name="mine")


@pytest.mark.parametrize(
    "loss", ["SparseCategoricalCrossentropy", "sparse_categorical_crossentropy", NAMED]
)
def test_cross_entropy_by_any_name_can_be_targeted(loss):
    trained = fit(
        AdvPropModel(add_auxiliary_batch_norms(make(activation="softmax")), TARGETED), loss
    )
    plain = fit(make(activation="softmax"), "sparse_categorical_crossentropy")
    np.testing.assert_allclose(trained["loss"], plain["loss"], rtol=1e-5)


class NarrowIoU(keras.metrics.MeanIoU):
    """`get_config` gives more than `__init__` takes."""

    def __init__(self, num_classes, name="iou"):
        super().__init__(num_classes=num_classes, name=name)

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_true, tf.argmax(y_pred, -1), sample_weight)


class TopOne(keras.metrics.SparseTopKCategoricalAccuracy):
    """A k that `get_config` does not know, so that a copy would have k = 5."""

    def __init__(self, k=5, name="top"):
        super().__init__(k=k, name=name)

    def get_config(self):
        return {"name": self.name}


def test_metrics_count_both_kinds_of_images_as_keras_does():
    plain = fit(make(), metrics=[NarrowIoU(4), TopOne(1)])
    trainer = AdvPropModel(add_auxiliary_batch_norms(make()), STILL)
    found = fit(trainer, metrics=[NarrowIoU(4), TopOne(1)])
    assert 0.0 < plain["top"] < 1.0  # of four classes, the five best ones would be 1
    for name in ("iou", "top"):
        np.testing.assert_allclose(
            [found[name], found[f"adversarial_{name}"]], plain[name], rtol=1e-5
        )


class Endpoint(layers.Layer):
    def call(self, labels, outputs):
        losses = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)
        self.add_loss(tf.reduce_mean(losses))
        return outputs


def test_a_model_whose_only_loss_is_its_layers_own():
    def endpoint():
        model, labels = make(), layers.Input((1,), name="label")
        return keras.Model(
            {"image": model.input, "label": labels}, Endpoint()(labels, model.output)
        )

    data = ({"image": IMAGES, "label": LABELS[:, None]},)
    plain = fit(endpoint(), loss=None, data=data)
    trainer = AdvPropModel(add_auxiliary_batch_norms(endpoint()), STILL, attacked_input="image")
    try:
        found = fit(trainer, loss=None, data=data)
    except ModelError as error:
        assert "loss" in str(error)
    else:
        np.testing.assert_allclose(found["loss"], plain["loss"], rtol=1e-5)


def test_a_plain_checkpoint_and_a_later_momentum_reach_every_branch(tmp_path):
    source = make()
    norm_of(source).set_weights([*RANDOM.uniform(0.5, 1.5, (4, 4))])
    source.save_weights(str(tmp_path / "weights"))
    dual = add_auxiliary_batch_norms(make())
    dual.load_weights(str(tmp_path / "weights"))
    np.testing.assert_allclose(BranchModel(dual, "aux")(IMAGES), source(IMAGES), atol=1e-4)
    norm_of(dual).momentum = norm_of(source).momentum = 0.5
    source(IMAGES, training=True)
    with use_branch("aux"):
        dual(IMAGES, training=True)
    np.testing.assert_allclose(
        statistics(norm_of(dual).aux[0]), statistics(norm_of(source)), rtol=1e-5
    )


@pytest.mark.parametrize("form", ["closure", "default", "list"])
def test_norms_hidden_in_a_lambda_are_refused(form):
    hidden = layers.BatchNormalization(name="hidden_one")
    hidden.build((None, 4, 4, 4))  # else Keras refuses the Lambda itself
    held = [hidden]
    wraps = {
        "closure": lambda x: hidden(x),
        "default": lambda x, norm=hidden: norm(x),
        "list": lambda x: held[0](x),
    }
    model = make(wrap=wraps[form])
    with pytest.raises(ModelError, match="hidden_one"):
        add_auxiliary_batch_norms(model)
    assert type(norm_of(model)) is layers.BatchNormalization  # nothing has changed


def test_an_own_train_step_that_is_left_out_is_named():
    class Own(keras.Model):
        def train_step(self, data):
            raise AssertionError("called")

    with pytest.warns(UserWarning, match="train_step"):
        fit(AdvPropModel(add_auxiliary_batch_norms(make(kind=Own)), STILL))


@pytest.mark.skipif(not KERAS3, reason="Keras 3 is not installed")
@pytest.mark.parametrize("part", ["metric", "callback", "model", "branch", "loss"])
def test_parts_of_keras_3_are_refused(part):
    keras3, dual = installed_keras, add_auxiliary_batch_norms(make())
    other = keras3.Sequential([keras3.layers.Input((6, 6, 3)), keras3.layers.BatchNormalization()])
    acts = {
        "metric": lambda trainer: fit(trainer, metrics=[keras3.metrics.MeanSquaredError()]),
        "callback": lambda trainer: fit(
            trainer, callbacks=[keras3.callbacks.EarlyStopping("loss")]
        ),
        "loss": lambda trainer: fit(trainer, keras3.losses.SparseCategoricalCrossentropy()),
        "model": lambda _: AdvPropModel(other, method="vanilla"),
        "branch": lambda _: BranchModel(other, "main"),
    }
    with pytest.raises(ModelError, match="Keras 2"):
        acts[part](AdvPropModel(dual, STILL))
