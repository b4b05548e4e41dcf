"""AdvProp for models of Keras 3, on the backend that KERAS_BACKEND names."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from efficientnet_advprop.config.methods import METHODS, Method, Pass
from efficientnet_advprop.keras3 import (
    PGD,
    AdvPropModel,
    BranchModel,
    ModelError,
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
    use_branch,
)
from efficientnet_advprop.runtime.errors import AttackError
from tests.efficientnet_advprop.keras3 import models3
from tests.efficientnet_advprop.keras3.models3 import SIZE, cross_entropy, data, norms_of, values

ROOT = pathlib.Path(__file__).parents[3]
BACKEND = keras.config.backend()
IMAGES, LABELS = data()
UNTARGETED = PGD(epsilon=8.0, step_size=8.0, targeted=False, random_start=0.0)
STILL = PGD(epsilon=0.0, targeted=False, random_start=0.0)
SGD = keras.optimizers.SGD


@pytest.fixture(autouse=True)
def same_weights():
    keras.utils.set_random_seed(1)


def make_trainer(
    network, attack=UNTARGETED, method="advprop", loss=None, optimizer=None, **options
):
    compiled = {name: options.pop(name) for name in ("metrics", "jit_compile", "loss_weights",
                "steps_per_execution", "weighted_metrics") if name in options}  # fmt: skip
    trainer = AdvPropModel(network, attack, method, **options)
    trainer.compile(optimizer or SGD(0.05), loss or cross_entropy(), **compiled)
    return trainer


def fit(trainer, images=IMAGES, labels=LABELS, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return {name: rows[-1] for name, rows in trainer.fit(images, labels, **options).history.items()}


# Conversion.


@pytest.mark.parametrize("make", [models3.functional, models3.subclassed])
def test_conversion_keeps_outputs_and_is_undone(make):
    model = make()
    plain_class, before, count = type(model), model.predict(IMAGES, verbose=0), len(model.weights)
    dual = add_auxiliary_batch_norms(model, aux_branches=2)
    assert dual is model and isinstance(dual, plain_class)
    assert "main, aux, aux_2" in dual.summary_of_branches()
    np.testing.assert_array_equal(dual.predict(IMAGES, verbose=0), before)
    for branch in ("main", "aux", "aux_2"):
        np.testing.assert_allclose(
            BranchModel(dual, branch).predict(IMAGES, verbose=0), before, atol=1e-6
        )
    assert len(dual.weights) == count + 2 * 4 * len(norms_of(model))
    plain = remove_auxiliary_batch_norms(dual)
    assert type(plain) is plain_class and len(plain.weights) == count
    assert all(type(norm) is layers.BatchNormalization for norm in norms_of(plain))
    np.testing.assert_array_equal(plain.predict(IMAGES, verbose=0), before)


def test_a_converted_part_inside_another_model_becomes_plain_too(tmp_path):
    part = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization()])
    part.build((None, 12, 12, 3))
    add_auxiliary_batch_norms(part)
    inputs = layers.Input((12, 12, 3))
    whole = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(part(inputs))))
    fit(make_trainer(whole))
    remove_auxiliary_batch_norms(whole).save(tmp_path / "plain.keras")
    config = zipfile.ZipFile(tmp_path / "plain.keras").read("config.json").decode()
    assert "efficientnet_advprop" not in config and "aux" not in config


@pytest.mark.parametrize("freeze_first", [True, False])
def test_frozen_norms_stay_still_in_every_branch(freeze_first):
    model = models3.functional()
    for freeze in [True, False] if freeze_first else [False, True]:
        if freeze:
            for norm in norms_of(model):
                norm.trainable = False
        else:
            add_auxiliary_batch_norms(model)
    norm = norms_of(model)[0]
    before = values(norm.variables + norm.aux[0].variables)
    fit(make_trainer(model))
    for old, new in zip(before, values(norm.variables + norm.aux[0].variables)):
        np.testing.assert_array_equal(old, new)


def test_norms_that_are_built_late_get_their_branches():
    model = models3.Subclassed()
    trainer = make_trainer(add_auxiliary_batch_norms(model))
    assert "adversarial_loss" in fit(trainer)
    assert all(norm.aux[0].built for norm in norms_of(model))


class OwnNorm(layers.BatchNormalization):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.Sequential([layers.Input((4, 4, 3)), OwnNorm()]),
        lambda: keras.Sequential([layers.Input((4,)), layers.Dense(2)]),
        lambda: add_auxiliary_batch_norms(models3.functional()),
        lambda: "no model",
    ],
)
def test_what_cannot_be_converted_is_refused(make):
    model = make()
    with pytest.raises(ModelError, match="`model`"):
        add_auxiliary_batch_norms(model)


def test_nothing_is_changed_by_a_refusal():
    model = keras.Sequential([layers.Input((4, 4, 3)), layers.BatchNormalization(), OwnNorm()])
    with pytest.raises(ModelError, match="OwnNorm"):
        add_auxiliary_batch_norms(model)
    assert type(model.layers[0]) is layers.BatchNormalization and len(model.weights) == 8


# The attack.


def test_pgd_on_a_linear_model_has_a_closed_form():
    weights = np.random.default_rng(2).normal(size=(12 * 12 * 3,)).astype("float32")
    images = np.clip(IMAGES, 0.0, 250.0)

    def score(values):
        return keras.ops.sum(keras.ops.reshape(values, (-1, weights.size)) @ weights[:, None])

    signs = np.sign(weights).reshape(1, 12, 12, 3)
    attack = PGD(epsilon=4.0, step_size=1.5, num_steps=4, targeted=False, random_start=0.0)
    moved = keras.ops.convert_to_numpy(attack(lambda v: v, images, LABELS, objective=score))
    np.testing.assert_allclose(moved, np.clip(images + 4.0 * signs, 0.0, 255.0), atol=1e-4)
    short = PGD(epsilon=4.0, step_size=1.5, num_steps=2, num_classes=4, random_start=0.0)
    moved = keras.ops.convert_to_numpy(short(lambda v: v, images, LABELS, objective=score))
    np.testing.assert_allclose(moved, np.clip(images - 3.0 * signs, 0.0, 255.0), atol=1e-4)
    inside = np.full_like(images, 100.0)
    attack = PGD(
        epsilon=64.0, step_size=40.0, num_steps=3, targeted=False, random_start=0.0, norm="l2"
    )
    moved = keras.ops.convert_to_numpy(attack(lambda v: v, inside, LABELS, objective=score))
    want = inside + 64.0 * (weights / np.linalg.norm(weights)).reshape(1, 12, 12, 3)
    np.testing.assert_allclose(moved, want, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_lie_in_the_ball_and_the_pixel_range(norm):
    attack = PGD(epsilon=12.75, targeted=False, random_start=1.0, norm=norm, pixel_range=(0.0, 1.0))
    clean = IMAGES / 255.0
    start = keras.ops.convert_to_numpy(attack.start(clean, keras.random.SeedGenerator(3)))
    differences = start - clean
    lengths = (
        np.abs(differences).max((1, 2, 3))
        if norm == "linf"
        else np.sqrt((differences**2).sum((1, 2, 3)))
    )
    assert lengths.max() <= 0.05 + 1e-6 and lengths.min() > 0.02
    assert start.min() >= 0.0 and start.max() <= 1.0


def test_targets_are_wrong_classes_of_every_kind():
    attack = PGD(num_classes=4)
    labels = np.repeat(np.arange(4), 200)
    targets = keras.ops.convert_to_numpy(
        attack.draw_targets(keras.ops.convert_to_tensor(labels), False, 1)
    )
    assert not (targets == labels).any() and set(zip(labels, targets)) == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }
    weights = keras.ops.convert_to_tensor(np.eye(4, dtype="float32")[labels])
    drawn = keras.ops.convert_to_numpy(attack.draw_targets(weights, True, 1))
    assert not (drawn.argmax(-1) == labels).any() and (drawn.sum(-1) == 1.0).all()


@pytest.mark.parametrize(
    "arguments", [{"epsilon": -1.0}, {"num_steps": 0}, {"norm": "l1"}, {"num_classes": 1}]
)
def test_arguments_of_the_attack(arguments):
    with pytest.raises(AttackError, match=next(iter(arguments))):
        PGD(**{"num_classes": 3, **arguments})


# The step.


def test_main_learns_its_statistics_as_under_plain_fit():
    plain, model = models3.functional(), models3.functional()
    model.set_weights(plain.get_weights())
    plain.compile(SGD(0.0), cross_entropy())
    plain.fit(IMAGES, LABELS, batch_size=8, shuffle=False, verbose=0)
    dual = add_auxiliary_batch_norms(model)
    strong = PGD(epsilon=64.0, step_size=64.0, targeted=False, random_start=0.0)
    fit(make_trainer(dual, strong, optimizer=SGD(0.0)))
    for one, other in zip(norms_of(plain), norms_of(dual)):
        for old, new in zip(one.variables, other.variables):
            np.testing.assert_allclose(*values([old, new]), rtol=1e-5, atol=1e-5)
        assert (
            np.abs(np.subtract(*values([other.aux[0].moving_mean, other.moving_mean]))).max() > 1e-3
        )


def test_a_still_attack_gives_both_branches_the_same_and_twice_the_gradient():
    plain, model = models3.functional(), models3.functional()
    model.set_weights(plain.get_weights())
    plain.compile(SGD(0.1), cross_entropy())
    plain.train_on_batch(IMAGES, LABELS)
    dual = add_auxiliary_batch_norms(model)
    fit(make_trainer(dual, STILL, optimizer=SGD(0.05)), batch_size=16)
    for one, other in zip(norms_of(plain), norms_of(dual)):
        for main, aux, _ in zip(other.variables, other.aux[0].variables, range(4)):
            np.testing.assert_allclose(*values([main, aux]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            *values([one.moving_mean, other.moving_mean]), rtol=1e-4, atol=1e-5
        )
    one, other = plain.layers[1], dual.layers[1]
    np.testing.assert_allclose(*values([one.kernel, other.kernel]), rtol=1e-3, atol=1e-6)


METHODS_OF_FIT = {
    "vanilla": (0, {"loss", "clean_loss", "accuracy"}),
    "advprop": (1, {"loss", "clean_loss", "accuracy", "adversarial_loss", "adversarial_accuracy"}),
    "adversarial": (0, {"loss", "clean_loss", "accuracy", "adversarial_loss", "adversarial_accuracy"}),
    "adversarial_only": (0, {"loss", "adversarial_loss", "adversarial_accuracy"}),
    "fine_grained": (2, {"loss", "clean_loss", "accuracy", "adversarial_loss", "adversarial_accuracy",
                         "augmented_loss", "augmented_accuracy"}),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS_OF_FIT)
def test_methods(method):
    branches, names = METHODS_OF_FIT[method]
    model = models3.functional(kernel_regularizer="l2")
    penalty = float(sum(model.losses))
    model = add_auxiliary_batch_norms(model, branches) if branches else model
    flip = (lambda images: keras.ops.flip(images, 2)) if method == "fine_grained" else None
    trainer = make_trainer(
        model,
        UNTARGETED if METHODS[method].has_attack else None,
        method,
        augmentation=flip,
        optimizer=SGD(0.0),
        metrics=["accuracy"],
    )
    told = fit(trainer, validation_data=(IMAGES, LABELS))
    validation = {"val_loss", "val_accuracy"}
    assert set(told) == names | validation and np.isfinite(list(told.values())).all()
    parts = sum(value for name, value in told.items() if name in names and name.endswith("_loss"))
    own = penalty if "clean_loss" not in names or method == "adversarial" else 0.0
    np.testing.assert_allclose(told["loss"], parts + own, rtol=1e-4)  # counted once


def test_an_attack_leaves_norms_still_that_are_told_to_train():
    def make():
        inputs = layers.Input((12, 12, 3))
        norm = Told()
        return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(norm(inputs))))

    dual = add_auxiliary_batch_norms(make())
    attack = PGD(epsilon=0.0, num_steps=5, targeted=False, random_start=0.0)
    fit(make_trainer(dual, attack, optimizer=SGD(0.0)))
    norm = norms_of(dual)[0]
    np.testing.assert_allclose(*values([norm.moving_mean, norm.aux[0].moving_mean]), rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Told(layers.Layer):
    """Tells its norm what mode it is in."""

    def __init__(self, mode=True, **kwargs):
        super().__init__(**kwargs)
        self.mode, self.norm = mode, layers.BatchNormalization(momentum=0.5)

    def build(self, shape):
        self.norm.build(shape)

    def call(self, inputs):
        return self.norm(inputs, training=self.mode)


@pytest.mark.parametrize("mode", [True, False])
def test_an_attack_on_batch_statistics_sees_the_trained_network(mode):
    inputs = layers.Input((12, 12, 3))
    x = layers.Dropout(0.9)(layers.BatchNormalization()(Told(mode)(inputs)))
    dual = add_auxiliary_batch_norms(
        keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    )
    seen = []

    def loss(labels, outputs):
        seen.append(outputs)
        return keras.ops.mean(keras.ops.square(outputs), -1)

    trainer = AdvPropModel(dual, STILL, attack_statistics="batch")
    if BACKEND == "jax":
        pytest.skip("needs an eager step")
    trainer.compile(SGD(0.0), loss, run_eagerly=True)
    for norm in norms_of(dual):
        for part in (norm, norm.aux[0]):
            part.moving_variance.assign(keras.ops.full(part.moving_variance.shape, 4000.0))
    trainer.train_on_batch(IMAGES, LABELS)
    attacked = keras.ops.convert_to_numpy(seen[-2])
    next(layer for layer in dual.layers if isinstance(layer, layers.Dropout)).rate = 0.0
    with use_branch("aux"):
        want = keras.ops.convert_to_numpy(dual(IMAGES, training=True))
    np.testing.assert_allclose(attacked, want, rtol=1e-3, atol=1e-4)


class NarrowAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """As it stands in many scripts: __init__ takes less than get_config gives."""

    def __init__(self, threshold):
        super().__init__(name="narrow")
        self.threshold = threshold

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_true, y_pred + 0.0 * self.threshold, sample_weight)


def test_metrics_are_counted_apart_without_copies():
    dual = add_auxiliary_batch_norms(models3.functional())
    metrics = [NarrowAccuracy(0.5), keras.metrics.SparseTopKCategoricalAccuracy(k=1, name="top")]
    trainer = make_trainer(dual, PGD(epsilon=64.0, step_size=64.0, targeted=False), metrics=metrics)
    for _ in range(2):
        told = fit(trainer, epochs=2)
        assert told["narrow"] == told["top"]
        assert told["adversarial_narrow"] == told["adversarial_top"] != told["top"]


def test_weights_of_samples_and_classes_reach_every_pass():
    weights = np.linspace(0.0, 2.0, 16).astype("float32")
    dual = add_auxiliary_batch_norms(models3.functional())
    told = fit(make_trainer(dual, STILL, optimizer=SGD(0.0)), sample_weight=weights, batch_size=16)
    logits = dual(IMAGES, training=True)
    want = float(cross_entropy()(LABELS, logits, weights))
    np.testing.assert_allclose(told["clean_loss"], want, rtol=1e-4)
    np.testing.assert_allclose(told["adversarial_loss"], want, rtol=1e-4)


def test_several_inputs_and_outputs():
    image, number = layers.Input((12, 12, 3), name="image"), layers.Input((2,), name="number")
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(layers.Conv2D(4, 3)(image)))
    x = layers.Concatenate()([x, number])
    model = keras.Model(
        {"image": image, "number": number},
        {"kind": layers.Dense(4, name="kind")(x), "size": layers.Dense(1, name="size")(x)},
    )
    trainer = make_trainer(
        add_auxiliary_batch_norms(model),
        attacked_input="image",
        loss={"kind": cross_entropy(), "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.1},
        metrics={"kind": ["accuracy"]},
    )
    inputs = {"image": IMAGES, "number": np.ones((16, 2), "float32")}
    told = fit(trainer, inputs, {"kind": LABELS, "size": np.ones((16, 1), "float32")})
    assert {"adversarial_kind_accuracy", "kind_accuracy", "adversarial_loss"} <= set(told)
    with pytest.raises(ModelError, match="attacked_input"):
        fit(make_trainer(model), inputs, {"kind": LABELS, "size": np.ones((16, 1))})


def test_clean_epochs_and_schedules():
    dual = add_auxiliary_batch_norms(models3.functional())
    attack = PGD(epsilon=64.0, step_size=64.0, targeted=False, random_start=0.0)
    trainer = make_trainer(dual, attack, clean_epochs=1, optimizer=SGD(0.0))
    rows = trainer.fit(IMAGES, LABELS, epochs=2, batch_size=16, verbose=0).history
    np.testing.assert_allclose(rows["adversarial_loss"][0], rows["clean_loss"][0], rtol=1e-5)
    assert rows["adversarial_loss"][1] > 1.01 * rows["clean_loss"][1]
    step = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.0, 64.0])
    trainer = make_trainer(dual, attack, epsilon_schedule=step, optimizer=SGD(0.0))
    rows = trainer.fit(IMAGES, LABELS, epochs=2, batch_size=16, verbose=0).history
    np.testing.assert_allclose(rows["adversarial_loss"][0], rows["clean_loss"][0], rtol=1e-5)
    assert rows["adversarial_loss"][1] > 1.01 * rows["clean_loss"][1]


def test_a_run_that_was_cut_off_ends_alike(tmp_path):
    """Random starts, targets and clean epochs included."""
    attack = PGD(epsilon=8.0, step_size=8.0, num_classes=4, random_start=0.5)

    def run(epochs, **options):
        keras.utils.set_random_seed(5)
        dual = add_auxiliary_batch_norms(models3.functional())
        trainer = make_trainer(dual, attack, clean_epochs=1, optimizer=SGD(0.05))
        fit(trainer, epochs=epochs, **options)
        return values(dual.weights)

    whole = run(4)
    backup = lambda: keras.callbacks.BackupAndRestore(str(tmp_path / "b"), delete_checkpoint=False)  # noqa: E731
    run(2, callbacks=[backup()])
    for one, other in zip(whole, run(4, callbacks=[backup()])):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        dual = add_auxiliary_batch_norms(models3.functional())
        trainer = make_trainer(dual, PGD(epsilon=4.0, num_steps=2, num_classes=4))
        told = fit(trainer, epochs=2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(list(told.values())).all()
    assert (type(trainer.optimizer).__name__ == "LossScaleOptimizer") == (policy == "mixed_float16")
    norm = norms_of(dual)[0]
    assert np.abs(np.subtract(*values([norm.gamma, norm.aux[0].gamma]))).max() > 0.0


OPTIONS = [
    {"steps_per_execution": 2},
    {"optimizer": lambda: SGD(0.1, gradient_accumulation_steps=2)},
    {"optimizer": lambda: keras.optimizers.Adam(use_ema=True, ema_momentum=0.5)},
    {"jit_compile": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_options_of_compile(options):
    if BACKEND == "torch" and set(options) & {"steps_per_execution", "jit_compile"}:
        pytest.skip("Keras has it for the other backends")
    options = {name: value() if callable(value) else value for name, value in options.items()}
    dual = add_auxiliary_batch_norms(models3.functional())
    told = fit(make_trainer(dual, PGD(num_steps=2, num_classes=4), **options), epochs=2)
    assert np.isfinite(list(told.values())).all()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return IMAGES[8 * index : 8 * index + 8], LABELS[8 * index : 8 * index + 8]


def _as_tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)


def _as_loader():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(IMAGES), torch.tensor(LABELS))
    return torch.utils.data.DataLoader(pairs, batch_size=8)


SOURCES = {
    "arrays": lambda: None,
    "PyDataset": Batches,
    "generator": lambda: iter([Batches()[0], Batches()[1]]),
    "tf.data": _as_tf_data,
    "DataLoader": _as_loader,
}


@pytest.mark.parametrize("source", SOURCES)
def test_sources_give_the_same(source):
    want = None
    for make in (SOURCES["arrays"], SOURCES[source]):
        keras.utils.set_random_seed(3)
        dual = add_auxiliary_batch_norms(models3.functional())
        trainer, batches = make_trainer(dual, metrics=["accuracy"]), make()
        told = fit(trainer) if batches is None else fit(trainer, batches, None, batch_size=None)
        want = want or told
        np.testing.assert_allclose(list(told.values()), list(want.values()), rtol=1e-5)


def test_masks_reach_norms_and_losses_of_both_branches():
    def make():
        inputs = layers.Input((SIZE, SIZE, 3))
        rows = layers.Masking()(layers.Reshape((SIZE, 3 * SIZE))(inputs))
        model = keras.Model(inputs, layers.Dense(4)(layers.BatchNormalization()(rows)))
        model.set_weights([np.full(w.shape, 0.01 * i) for i, w in enumerate(model.get_weights())])
        return model

    images, labels = IMAGES.copy(), np.arange(16 * SIZE).reshape(16, SIZE) % 4
    images[:, SIZE // 2 :] = 0.0  # masked rows
    plain = make()
    plain.compile(SGD(0.0), cross_entropy())
    history = plain.fit(images, labels, batch_size=8, shuffle=False, verbose=0).history
    told = fit(make_trainer(add_auxiliary_batch_norms(make()), STILL, optimizer=SGD(0.0)),
               images, labels)  # fmt: skip
    for name in ("clean_loss", "adversarial_loss"):
        np.testing.assert_allclose(told[name], history["loss"][0], rtol=1e-5)


def test_callbacks_stop_and_save(tmp_path):
    dual = add_auxiliary_batch_norms(models3.functional())
    callbacks = [
        keras.callbacks.EarlyStopping("adversarial_loss", min_delta=1e9, patience=1, mode="min"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss"),
    ]
    trainer = make_trainer(dual)
    options = dict(batch_size=8, epochs=5, verbose=0, validation_data=(IMAGES, LABELS))
    history = trainer.fit(IMAGES, LABELS, callbacks=callbacks, **options).history
    assert len(history["loss"]) == 2
    best = keras.saving.load_model(tmp_path / "best.keras").network
    for found, wanted in zip(values(best.weights), values(dual.weights)):
        np.testing.assert_array_equal(found, wanted)


# Files.


@pytest.mark.parametrize("make", [models3.functional, models3.subclassed])
def test_files_of_converted_and_trained_models(make, tmp_path):
    dual = add_auxiliary_batch_norms(make())
    trainer = make_trainer(dual, metrics=["accuracy"])
    fit(trainer)
    want = [BranchModel(dual, branch).predict(IMAGES, verbose=0) for branch in ("main", "aux")]

    def check(network):
        for branch, outputs in zip(("main", "aux"), want):
            got = BranchModel(network, branch).predict(IMAGES, verbose=0)
            np.testing.assert_allclose(got, outputs, rtol=1e-5, atol=1e-6)

    dual.save(tmp_path / "dual.keras")
    check(keras.saving.load_model(tmp_path / "dual.keras"))
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    check(loaded.network)
    np.testing.assert_allclose(fit(loaded)["loss"], fit(trainer)["loss"], rtol=1e-4)


def test_weights_of_a_plain_model_go_to_all_branches_and_back(tmp_path):
    plain = models3.functional()
    plain.save_weights(tmp_path / "plain.weights.h5")
    dual = add_auxiliary_batch_norms(models3.functional())
    dual.load_weights(tmp_path / "plain.weights.h5")
    want = plain.predict(IMAGES, verbose=0)
    for branch in ("main", "aux"):
        got = BranchModel(dual, branch).predict(IMAGES, verbose=0)
        np.testing.assert_allclose(got, want, atol=1e-6)
    dual.save_weights(tmp_path / "dual.weights.h5")
    other = models3.functional()
    other.load_weights(tmp_path / "dual.weights.h5")
    np.testing.assert_allclose(other.predict(IMAGES, verbose=0), want, atol=1e-6)
    again = add_auxiliary_batch_norms(models3.functional())
    again.load_weights(tmp_path / "dual.weights.h5")
    np.testing.assert_array_equal(
        *values([norms_of(again)[0].aux[0].gamma, norms_of(dual)[0].aux[0].gamma])
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras 2 has no other backend")
@pytest.mark.parametrize("way", ["2 to 3", "3 to 2"])
@pytest.mark.parametrize("given, taken", [(0, 0), (1, 0), (0, 1), (2, 2)])
def test_weights_go_from_one_keras_to_the_other(way, given, taken, tmp_path):
    """Files of `save_weights`, of plain models and of those with branches."""
    keras2 = pytest.importorskip("efficientnet_advprop.keras2").keras
    from efficientnet_advprop import keras as door2
    from efficientnet_advprop import keras3 as door3

    def make(kind, door, aux_branches, seed):
        model = kind.Sequential(
            [
                kind.layers.Input((SIZE, SIZE, 3)),
                kind.layers.DepthwiseConv2D(3),
                kind.layers.BatchNormalization(),
                kind.layers.GlobalAveragePooling2D(),
                kind.layers.Dense(2),
            ]
        )
        if aux_branches:
            door.add_auxiliary_batch_norms(model, aux_branches)
        random = np.random.default_rng(seed)
        model.set_weights([random.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
        names = ["main", "aux", "aux_2"][: 1 + aux_branches]
        return model, [door.BranchModel(model, name) for name in names]

    one, other = (keras2, door2), (keras, door3)
    if way == "3 to 2":
        one, other = other, one
        if taken > given:
            pytest.skip("Keras 2 refuses: load before the conversion")
    source, wanted = make(*one, given, 1)
    target, found = make(*other, taken, 2)
    source.save_weights(tmp_path / "w.weights.h5")
    target.load_weights(tmp_path / "w.weights.h5")
    for index, branch in enumerate(found):
        want = np.asarray(wanted[min(index, given)](IMAGES))
        np.testing.assert_allclose(np.asarray(branch(IMAGES)), want, rtol=1e-4)


def run_python(code, *arguments, **variables):
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        cwd="/", capture_output=True, text=True, env={**os.environ, **variables},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    return told.stdout


def test_a_plain_file_loads_without_this_package_and_on_another_backend(tmp_path):
    dual = add_auxiliary_batch_norms(models3.functional())
    fit(make_trainer(dual))
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "aux.npy", BranchModel(dual, "aux").predict(IMAGES, verbose=0))
    dual.save(tmp_path / "dual.keras")
    plain = remove_auxiliary_batch_norms(dual)
    np.save(tmp_path / "main.npy", plain.predict(IMAGES, verbose=0))
    plain.save(tmp_path / "plain.keras")
    code = (
        "import sys, numpy as np, keras\n"
        "d = sys.argv[1]; x = np.load(d + '/images.npy')\n"
        "def check(model, name):\n"
        "    np.testing.assert_allclose(model.predict(x, verbose=0), np.load(f'{d}/{name}.npy'), atol=1e-4)\n"
        "check(keras.saving.load_model(d + '/plain.keras'), 'main')\n"
        "assert 'efficientnet_advprop' not in sys.modules\n"
        "if len(sys.argv) > 2:\n"
        "    from efficientnet_advprop.keras3 import BranchModel\n"
        "    check(BranchModel(keras.saving.load_model(d + '/dual.keras'), 'aux'), 'aux')\n"
    )
    run_python(code, tmp_path, PYTHONPATH="")
    other = {"tensorflow": "jax", "jax": "tensorflow", "torch": "tensorflow"}[BACKEND]
    run_python(code, tmp_path, "dual", PYTHONPATH=str(ROOT), KERAS_BACKEND=other)


def test_without_tensorflow():
    """Nothing of this room imports it, unless it is the backend."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tensorflow', 'tf_keras'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import efficientnet_advprop.keras3 as door\n"
        "print(door.PGD(num_classes=3).epsilon)"
    )
    backend = "jax" if BACKEND == "tensorflow" else BACKEND
    assert run_python(code, PYTHONPATH=str(ROOT), KERAS_BACKEND=backend).strip() == "1.0"


