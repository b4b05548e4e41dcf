"""Training through `fit`: against the project's own step, Keras's own fit, and
gradients by hand.
"""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, UniformNoise
from efficientnet_advprop.config.methods import METHODS, Method, Pass
from efficientnet_advprop.keras import (
    AdvPropModel,
    BranchModel,
    ModelError,
    add_auxiliary_batch_norms,
    use_branch,
)
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.training import optimizers, steps
from efficientnet_advprop.training.state import TrainState
from tests.conftest import load_tiny, make_tiny, require_xla_for_the_host
from tests.efficientnet_advprop.keras import converted_models as models

layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0, 255, (24, 8, 8, 3)).astype("float32")
LABELS = RANDOM.integers(0, 3, 24)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
UNTARGETED = PGD(epsilon=4.0, step_size=4.0, targeted=False, random_start=0.0)


def make_trainer(
    make=models.sequential,
    attack=UNTARGETED,
    method="advprop",
    loss=CROSS_ENTROPY,
    optimizer="sgd",
    compiled=None,
    seed=1,
    **arguments,
):
    keras.utils.set_random_seed(seed)
    model = make()
    aux_branches = (METHODS[method] if isinstance(method, str) else method).aux_branches
    if aux_branches:
        model = add_auxiliary_batch_norms(model, aux_branches)
    trainer = AdvPropModel(model, attack, method, **arguments)
    trainer.compile(optimizer, loss, metrics=["accuracy"], **(compiled or {}))
    return trainer


def fit(trainer, images=IMAGES, labels=LABELS, **arguments):
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, **arguments}
    return trainer.fit(images, labels, **arguments).history


def weights(model):
    return {variable.name: variable.numpy() for variable in model.variables}