@pytest.mark.slow
def test_the_notebook(tmp_path, monkeypatch):
    """Its cells, one after the other, as a runtime executes them; all but the installation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((ROOT / "examples/keras_advprop.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[1]["metadata"] == {"tags": ["installation"]}
    names = {"__name__": "__main__"}
    for cell in [cells[0], *cells[2:]]:
        exec("".join(cell["source"]), names)  # noqa: S102
    vanilla, main = names["results"]["vanilla"], names["results"]["AdvProp, main branch"]
    assert main[1] > vanilla[1] and main[0] > 0.5
    assert (tmp_path / "digits_advprop.keras").exists()


# What is refused.


def refused(match, network=None, images=IMAGES, labels=LABELS, **options):
    with pytest.raises(ModelError, match=match):
        network = add_auxiliary_batch_norms(models3.functional()) if network is None else network
        fit(make_trainer(network, **options), images, labels)


def test_refusals_of_arguments():
    refused("fast_advprop", method="fast_advprop")
    refused("`method`", method="advporp")
    refused("1 auxiliary branches", method="vanilla", attack=None)
    refused("0 auxiliary branches", network=models3.functional())
    refused("`attack`", attack=None)
    refused("`augmentation`", augmentation=lambda images: images)
    refused("`clean_epochs`", clean_epochs=-1)
    refused("`pixel_range`", pixel_range=(1.0, 0.0))
    refused("`attack_statistics`", attack_statistics="none")
    refused("`network`", network="no model")
    own = Method((Pass("main", ("clean",)), Pass("aux", ("adversarial",), weight=0.5)))
    assert np.isfinite(
        fit(make_trainer(add_auxiliary_batch_norms(models3.functional()), method=own))["loss"]
    )


def test_refusals_of_the_first_batch():
    targeted = PGD(num_classes=4)
    refused("`pixel_range`", images=IMAGES, pixel_range=(0.0, 1.0))
    refused("shape", images=IMAGES[..., 0])
    refused("`attack.num_classes`", attack=PGD(num_classes=5))
    refused("targeted", attack=targeted, loss="mse", labels=np.eye(4)[LABELS])
    refused("labels of shape", labels=LABELS[:, None, None])
    refused("class numbers", labels=np.eye(4)[LABELS])
    refused("attacked_input", attacked_input="image")


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.SparseCategoricalCrossentropy(name="mine"),
        keras.losses.sparse_categorical_crossentropy,
    ],
)
def test_losses_over_classes_are_known_by_any_name(loss):
    dual = add_auxiliary_batch_norms(models3.functional(activation="softmax"))
    assert "adversarial_loss" in fit(make_trainer(dual, PGD(num_classes=4), loss=loss))


def test_a_model_without_a_compiled_loss():
    dual = add_auxiliary_batch_norms(models3.functional())
    trainer = AdvPropModel(dual, UNTARGETED)
    trainer.compile(SGD(0.1))
    with pytest.raises(ModelError, match="loss"):
        fit(trainer)


class OwnStep(keras.Model):
    def train_step(self, *arguments):
        raise RuntimeError("called")


def test_an_own_step_is_told():
    inputs = layers.Input((12, 12, 3))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(inputs))
    model = OwnStep(inputs, layers.Dense(4)(x))
    with pytest.warns(UserWarning, match="train_step"):
        make_trainer(add_auxiliary_batch_norms(model))


def test_a_loss_without_a_gradient_for_the_images():
    class Blind(layers.Layer):
        def call(self, inputs):
            return keras.ops.stop_gradient(inputs)

    inputs = layers.Input((12, 12, 3))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(Blind()(inputs)))
    dual = add_auxiliary_batch_norms(keras.Model(inputs, layers.Dense(4)(x)))
    if BACKEND == "jax":  # where it is zero
        return
    with pytest.raises(Exception, match="no gradient with respect to the images"):
        fit(make_trainer(dual))


# Devices.


def test_two_devices_give_what_one_gives():
    """No random start; the mean of the devices' moving statistics."""
    if BACKEND == "torch":
        pytest.skip("Keras distributes on the other backends")

    def run():
        keras.utils.set_random_seed(7)
        model = models3.functional()
        if BACKEND == "tensorflow":
            for norm in norms_of(model):
                norm.synchronized = True
        dual = add_auxiliary_batch_norms(model)
        fit(make_trainer(dual, PGD(epsilon=8.0, num_steps=2, targeted=False, random_start=0.0)))
        return values(dual.weights)

    alone = run()
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]).scope():
            together = run()
    else:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        try:
            assert len(keras.distribution.list_devices()) == 2
            together = run()
        finally:
            keras.distribution.set_distribution(None)
    for one, other in zip(alone, together):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_backends_make_the_same_adversarial_images(tmp_path):
    """Of the same weights and start, for a smooth network."""
    model = models3.functional()
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    code = (
        "import sys, numpy as np, keras\n"
        "from efficientnet_advprop.keras3 import PGD\n"
        "d = sys.argv[1]; data = np.load(d + '/data.npz')\n"
        "model = keras.saving.load_model(d + '/model.keras')\n"
        "attack = PGD(epsilon=4.0, step_size=1.0, num_steps=3, targeted=False, random_start=0.0, norm='l2')\n"
        "moved = attack(lambda x: model(x, training=False), data['images'], data['labels'])\n"
        "np.save(f'{d}/{keras.config.backend()}.npy', keras.ops.convert_to_numpy(moved))\n"
    )
    backends = ["tensorflow", "jax"]
    for backend in backends:
        run_python(code, tmp_path, PYTHONPATH=str(ROOT), KERAS_BACKEND=backend)
    one, other = (np.load(tmp_path / f"{backend}.npy") for backend in backends)
    assert np.abs(one - IMAGES).max() > 0.1
    np.testing.assert_allclose(one, other, atol=4e-4)