def assert_same_weights(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "method, attack, num_steps",
    [
        ("advprop", PGD(epsilon=4.0, num_steps=2, num_classes=10), 5),
        # Its losses are means of parts, so rounding differs, and signs of the attack
        # with it.
        pytest.param("fast_advprop", PGD(epsilon=4.0, targeted=False), 1, marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_the_projects_own_step(method, attack, num_steps):
    """The same network, once with the branch as an argument, once converted and through
    `fit`.
    """
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (6 * num_steps, 32, 32, 3)).astype("float32")
    labels = random.integers(0, 10, 6 * num_steps).astype("int32")
    own, plain = make_tiny(aux_branches=1), make_tiny(aux_branches=0)
    load_tiny(own.variables)
    load_tiny(plain.variables)
    before = weights(own)
    state = TrainState(own, optimizers.SGD(own.trainable_variables))
    step = tf.function(
        steps.make_train_step(
            method,
            state,
            lambda step: tf.constant(1e-3),
            global_batch_size=6,
            attack=attack,
            attack_statistics="running" if method == "advprop" else "batch",
            label_smoothing=0.0,
            weight_decay=0.0,
            seed=3,
        )
    )
    for start in range(0, 6 * num_steps, 6):
        part = slice(start, start + 6)
        step({"images": tf.constant(images[part]), "labels": tf.constant(labels[part])})
    trainer = AdvPropModel(add_auxiliary_batch_norms(plain), attack, method, seed=3)
    trainer.compile(keras.optimizers.SGD(1e-3), CROSS_ENTROPY)
    fit(trainer, images, labels, batch_size=6)
    found, expected = weights(trainer.network), weights(own)
    difference = sum(np.sum((found[name] - value) ** 2) for name, value in expected.items())
    change = sum(np.sum((before[name] - value) ** 2) for name, value in expected.items())
    assert difference <= (1e-4) ** 2 * change


def test_vanilla_is_keras_own_fit():
    trainer = make_trainer(attack=None, method="vanilla")
    keras.utils.set_random_seed(1)
    own = models.sequential()
    own.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    history = fit(trainer, validation_data=(IMAGES, LABELS))
    expected = fit(own, validation_data=(IMAGES, LABELS))
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5)
    np.testing.assert_allclose(
        trainer.network.get_weights()[0], own.get_weights()[0], rtol=1e-5, atol=1e-6
    )


def decayed():
    model = models.sequential()
    return keras.Sequential(
        [*model.layers[:-1], layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))]
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_is_the_gradient_of_both_losses_and_of_weight_decay_once(jit_compile):
    if jit_compile:
        require_xla_for_the_host()
    # XLA rounds otherwise, so that the sign of a gradient that is almost zero may
    # change; without a step the images are the same, and the rest is compared.
    epsilon = 0.0 if jit_compile else 4.0
    attack = PGD(epsilon=epsilon, step_size=4.0, targeted=False, random_start=0.0, num_classes=3)
    trainer = make_trainer(decayed, attack=attack, compiled=dict(jit_compile=jit_compile))
    network, images, labels = trainer.network, tf.constant(IMAGES[:8]), tf.constant(LABELS[:8])
    with use_branch("aux"), tf.GradientTape() as tape:
        tape.watch(images)
        loss = CROSS_ENTROPY(labels, network(images, training=False))
    signs = tf.sign(tape.gradient(loss, images))
    adversarial = tf.clip_by_value(images + epsilon * signs, 0.0, 255.0)
    before = [variable.numpy() for variable in network.trainable_variables]
    statistics = [variable.numpy() for variable in network.non_trainable_variables]
    with tf.GradientTape() as tape:
        clean_loss = CROSS_ENTROPY(labels, network(images, training=True))
        with use_branch("aux"):
            adversarial_loss = CROSS_ENTROPY(labels, network(adversarial, training=True))
        decay = 0.1 * tf.reduce_sum(tf.square(network.layers[-1].kernel))
        total = clean_loss + adversarial_loss + decay
    gradients = tape.gradient(total, network.trainable_variables)
    moved = [variable.numpy() for variable in network.non_trainable_variables]
    for variable, value in zip(network.non_trainable_variables, statistics):
        variable.assign(value)
    history = fit(trainer, IMAGES[:8], LABELS[:8])
    np.testing.assert_allclose(history["loss"][0], clean_loss + decay, rtol=1e-5)
    np.testing.assert_allclose(history["adversarial_loss"][0], adversarial_loss, rtol=1e-4)
    for variable, old, gradient in zip(network.trainable_variables, before, gradients):
        wanted = old - 0.01 * gradient
        np.testing.assert_allclose(variable, wanted, rtol=1e-4, atol=1e-6, err_msg=variable.name)
    for variable, value in zip(network.non_trainable_variables, moved):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-6, err_msg=variable.name)


def test_other_pixel_ranges_are_the_same_training():
    def from_unit_range():
        model = models.sequential()
        return keras.Sequential([layers.Input((8, 8, 3)), layers.Rescaling(255.0), *model.layers])

    attack = PGD(epsilon=4.0, num_steps=2, num_classes=3)
    usual = make_trainer(attack=attack)
    other = make_trainer(from_unit_range, attack=attack, pixel_range=(0.0, 1.0))
    fit(usual)
    fit(other, IMAGES / 255.0)
    for one, another in zip(usual.network.get_weights(), other.network.get_weights()):
        np.testing.assert_allclose(one, another, rtol=1e-3, atol=1e-4)


def u_net():
    inputs = layers.Input((8, 8, 3))
    fine = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs)))
    coarse = layers.Conv2D(6, 3, padding="same")(layers.MaxPool2D()(fine))
    coarse = layers.UpSampling2D()(layers.ReLU()(layers.BatchNormalization()(coarse)))
    return keras.Model(inputs, layers.Conv2D(3, 1)(layers.concatenate([fine, coarse])))


ONE_HOT = np.eye(3, dtype="float32")[LABELS]
SOFT = keras.losses.CategoricalCrossentropy(from_logits=True)
TARGETED = PGD(epsilon=4.0, step_size=4.0, num_classes=3)
TASKS = {
    "classes, targeted": ({}, dict(attack=TARGETED)),
    "a column of float classes": (dict(labels=LABELS[:, None].astype("float32")), {}),
    "one-hot, targeted": (dict(labels=ONE_HOT), dict(attack=TARGETED, loss=SOFT)),
    "soft labels": (dict(labels=0.9 * ONE_HOT + 0.1 / 3), dict(loss=SOFT)),
    "several labels": (dict(labels=ONE_HOT), dict(loss=keras.losses.BinaryCrossentropy(True))),
    "regression": (dict(labels=ONE_HOT), dict(loss="mse")),
    "class weights": (dict(class_weight={0: 1.0, 1: 2.0, 2: 0.5}), {}),
    "pixels' classes, targeted": (
        dict(labels=RANDOM.integers(0, 3, (24, 8, 8))),
        dict(make=u_net, attack=TARGETED),
    ),
    "pixels' classes with weights": (
        dict(
            labels=RANDOM.integers(0, 3, (24, 8, 8, 1)),
            sample_weight=RANDOM.uniform(0, 1, (24, 8, 8, 1)),
        ),
        dict(make=u_net),
    ),
    "several outputs, one input of two": (
        dict(
            images={"images": IMAGES, "context": np.ones((24, 2), "float32")},
            labels={"classes": LABELS, "value": ONE_HOT[:, :1]},
        ),
        dict(
            make=models.functional,
            loss={"classes": CROSS_ENTROPY, "value": "mse"},
            compiled=dict(loss_weights={"classes": 1.0, "value": 0.5}),
            attacked_input="images",
        ),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task):
    """At the first step the branches are alike, so only the attack tells the losses
    apart.
    """
    data, arguments = TASKS[task]
    trainer = make_trainer(optimizer=keras.optimizers.SGD(0.0), **arguments)
    history = fit(trainer, **{**data, "batch_size": 24})
    gap = history["adversarial_loss"][0] - history["loss"][0]
    # Per pixel and with random labels, a targeted attack hardly moves the mean of the
    # true ones.
    assert gap != 0.0 if trainer.attack.targeted else gap > 1e-4
    assert len(history) % 2 == 0 and all(np.isfinite(values) for values in history.values())


@pytest.mark.parametrize(
    "method", ["adversarial", "adversarial_only", "fine_grained", "fast_advprop", "own row"]
)
def test_methods(method):
    row = Method((Pass("main", ("adversarial",), weight=0.5),)) if method == "own row" else method
    augment = (lambda images: images[:, :, ::-1]) if method == "fine_grained" else None
    trainer = make_trainer(method=row, augmentation=augment)
    before = weights(trainer.network)
    history = fit(trainer)
    views = METHODS[method].views if method in METHODS else ("adversarial",)
    for view in views:
        assert np.isfinite(history["loss" if view == "clean" else f"{view}_loss"][0])
    after = weights(trainer.network)
    still = [name for name, value in before.items() if (value == after[name]).all()]
    assert not still  # every branch's parameters and statistics have moved


def test_clean_epochs_and_an_epsilon_that_follows_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.0, 8.0])  # of steps
    for arguments in (dict(clean_epochs=1), dict(epsilon_schedule=schedule)):
        trainer = make_trainer(optimizer=keras.optimizers.SGD(0.0), **arguments)
        losses = [fit(trainer, initial_epoch=epoch, epochs=epoch + 1) for epoch in (0, 2)]
        gaps = [h["adversarial_loss"][0] - h["loss"][0] for h in losses]
        assert abs(gaps[0]) < 1e-6 and gaps[1] > 1e-3


@pytest.mark.slow
def test_two_replicas_with_synchronised_norms_are_one(two_replicas):
    def synchronised():
        return keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Conv2D(4, 3),
                layers.BatchNormalization(synchronized=True),
                layers.ReLU(),  # else one sign of a gradient decides a whole image
                layers.GlobalAveragePooling2D(),
                layers.Dense(3),
            ]
        )

    one = make_trainer(synchronised)
    with two_replicas.scope():
        two = make_trainer(synchronised)
    histories = [fit(one, validation_data=(IMAGES, LABELS))]
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    histories.append(two.fit(data, verbose=0, validation_data=data).history)
    for name, values in histories[0].items():
        # Keras's variance over replicas is E[x²] − E[x]²; the attack's signs follow the
        # rounding.
        np.testing.assert_allclose(histories[1][name], values, rtol=2e-3, err_msg=name)
    for a, b in zip(one.network.variables, two.network.variables):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3, err_msg=a.name)


def test_float16_with_loss_scale():
    def half():
        policy = keras.mixed_precision.Policy("mixed_float16")
        return keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Conv2D(4, 3, dtype=policy),
                layers.BatchNormalization(dtype=policy),
                layers.GlobalAveragePooling2D(dtype=policy),
                layers.Dense(3, dtype="float32"),
            ]
        )

    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    trainer = make_trainer(half, optimizer=optimizer)
    assert trainer.attack_of_step().loss_scale == 128.0
    before = weights(trainer.network)
    history = fit(trainer)
    after = weights(trainer.network)
    assert history["adversarial_loss"][0] > history["loss"][0]
    assert all((before[name] != after[name]).any() for name in before)


def test_a_fit_that_was_cut_off_ends_with_the_same_weights(tmp_path):
    """`BackupAndRestore` brings back weights, slots, the attack's step and the epoch."""

    class CutOff(Exception):
        pass

    def cut_off(epoch, logs):
        if epoch == 2:
            raise CutOff

    def make(seed):
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        return make_trainer(attack=TARGETED, optimizer=optimizer, clean_epochs=1, seed=seed)

    whole, cut, again = make(1), make(1), make(2)
    fit(whole, epochs=3)
    with pytest.raises(CutOff):
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=cut_off))
        fit(cut, epochs=3, callbacks=callbacks)
    history = fit(
        again, epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")]
    )
    assert len(history["loss"]) == 1
    found, expected = weights(again.network), weights(whole.network)
    for (name, value), other in zip(expected.items(), found.values()):
        np.testing.assert_array_equal(other, value, err_msg=name)
    assert int(again.step_counter) == int(whole.step_counter) == 9


class Batches(keras.utils.Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return IMAGES[8 * index :][:8], LABELS[8 * index :][:8]


def test_every_form_of_data_and_the_usual_callbacks(tmp_path):
    """The same batches in other forms make the same steps; what callbacks save is what
    was trained.
    """
    trainer = make_trainer()
    fit(trainer, validation_split=0.25)  # 18 images train, 6 validate
    begin = trainer.get_weights()

    def trained_on(data, **arguments):
        trainer.set_weights(begin)
        history = trainer.fit(data, verbose=0, **arguments).history
        return [value.copy() for value in trainer.network.get_weights()], history

    expected, _ = trained_on(tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8))
    forms = [(Batches(), dict(shuffle=False)), (iter(Batches()[index] for index in range(3)), {})]
    for data, arguments in forms:
        found, _ = trained_on(data, **arguments)
        for one, other in zip(found, expected):
            np.testing.assert_array_equal(one, other)
    stop = keras.callbacks.EarlyStopping("adversarial_loss", min_delta=1e9, patience=1)
    callbacks = [
        stop,
        keras.callbacks.ModelCheckpoint(f"{tmp_path}/{{epoch}}.keras"),
        keras.callbacks.ModelCheckpoint(f"{tmp_path}/{{epoch}}.weights.h5", save_weights_only=True),
        keras.callbacks.TensorBoard(f"{tmp_path}/board", profile_batch=0),
        keras.callbacks.CSVLogger(f"{tmp_path}/log.csv"),
    ]
    _, history = trained_on(Batches(), shuffle=False, epochs=5, callbacks=callbacks)
    assert len(history["loss"]) == 2 and list((tmp_path / "board").rglob("events*"))
    assert "adversarial_accuracy" in (tmp_path / "log.csv").read_text()
    again = keras.models.load_model(f"{tmp_path}/2.keras")
    later = make_trainer(seed=2)
    later(IMAGES)
    later.load_weights(f"{tmp_path}/2.weights.h5")
    for branch in ("main", "aux"):
        with use_branch(branch):
            wanted = trainer.network(IMAGES)
            for model in (again, later):
                np.testing.assert_allclose(model.network(IMAGES), wanted, rtol=1e-5, atol=1e-6)


class AccumulatingSGD(keras.optimizers.SGD):
    """An optimizer with gradient accumulation of its own: an update at every second
    call.
    """

    def build(self, variables):
        super().build(variables)
        self.sums = [tf.Variable(tf.zeros_like(variable)) for variable in variables]
        self.calls = tf.Variable(0)

    def apply_gradients(self, grads_and_vars, **kwargs):
        gradients, variables = zip(*grads_and_vars)
        if not hasattr(self, "sums"):
            with tf.init_scope():
                self.build(variables)
        self.calls.assign_add(1)
        is_due = tf.cast(self.calls % 2 == 0, tf.float32)
        for total, gradient, variable in zip(self.sums, gradients, variables):
            total.assign_add(gradient / 2)
            variable.assign_sub(is_due * self.learning_rate * total)
            total.assign(total * (1.0 - is_due))


def test_gradients_are_accumulated_by_the_optimizers_own_means():
    """Two steps from the same weights; without a radius, since the attack sees
    statistics move.
    """
    attack = PGD(epsilon=0.0, step_size=1.0, targeted=False, num_classes=3)
    parts = [make_trainer(attack=attack, optimizer=keras.optimizers.SGD(0.1)) for _ in range(2)]
    before = weights(parts[0].network)
    for index, part in enumerate(parts):
        fit(part, IMAGES[8 * index :][:8], LABELS[8 * index :][:8])
    trainer = make_trainer(attack=attack, optimizer=AccumulatingSGD(0.1))
    fit(trainer, IMAGES[:8], LABELS[:8])
    trained = [variable.name for variable in trainer.network.trainable_variables]
    first = {variable.name: variable.numpy() for variable in trainer.network.variables}
    assert [v.numpy().tolist() for v in trainer.network.trainable_variables] == [
        value.tolist() for name, value in zip(first, before.values()) if name in trained
    ]
    fit(trainer, IMAGES[8:16], LABELS[8:16])
    halves = [[v.numpy() for v in part.network.trainable_variables] for part in parts]
    starts = [v for v, name in zip(before.values(), first) if name in trained]
    for variable, start, one, other in zip(trainer.network.trainable_variables, starts, *halves):
        wanted = start + ((one - start) + (other - start)) / 2
        np.testing.assert_allclose(variable, wanted, rtol=1e-4, atol=1e-6, err_msg=variable.name)


def test_several_steps_in_one_execution_are_the_same_steps():
    one, three = make_trainer(), make_trainer(compiled=dict(steps_per_execution=3))
    fit(one)
    fit(three)
    for a, b in zip(one.network.get_weights(), three.network.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_the_step_is_one_xla_program():
    """What `TPUStrategy` and `jit_compile` need: no op without a kernel in XLA, no call
    of the host.
    """
    trainer = make_trainer(attack=PGD(epsilon=4.0, num_steps=3, num_classes=3))
    trainer.optimizer.build(trainer.network.trainable_variables)
    step = tf.function(lambda *batch: trainer.train_step(batch), jit_compile=True)
    ir = step.experimental_get_compiler_ir(tf.constant(IMAGES), tf.constant(LABELS))
    text = ir(stage="hlo")
    assert text.count("ENTRY") == 1 and "while(" in text
    assert not any(word in text for word in ("outfeed", "infeed", "callback"))


def test_evaluation_by_branch():
    trainer = make_trainer()
    fit(trainer, epochs=2)
    aux = BranchModel(trainer.network, "aux")
    aux.compile(loss=CROSS_ENTROPY, metrics=["accuracy"])
    main = trainer.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert main.keys() == {"loss", "accuracy"}
    main_loss = float(CROSS_ENTROPY(LABELS, trainer.network(IMAGES)))
    assert main["loss"] == pytest.approx(main_loss, rel=1e-5)
    with use_branch("aux"):
        expected = float(CROSS_ENTROPY(LABELS, trainer.network(IMAGES)))
    assert aux.evaluate(IMAGES, LABELS, verbose=0)[0] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - main_loss) > 1e-4


def hidden_function():
    """A batch norm inside a `tf.function` that no layer holds."""

    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm, self.head = layers.BatchNormalization(), layers.Dense(3)

        def call(self, inputs, training=None):
            return self.head(tf.reduce_mean(FUNCTIONS[id(self)](inputs, training), [1, 2]))

    model = Hidden()
    FUNCTIONS[id(model)] = tf.function(lambda x, training: model.norm(x, training=training))
    model(IMAGES)
    return model


def rounded():
    """Outputs that cannot be differentiated."""
    model = models.sequential()
    return keras.Sequential([*model.layers, layers.Lambda(tf.round)])


def two_images():
    """The second input is cut off from the outputs' gradient."""
    images, mask = layers.Input((8, 8, 3), name="images"), layers.Input((8, 8, 3), name="mask")
    stopped = layers.Lambda(tf.stop_gradient)(mask)
    x = layers.BatchNormalization()(layers.add([images, stopped]))
    return keras.Model([images, mask], layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


FUNCTIONS = {}
REFUSED = {
    "has 5 classes|outputs have 3 classes": (dict(attack=PGD(num_classes=5)), {}),
    "hold values from": (dict(pixel_range=(0.0, 1.0)), {}),
    "wants class numbers": ({}, dict(labels=ONE_HOT[:, :2])),
    "cannot take the labels": (dict(loss=SOFT), {}),
    "knows no classes": (dict(attack=TARGETED, loss="mse"), {}),
    "no gradient with respect to the images": (dict(loss=lambda y, x: tf.round(x)), {}),
    "no gradient with respect to the images: .*rounding": (dict(make=rounded), {}),
    "no gradient with respect to the input 1": (
        dict(make=two_images, attacked_input=1),
        dict(images=[IMAGES, IMAGES]),
    ),
    "must say which of the inputs": (
        dict(make=models.functional, loss={"classes": CROSS_ENTROPY, "value": "mse"}),
        dict(
            images={"images": IMAGES, "context": np.ones((24, 2))},
            labels={"classes": LABELS, "value": ONE_HOT[:, :1]},
        ),
    ),
    "the model has one input": (dict(attacked_input="pixels"), {}),
    "have shape": ({}, dict(images=IMAGES[..., 0])),
    "a tf.function that is no attribute": (dict(make=hidden_function), {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_trained_is_refused_before_the_first_step(message):
    arguments, data = REFUSED[message]
    trainer = make_trainer(**arguments)
    before = weights(trainer.network)
    with pytest.raises(ModelError, match=message) as error:
        fit(trainer, **data)
    assert len(str(error.value).splitlines()) <= 10 and "File " not in str(error.value)
    if trainer.network.built:
        after = weights(trainer.network)
        assert all((after[name] == value).all() for name, value in before.items())


def test_pixels_of_a_dataset_out_of_range_are_refused():
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    with pytest.raises(ModelError, match="`pixel_range` does not fit: .* black is 0 and white 1"):
        make_trainer(pixel_range=(0.0, 1.0)).fit(data, verbose=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(method="madry"), "`method` is 'madry'"),
        (dict(attack=None), "needs one"),
        (dict(method="fine_grained"), "exactly 2.*aux_branches=2"),
        (dict(method="vanilla", attack=None), "exactly 0.*remove_auxiliary_batch_norms"),
        (dict(method="fast_advprop", attack=TARGETED), "`attack.targeted` is True"),
        (dict(augmentation=lambda images: images), "sees no augmented images"),
        (dict(clean_epochs=-1), "`clean_epochs` is -1"),
        (dict(pixel_range=(1.0, 0.0)), "`pixel_range` is"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    network = add_auxiliary_batch_norms(models.sequential())
    with pytest.raises(ModelError, match=message):
        AdvPropModel(network, **{"attack": UniformNoise(), **arguments})
