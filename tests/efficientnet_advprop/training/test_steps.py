"""The step against the official training graph, and the paper's invariants: who moves
what, once, and on which images.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf

from advprop_preflight import preflight_results, tpu_compiler
from efficientnet_advprop.attacks import PGD, AttackError, UniformNoise
from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.config.methods import METHODS, Method, Pass
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.training import (
    losses,
    optimizers,
    passes,
    steps,
)
from efficientnet_advprop.training.losses import LossScale
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import (
    ExponentialMovingAverage,
    Role,
    TrainState,
    averaged_variables,
    role_of,
)
from tests.conftest import golden, load_tiny, make_tiny
from tpu_utils import randomness, replica_runtime

SIZE = 32  # pixels: tracing costs the same, computing less
CONFIG = ExperimentConfig()
CONFIG.data.image_size = SIZE
RATE_ONE = LearningRate(1.0, 1.0, "constant", warmup_epochs=0)


def batch(count=4, seed=0):
    random = np.random.RandomState(seed)
    return {
        "images": tf.constant(random.randint(0, 256, [count, SIZE, SIZE, 3]), tf.uint8),
        "labels": tf.constant(random.randint(0, 10, [count]), tf.int32),
    }


def state_of(model, kind=optimizers.SGD):
    averages = ExponentialMovingAverage(averaged_variables(model))
    return TrainState(model, kind(model.trainable_variables), averages)


def make_state(**overrides):
    model = make_tiny(**overrides)
    load_tiny(model.variables)
    return state_of(model)


def traced_step(method, state, **arguments):
    """A step by SGD with rate 1 on four images, without weight decay."""
    arguments = {"global_batch_size": 4, "weight_decay": 0.0, **arguments}
    return tf.function(steps.make_train_step(method, state, RATE_ONE, **arguments))


class Small(keras.Model):
    """A convolution, a batch norm with branches and a classifier, for what no network
    of more layers shows better: its steps are traced in a tenth of the time.
    """

    def __init__(self, aux_branches=0, **options):
        super().__init__(name="small")
        self.aux_branches = aux_branches
        self.convolution = keras.layers.Conv2D(4, 3, 2, use_bias=False, name="conv")
        self.norm = DualBatchNormalization(aux_branches, name="norm", **options)
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(10, name="dense")
        self.build([None, SIZE, SIZE, 3])

    def call(self, images, training=False, branch="main", update_statistics=True, seed=None):
        inputs = self.convolution(tf.cast(images, tf.float32) / 255.0)
        mode = dict(training=training, branch=branch, update_statistics=update_statistics)
        return self.dense(self.pool(tf.nn.relu(self.norm(inputs, **mode))))


def make_small(aux_branches=0, **options):
    """The same weights each time."""
    keras.utils.set_random_seed(1)
    return Small(aux_branches, **{"group_size": 1, **options})


def small_state(aux_branches=0, **options):
    return state_of(make_small(aux_branches, **options))


def values(state):
    return {variable.name: variable.numpy() for variable in state.model.variables}


@pytest.mark.parametrize("name", ["rmsprop", "momentum"])
def test_follows_the_official_training_graph(name):
    numbers, recorded = golden("train.npz"), golden("train.json")["model_fn_train"][name]
    setting = recorded["flags"]
    model = make_tiny(aux_branches=0, normalization="imagenet")
    optimizer = optimizers.make_optimizer(name, model.trainable_variables)
    ema = ExponentialMovingAverage(averaged_variables(model), setting["moving_average_decay"])
    state = TrainState(model, optimizer, ema)
    load_tiny(model.variables)
    load_tiny(ema.shadows)
    state.step.assign(recorded["global_step_before"])
    rate = LearningRate(
        recorded["scaled_learning_rate"],
        recorded["steps_per_epoch"],
        setting["lr_schedule"],
        setting.get("lr_decay_factor", 0.97),
        setting.get("lr_decay_epoch", 2.4),
        setting["lr_warmup_epochs"],
    )
    train_step = tf.function(
        steps.make_train_step(
            "vanilla", state, rate, global_batch_size=6, label_smoothing=setting["label_smoothing"],
            weight_decay=setting["weight_decay"],
        )
    )  # fmt: skip
    slots = [slot for kind in ("mean_squares", "momenta") for slot in getattr(optimizer, kind, [])]
    found = {
        variable.name.split(":")[0]: variable
        for variable in [*model.variables, *ema.shadows, *slots]
    }
    prefix = f"step_{name}__"
    recorded_names = [key for key in numbers.files if key.startswith(prefix)]
    assert len(recorded_names) > 20
    for t in range(recorded["steps"]):
        order = numbers[f"step_{name}_batch_order"][t]
        decay = setting["weight_decay"] * sum(
            tf.nn.l2_loss(variable) for variable in losses.decayed_variables(model)
        )
        sums = train_step(
            {
                "images": tf.constant(numbers["images"][order]),
                "labels": tf.constant(numbers["labels"][order]),
            }
        )
        np.testing.assert_allclose(
            sums["clean_loss"] / 6 + decay, numbers[f"step_{name}_loss"][t], rtol=2e-5
        )
        for key in recorded_names:
            wanted = numbers[key][t]
            # 3e-5 of the largest value is the official code's own float noise between
            # two TensorFlow versions; the momenta after one step are a single
            # gradient's rounding, which the README puts at the same 3e-5 and which
            # measured 4.7e-5 here.
            np.testing.assert_allclose(
                found[key.removeprefix(prefix).replace("|", "/")],
                wanted,
                rtol=0,
                atol=6e-5 * np.abs(wanted).max(),
                err_msg=key,
            )
    assert int(state.step) == recorded["global_step_after_each"][-1]


# In a graph, like the steps: TensorFlow's kernels for single operations round otherwise,
# and a shift before the next batch norm has no gradient but rounding, of what cancels
# there.
@tf.function(autograph=False)
def gradients_by_hand(model, images, labels, branch):
    with tf.GradientTape() as tape:
        logits = model(tf.cast(images, tf.float32), training=True, branch=branch)
        loss = tf.reduce_mean(losses.cross_entropy(labels, logits, 0.1))
    return tape.gradient(loss, model.trainable_variables), loss


@functools.lru_cache(maxsize=None)
def one_advprop_step():
    """One AdvProp step by SGD with rate 1, and everything that can be seen of it;
    traced once for the tests below.
    """
    state, data = make_state(), batch()
    for variable in state.model.variables:  # so that it shows which branch was used
        if role_of(variable.name) is Role.AUX:
            variable.assign(variable * 0.8 + 0.05)
    attack = PGD(4.0, 2.0, 3, random_start=1.0, num_classes=10)
    outputs = {}

    def spying_attack(logits_fn, images, *arguments):
        outputs["attacked_logits"] = logits_fn(tf.cast(images, tf.float32))
        outputs["adversarial_images"] = attack(logits_fn, images, *arguments)
        return outputs["adversarial_images"]

    train_step = steps.make_train_step(
        "advprop",
        state,
        RATE_ONE,
        global_batch_size=4,
        attack=spying_attack,
        label_smoothing=0.1,
        weight_decay=1e-2,
    )

    @tf.function
    def run(data):
        sums = train_step(data)
        return sums, outputs["adversarial_images"], outputs["attacked_logits"]

    before = values(state)
    return data, before, *run(data), values(state)


def model_as_before():
    """The model of that step, with the values that it had."""
    _, before, *_ = one_advprop_step()
    model = make_tiny()
    for variable in model.variables:
        variable.assign(before[variable.name])
    return model


def test_advprop_is_the_sum_of_both_losses_gradients_and_of_weight_decay():
    data, before, sums, adversarial_images, _, after = one_advprop_step()
    model = model_as_before()
    clean, clean_loss = gradients_by_hand(model, data["images"], data["labels"], "main")
    adversarial, adversarial_loss = gradients_by_hand(
        model, adversarial_images, data["labels"], "aux"
    )
    np.testing.assert_allclose(sums["clean_loss"] / 4, clean_loss, rtol=1e-4)
    np.testing.assert_allclose(sums["adversarial_loss"] / 4, adversarial_loss, rtol=1e-4)
    for variable, first, second in zip(model.trainable_variables, clean, adversarial):
        role = role_of(variable.name)
        assert ((first is not None), (second is not None)) == {
            Role.SHARED: (True, True), Role.MAIN: (True, False), Role.AUX: (False, True)
        }[role], variable.name  # fmt: skip
        total = sum(gradient for gradient in (first, second) if gradient is not None)
        if role is Role.SHARED:
            total += 1e-2 * before[variable.name]
        moved = before[variable.name] - after[variable.name]
        scale = max(np.abs(total).max(), 1.0)
        np.testing.assert_allclose(moved, total, rtol=0, atol=3e-5 * scale, err_msg=variable.name)


def test_each_branchs_statistics_move_once_by_its_own_images():
    data, before, _, adversarial_images, _, after = one_advprop_step()
    for images, branch in [(data["images"], "main"), (adversarial_images, "aux")]:
        model = model_as_before()
        model(tf.cast(images, tf.float32), training=True, branch=branch)
        role = Role.MAIN if branch == "main" else Role.AUX
        moved = [v for v in model.variables if "moving" in v.name and role_of(v.name) is role]
        assert moved
        for variable in moved:
            assert not np.array_equal(after[variable.name], before[variable.name])
        assert_statistics(moved, after)


def test_the_step_attacks_the_auxiliary_branch_in_inference_mode():
    data, _, _, _, attacked_logits, _ = one_advprop_step()
    model = model_as_before()
    images = tf.cast(data["images"], tf.float32)
    np.testing.assert_allclose(attacked_logits, model(images, branch="aux"), rtol=0, atol=1e-4)
    assert np.abs(attacked_logits - model(images, branch="main")).max() > 1e-2
    assert np.abs(attacked_logits - model(images, training=True, branch="aux")).max() > 1e-2


def test_adversarial_images_stay_in_the_ball_in_pixels():
    data, _, _, adversarial_images, _, _ = one_advprop_step()
    distance = np.abs(adversarial_images - tf.cast(data["images"], tf.float32))
    assert 3.9 < distance.max() <= 4.0 + 1e-4


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_attack_goes_through_the_auxiliary_branch_and_changes_nothing(statistics):
    state, data = small_state(aux_branches=1), batch()
    images = tf.cast(data["images"], tf.float32)
    for variable in state.model.variables:  # a main branch that would give the attack away
        if role_of(variable.name) is Role.MAIN:
            variable.assign(variable * 0.7 + 0.1)
    before = values(state)
    attack = PGD(2.0, 1.0, 2, random_start=0.0, targeted=False)
    network = passes.attacked_network(state.model, "aux", statistics)
    adversarial_images = attack(network, images, data["labels"])
    for name, value in values(state).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    alone = make_small()  # the auxiliary branch's values where only they can be used
    for variable in alone.variables:
        variable.assign(
            before.get(variable.name.replace("norm/", "norm/aux/"), before[variable.name])
        )
    wanted = attack(
        lambda x: alone(x, training=statistics == "batch", update_statistics=False),
        images,
        data["labels"],
    )
    assert np.mean(np.abs(adversarial_images - wanted) > 1e-3) < 1e-3


def one_batch_of_both(method, state, plain):
    """Runs a step that trains clean and adversarial images in one batch.

    Returns:
        Values before and after, and the gradients of the plain network on both halves: twice
        their mean over 8, since the loss is a sum of two means over 4.
    """
    data = batch()
    attack = PGD(4.0, 2.0, 1, random_start=0.0, targeted=False)
    images = tf.cast(data["images"], tf.float32)
    adversarial_images = attack(lambda x: plain(x), images, data["labels"])
    train_step = traced_step(method, state, attack=attack)
    before = values(state)
    sums = train_step(data)
    both = tf.concat([images, adversarial_images], 0), tf.concat([data["labels"]] * 2, 0)
    gradients, loss = gradients_by_hand(plain, *both, "main")
    np.testing.assert_allclose((sums["clean_loss"] + sums["adversarial_loss"]) / 8, loss, rtol=1e-4)
    assert_statistics(plain.variables, values(state))
    return before, values(state), [2.0 * gradient.numpy() for gradient in gradients]


def test_adversarial_training_mixes_both_in_one_batch_of_the_main_branch():
    plain = make_small()
    before, after, gradients = one_batch_of_both("adversarial", small_state(), plain)
    assert_moved_by(before, after, plain.trainable_variables, gradients, tolerance=3e-4)


@pytest.mark.parametrize("is_tiny", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shared_moments_are_those_of_one_batch_of_both_halves(is_tiny):
    """With equal γ and β that is the plain network on the concatenated batch."""
    state = (make_state if is_tiny else small_state)(aux_branches=1, aux_shares="moments")
    plain = make_tiny(aux_branches=0) if is_tiny else make_small()
    if is_tiny:
        load_tiny(plain.variables)
    before, after, gradients = one_batch_of_both("advprop", state, plain)
    moved = {name: before[name] - after[name] for name in before}
    for variable, gradient in zip(plain.trainable_variables, gradients):
        leaf = variable.name.rpartition("/")[2]
        parts = [variable.name]
        if leaf in ("gamma:0", "beta:0"):  # each half has its own share of them
            parts.append(variable.name.replace(leaf, f"aux/{leaf}"))
            assert np.abs(moved[parts[0]] - moved[parts[1]]).max() > 1e-4
        total = sum(moved[part] for part in parts)
        scale = max(np.abs(gradient).max(), 0.3)
        np.testing.assert_allclose(total, gradient, rtol=0, atol=1e-3 * scale, err_msg=parts[0])
    with pytest.raises(ValueError, match="`aux_shares` is 'moments', which puts all images"):
        steps.make_train_step(
            "fast_advprop", state, RATE_ONE, global_batch_size=4, **make_attack("fast_advprop")
        )


def assert_moved_by(before, after, trained, gradients, tolerance=1e-3):
    """That SGD with rate 1 moved each of `trained` by its gradient.

    In batches of few images rounding grows.
    """
    for variable, gradient in zip(trained, gradients):
        moved, scale = (
            before[variable.name] - after[variable.name],
            max(np.abs(gradient).max(), 0.3),
        )
        np.testing.assert_allclose(
            moved, gradient, rtol=0, atol=tolerance * scale, err_msg=variable.name
        )


def assert_statistics(variables, after):
    """That the running statistics among `variables` are those in `after`."""
    for variable in variables:
        if "moving" in variable.name:
            np.testing.assert_allclose(
                after[variable.name], variable, rtol=1e-4, atol=1e-5, err_msg=variable.name
            )


def test_fine_grained_advprop_and_more_branches_by_hand():
    method = Method((*METHODS["fine_grained"].passes, Pass("aux_3", ("augmented",), weight=0.5)))
    state, data, seen = small_state(aux_branches=3), with_views(batch()), {}

    def attack(logits_fn, images, labels, seed):
        seen["adversarial"] = UniformNoise(8.0)(logits_fn, images, labels, seed)
        return seen["adversarial"]

    before = values(state)
    train_step = traced_step(method, state, attack=attack).python_function
    sums, adversarial_images = tf.function(lambda data: (train_step(data), seen["adversarial"]))(
        data
    )
    model = make_small(aux_branches=3)
    totals = [0.0 for _ in model.trainable_variables]
    shown = [
        ("clean", data["images"], "main", 1.0),
        ("augmented", data["augmented_images"], "aux", 1.0),
        ("adversarial", adversarial_images, "aux_2", 1.0),
        ("augmented", data["augmented_images"], "aux_3", 0.5),
    ]
    for view, images, branch, weight in shown:
        gradients, loss = gradients_by_hand(model, images, data["labels"], branch)
        totals = [
            total if own is None else total + weight * own for total, own in zip(totals, gradients)
        ]
        np.testing.assert_allclose(sums[f"{view}_loss"] / 4, loss, rtol=1e-4)
    assert_moved_by(before, values(state), model.trainable_variables, totals)
    assert_statistics(model.variables, values(state))


def test_fast_advprop_by_hand():
    state, data, seen = small_state(aux_branches=1), batch(30), {}

    class SpyingPGD(PGD):
        def move(self, images, adversarial_images, gradients):
            moved = super().move(images, adversarial_images, gradients)
            seen.update(images=images, noisy=adversarial_images, adversarial=moved)
            return moved

    attack = SpyingPGD(4.0, 4.0, 1, targeted=False, random_start=1.0)
    before = values(state)
    train_step = traced_step(
        "fast_advprop", state, global_batch_size=30, attack=attack, attack_statistics="batch"
    ).python_function
    sums, found = tf.function(lambda data: (train_step(data), dict(seen)))(data)
    # A fifth of the batch, whichever it is, and its labels; the others stay clean.
    all_images = tf.cast(data["images"], tf.float32)
    chosen = [
        int(np.flatnonzero((all_images == image).numpy().all((1, 2, 3)))[0])
        for image in found["images"]
    ]
    others = np.setdiff1d(np.arange(30), chosen)
    assert len(set(chosen)) == 6
    labels = tf.gather(data["labels"], chosen)
    assert (
        1.9 < np.abs(found["noisy"] - found["images"]).mean() + 0.15 < 2.2
    )  # uniform in ±4, clipped at 0 and 255

    model = make_small(aux_branches=1)
    trained = model.trainable_variables
    with tf.GradientTape() as tape:  # one pass: for the images and for the weights
        tape.watch(found["noisy"])
        logits = model(found["noisy"], training=True, branch="aux", update_statistics=False)
        loss = tf.reduce_sum(losses.cross_entropy(labels, logits, 0.1))
    *noisy_gradients, image_gradients = tape.gradient(loss, [*trained, found["noisy"]])
    np.testing.assert_allclose(sums["noisy_loss"] / 30, loss / 6, rtol=1e-3)
    lower, upper = (np.clip(found["images"] + shift, 0, 255) for shift in (-4.0, 4.0))
    wanted = np.clip(found["noisy"] + 4.0 * np.sign(image_gradients), lower, upper)
    assert np.mean(np.abs(wanted - found["adversarial"]) > 1e-3) < 1e-2
    clean_gradients, clean_loss = gradients_by_hand(
        model, tf.gather(all_images, others), tf.gather(data["labels"], others), "main"
    )
    adversarial_gradients, adversarial_loss = gradients_by_hand(
        model, found["adversarial"], labels, "aux"
    )
    np.testing.assert_allclose(sums["clean_loss"] / 30, clean_loss, rtol=1e-3)
    np.testing.assert_allclose(sums["adversarial_loss"] / 30, adversarial_loss, rtol=1e-3)
    # Weights 1, ½, ½; each variable's sum over the images that it saw, divided by their
    # weighted number.
    wanted = []
    for variable, clean, noisy, adversarial in zip(
        trained, clean_gradients, noisy_gradients, adversarial_gradients
    ):
        role = role_of(variable.name)
        if role is Role.MAIN:
            assert noisy is None and adversarial is None
            wanted.append(clean)  # the mean over 24
        elif role is Role.AUX:
            assert clean is None
            wanted.append((0.5 * noisy + 0.5 * 6 * adversarial) / (0.5 * 6 + 0.5 * 6))
        else:
            wanted.append(
                (24 * clean + 0.5 * noisy + 0.5 * 6 * adversarial) / (24 + 0.5 * 6 + 0.5 * 6)
            )
    assert_moved_by(before, values(state), trained, wanted)
    assert_statistics(model.variables, values(state))  # the noisy pass moved none


def test_images_are_shuffled_over_replicas_with_their_labels(two_replicas):
    @tf.function
    def run():
        def replica():
            labels = replica_runtime.current().replica_id * 8 + tf.range(8)
            images = tf.cast(tf.reshape(labels, [8, 1, 1, 1]), tf.uint8)
            seed = randomness.fold_in(tf.constant([1, 2]), replica_runtime.current().replica_id)
            return passes.shuffle_over_replicas(images, labels, seed)

        return two_replicas.run(replica)

    images, labels = (np.stack(two_replicas.experimental_local_results(values)) for values in run())
    np.testing.assert_array_equal(images.reshape(2, 8), labels)
    assert (
        sorted(labels.ravel()) == list(range(16)) and ((labels < 8).sum(1) == 4).all()
    )  # half of each replica's
    assert not (np.diff(labels) > 0).all(1).any()


def test_class_weights_for_labels():
    state, data = small_state(), batch()
    before = values(state)
    train_step = traced_step("vanilla", state)
    other = (data["labels"] + 3) % 10
    weights = 0.75 * tf.one_hot(data["labels"], 10) + 0.25 * tf.one_hot(other, 10)
    sums = train_step({"images": data["images"], "labels": weights})
    model = make_small()
    (first, first_loss), (second, second_loss) = (
        gradients_by_hand(model, data["images"], labels, "main")
        for labels in (data["labels"], other)
    )
    np.testing.assert_allclose(
        sums["clean_loss"] / 4, 0.75 * first_loss + 0.25 * second_loss, rtol=1e-4
    )
    hits = (
        tf.argmax(model(data["images"], training=True, update_statistics=False), -1, tf.int32)
        == data["labels"]
    )
    assert sums["clean_correct"] == np.sum(hits)
    totals = [0.75 * a + 0.25 * b for a, b in zip(first, second)]
    assert_moved_by(before, values(state), model.trainable_variables, totals)


class Linear(keras.Model):
    """The least that a step trains: its losses and gradients are known by hand."""

    aux_branches = 0

    def __init__(self, num_classes=5, is_normalized=False):
        super().__init__(name="linear")
        self.flatten = keras.layers.Flatten()
        self.norm = DualBatchNormalization(0, momentum=0.75) if is_normalized else None
        self.dense = keras.layers.Dense(num_classes, name="dense")
        self.build([None, 2, 2, 3])

    def call(self, images, training=False, branch="main", update_statistics=True, seed=None):
        inputs = self.flatten(tf.cast(images, tf.float32) / 255.0)
        if self.norm is not None:
            mode = dict(training=training, branch=branch, update_statistics=update_statistics)
            inputs = self.norm(inputs, **mode)
        return self.dense(inputs)


def linear_step():
    keras.utils.set_random_seed(1)
    state = TrainState(model := Linear(), optimizers.SGD(model.trainable_variables))
    step = traced_step("vanilla", state, label_smoothing=0.0)
    images = np.random.RandomState(0).randint(0, 256, [4, 2, 2, 3]).astype(np.uint8)
    return model, step, tf.constant(images)


@pytest.mark.parametrize("targeted", [False, True])
def test_adversarial_only_in_closed_form(targeted):
    """Of two classes only one is wrong, so that the aim of a targeted attack is known,
    too.
    """
    keras.utils.set_random_seed(2)
    model = Linear(num_classes=2, is_normalized=True)
    state = TrainState(model, optimizers.SGD(model.trainable_variables))
    kernel, bias = model.dense.kernel.numpy(), model.dense.bias.numpy()
    images = np.random.RandomState(0).randint(0, 256, [4, 2, 2, 3]).astype(np.uint8)
    labels = np.array([1, 0, 0, 1])
    attack = PGD(8.0, 8.0, 1, targeted=targeted, random_start=0.0, num_classes=2)
    step = traced_step("adversarial_only", state, attack=attack)
    sums = step({"images": tf.constant(images), "labels": tf.constant(labels)})
    # The attack sees running statistics, here 0 and 1, so that the loss rises along the
    # difference of the two classes' weights, whatever the probabilities are.
    rises = np.sign(kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    attacked = np.clip(images + 8.0 * rises, 0.0, 255.0).reshape(4, -1) / 255.0
    mean, variance = attacked.mean(0), attacked.var(0)
    normalized = (attacked - mean) / np.sqrt(variance + 1e-3)
    logits = normalized @ kernel + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    smoothed = 0.9 * np.eye(2)[labels] + 0.05
    assert set(sums) == {"adversarial_loss", "adversarial_correct", "num_images"}
    np.testing.assert_allclose(
        sums["adversarial_loss"], -np.sum(smoothed * np.log(probabilities)), rtol=1e-5
    )
    assert sums["adversarial_correct"] == np.sum(logits.argmax(1) == labels)
    of_logits = (probabilities - smoothed) / 4
    of_normalized = of_logits @ kernel.T
    norm = model.norm
    for variable, wanted in (
        (model.dense.kernel, kernel - normalized.T @ of_logits),
        (model.dense.bias, bias - of_logits.sum(0)),
        (norm.gamma, 1.0 - (normalized * of_normalized).sum(0)),
        (norm.beta, -of_normalized.sum(0)),
        # Once, by the adversarial images.
        (norm.moving_mean, 0.25 * mean),
        (norm.moving_variance, 0.75 + 0.25 * variance),
    ):
        np.testing.assert_allclose(variable, wanted, rtol=0, atol=1e-5, err_msg=variable.name)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "uint64", "float32"])
def test_labels_of_any_form_give_the_same_step(dtype):
    classes = np.array([3, 0, 4, 1])
    model, step, images = linear_step()
    logits = model(images).numpy()
    wanted = np.sum(np.log(np.exp(logits).sum(1)) - logits[np.arange(4), classes])
    labels = np.eye(5)[classes] if dtype == "float32" else classes[:, None]
    sums = step({"images": images, "labels": tf.constant(labels.astype(dtype))})
    np.testing.assert_allclose(sums["clean_loss"], wanted, rtol=1e-5)
    assert sums["clean_correct"] == np.sum(logits.argmax(1) == classes)
    assert sums["num_images"] == 4.0
    bias = np.mean(np.eye(5)[classes] - np.exp(logits) / np.exp(logits).sum(1)[:, None], axis=0)
    np.testing.assert_allclose(model.dense.bias, bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "labels, said",
    [
        (np.eye(6)[[3, 0, 4, 1]], r"shape \(4, 6\).*\[batch, 5\]"),
        (np.array([3.0, 0.0, 4.0, 1.0]), r"float64 of shape \(4,\).*integer type"),
        (np.array([3, 0, 4]), r"shape \(3,\), but there are 4 images"),
        (np.array([3, 0, 4, 5]), r"hold 5, but classes must be in \[0, 5\)"),
    ],
)
def test_labels_that_do_not_fit_move_nothing(labels, said):
    model, step, images = linear_step()
    before = model.get_weights()
    with pytest.raises(AttackError, match=f"(?s)`labels` .*{said}"):
        step.python_function({"images": images, "labels": tf.constant(labels)})
    for value, earlier in zip(model.get_weights(), before):
        np.testing.assert_array_equal(value, earlier)


def test_a_traced_step_counts_no_label_that_is_no_class():
    model, step, images = linear_step()
    sums = step({"images": images, "labels": tf.constant([3, 0, 4, 5])})
    assert np.isnan(sums["clean_loss"])  # which ends a run: `loop` stops where a loss is not finite
    assert all(np.isfinite(value).all() for value in model.get_weights())


def test_the_loss_scale_cancels_and_an_update_that_overflows_is_left_out():
    state, data, plain = small_state(), batch(), make_small()
    state.loss_scale = LossScale(initial=2.0**15)
    train_step = traced_step("vanilla", state)
    gradients, _ = gradients_by_hand(plain, data["images"], data["labels"], "main")
    before = values(state)
    train_step(data)
    assert_moved_by(before, values(state), plain.trainable_variables, gradients)
    assert_statistics(plain.variables, values(state))
    assert (state.loss_scale.scale.numpy(), state.loss_scale.num_finite.numpy()) == (2.0**15, 1)

    state.model.dense.kernel.assign(1e3 * state.model.dense.kernel)  # larger gradients below it
    state.loss_scale.scale.assign(3e38)
    before, averages = values(state), [shadow.numpy() for shadow in state.ema.shadows]
    sums = train_step(data)
    assert np.isfinite(sums["clean_loss"])
    for name, value in values(state).items():  # weights and statistics
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for shadow, value in zip(state.ema.shadows, averages):
        np.testing.assert_array_equal(shadow, value, err_msg=shadow.name)
    assert state.loss_scale.scale.numpy() == np.float32(3e38) * np.float32(0.5)
    assert (state.loss_scale.num_finite.numpy(), state.step.numpy()) == (0, 2)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_an_attack_with_running_statistics_adds_no_collective(statistics):
    network = passes.attacked_network(make_small(1, group_size=2), "aux", statistics)
    attack, specs = PGD(2.0, 1.0, 2, num_classes=10), preflight_results.batch_specs(CONFIG, 4)
    program = tpu_compiler.lower(
        lambda images, labels: attack(network, images, labels, tf.constant([0, 0])),
        specs[:2],
        num_replicas=2,
        stage="hlo",
    )
    found = [
        line
        for line in program.splitlines()
        if " all-reduce(" in line and "random_words" not in line  # their stand-in
    ]
    assert bool(found) == (statistics == "batch")


@pytest.mark.parametrize(
    "group_size, accumulation_steps", [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_statistics_are_the_replicas_mean(group_size, accumulation_steps, two_replicas):
    """Two replicas of two images per part; in groups of two a part is what one device
    sees as four.
    """
    data, parts = batch(4 * accumulation_steps), accumulation_steps
    with two_replicas.scope():
        state = small_state(group_size=group_size)
    before = values(state)
    train_step = traced_step(
        "vanilla", state, global_batch_size=4 * parts, accumulation_steps=parts
    ).python_function

    def share():  # of each part, half
        own = {
            k: tf.reshape(v, [parts, 2, 2, *v.shape[1:]])[:, replica_runtime.current().replica_id]
            for k, v in data.items()
        }
        return train_step({k: tf.reshape(v, [2 * parts, *v.shape[2:]]) for k, v in own.items()})

    tf.function(lambda: two_replicas.run(share))()
    one = make_small()
    seen_together = 2 * group_size
    totals, sums = [0.0 for _ in one.trainable_variables], {v.name: 0.0 for v in one.variables}
    for start in range(0, 4 * parts, seen_together):
        if group_size == 1:
            for variable in one.variables:  # the replicas start from the same
                variable.assign(before[variable.name])
        rows = slice(start, start + seen_together)
        gradients, _ = gradients_by_hand(one, data["images"][rows], data["labels"][rows], "main")
        totals = [
            total + gradient * seen_together / (4 * parts)
            for total, gradient in zip(totals, gradients)
        ]
        sums = {v.name: sums[v.name] + v.numpy() for v in one.variables}
    for variable in state.model.variables:
        if "moving" in variable.name:
            local = [value.numpy() for value in two_replicas.experimental_local_results(variable)]
            np.testing.assert_array_equal(local[0], local[1], err_msg=variable.name)
    wanted = (
        {name: value / 2 for name, value in sums.items()}
        if group_size == 1
        else {v.name: v.numpy() for v in one.variables}
    )
    for variable in state.model.variables:
        if "moving" in variable.name:
            np.testing.assert_allclose(
                variable.numpy(), wanted[variable.name], rtol=1e-4, atol=1e-5, err_msg=variable.name
            )
    assert_moved_by(before, values(state), one.trainable_variables, totals, tolerance=1e-5)


def test_random_numbers_differ_by_replica_and_step_and_not_by_restart(two_replicas):
    """The seeds of attacks, from which the images' differ further, are a function of
    the config's seed, step and replica.
    """
    data = batch(2)
    with two_replicas.scope():
        state = small_state(aux_branches=1)
        drawn = tf.Variable(
            tf.zeros([2], tf.int32),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def attack(logits_fn, images, labels, seed):
        tf.raw_ops.AssignVariableOp(resource=drawn.handle, value=seed)
        return images

    train_step = steps.make_train_step(
        "advprop", state, RATE_ONE, global_batch_size=4, attack=attack, seed=7
    )
    step = tf.function(lambda: two_replicas.run(train_step, args=(data,)), autograph=False)
    seeds = {}
    for number in (0, 1, 1_000_000, 0):  # the last as after a restart
        for variable in (state.step, *two_replicas.experimental_local_results(state.step)):
            variable.assign(number)
        step()
        for replica, value in enumerate(two_replicas.experimental_local_results(drawn)):
            seed = tuple(value.numpy())
            assert seeds.setdefault((number, replica), seed) == seed
    wanted = {
        key: tuple(
            randomness.fold_in(randomness.fold_in(tf.constant([7, 0]), key[0]), key[1]).numpy()
        )
        for key in seeds
    }
    assert len(set(wanted.values())) == 6
    # The step's own splits into those of the clean pass, the attack and the adversarial
    # pass.
    assert seeds == {
        key: tuple(randomness.split(tf.constant(value), 3)[1].numpy())
        for key, value in wanted.items()
    }


@pytest.mark.parametrize("num_replicas, accumulation_steps", [(2, 1), (1, 2)])
def test_shares_add_up_to_the_whole(num_replicas, accumulation_steps, two_replicas):
    """Two replicas, or two parts, of frozen batch norms (which see their part alone)
    move the weights like one batch.
    """
    data = batch(4)

    def run(strategy, accumulation_steps):
        with strategy.scope():
            model = make_small()
            model.norm.trainable = False
            state = state_of(model, optimizers.RMSProp)
        train_step = steps.make_train_step(
            "vanilla",
            state,
            LearningRate(0.1, 1.0, "constant", warmup_epochs=0),
            global_batch_size=4,
            accumulation_steps=accumulation_steps,
        )

        @tf.function
        def step():
            def share():
                count = 4 // strategy.num_replicas_in_sync
                start = replica_runtime.current().replica_id * count
                return train_step(
                    {
                        k: tf.ensure_shape(v[start : start + count], [count, *v.shape[1:]])
                        for k, v in data.items()
                    }
                )

            sums = strategy.run(share)
            return {k: strategy.reduce("SUM", v, axis=None) for k, v in sums.items()}

        sums = step()
        assert int(state.step.numpy()) == 1
        return {v.name: v.numpy() for v in [*state.model.variables, *state.ema.shadows]}, sums

    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    alone, wanted_sums = run(one_device, 1)
    together, sums = run(two_replicas if num_replicas == 2 else one_device, accumulation_steps)
    assert float(sums["num_images"]) == 4.0
    np.testing.assert_allclose(sums["clean_loss"], wanted_sums["clean_loss"], rtol=1e-5)
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def make_attack(method):
    if method == "fast_advprop":
        return dict(
            attack=PGD(2.0, 2.0, 1, targeted=False, random_start=1.0), attack_statistics="batch"
        )
    return dict(attack=PGD(2.0, 1.0, 2, num_classes=10)) if METHODS[method].has_attack else {}


def with_views(data):
    return {**data, "augmented_images": data["images"][:, ::-1]}


def compiled(method, state):
    train_step = steps.make_train_step(
        method, state, LearningRate(0.1, 1.0), global_batch_size=4, **make_attack(method)
    )
    return tf.function(train_step, jit_compile=True)


def compiled_step(method, compute_dtype="float32"):
    state = make_state(
        aux_branches=METHODS[method].aux_branches,
        dropout_rate=0.2,
        survival_prob=0.8,
        compute_dtype=compute_dtype,
    )
    if compute_dtype == "float16":
        state.loss_scale = LossScale()
    return state, compiled(method, state)


def lowered(step):
    program = step.experimental_get_compiler_ir(with_views(batch()))(stage="hlo")
    assert program.startswith("HloModule") and "convolution(" in program
    return program


@pytest.mark.parametrize("method", METHODS)
def test_every_step_becomes_one_xla_program(method):
    program = lowered(compiled(method, small_state(METHODS[method].aux_branches)))
    has_loop = METHODS[method].has_attack and method != "fast_advprop"
    assert ("while(" in program) == has_loop  # the attack's loop stays one
    assert "conditional(" not in program


@pytest.mark.slow
def test_a_float16_step_of_an_efficientnet_becomes_one_xla_program():
    _, step = compiled_step("advprop", "float16")
    program = lowered(step)
    assert "while(" in program and "conditional(" in program


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, compute_dtype", [*((method, "float32") for method in METHODS), ("advprop", "float16")]
)
def test_every_step_runs_as_one_xla_program(method, compute_dtype):
    state, step = compiled_step(method, compute_dtype)
    plain_state, plain = compiled_step(method, compute_dtype)
    plain = tf.function(plain.python_function)
    # Batch norms of four images, one upon the other, make 0.9 of float16's rounding in logits of 8.
    data = with_views(batch(4 if compute_dtype == "float32" else 32))
    sums, wanted = step(data), plain(data)
    for name, value in wanted.items():
        rtol, atol = (1e-3, 0.0) if compute_dtype == "float32" else (3e-2, 0.0)
        if compute_dtype == "float16" and name.endswith("_correct"):
            atol = 1.0  # of four images: logits of up to 8 differ by up to 0.9 in float16
        np.testing.assert_allclose(sums[name], value, rtol=rtol, atol=atol, err_msg=name)
    assert int(state.step.numpy()) == int(plain_state.step.numpy()) == 1


def test_every_variable_has_a_role():
    roles = {
        variable.name: role_of(variable.name) for variable in make_tiny(aux_branches=2).variables
    }
    assert {role for name, role in roles.items() if "/aux" in name} == {Role.AUX}
    assert {
        role for name, role in roles.items() if "/aux" not in name and "batch_normalization" in name
    } == {Role.MAIN}
    assert {role for name, role in roles.items() if "batch_normalization" not in name} == {
        Role.SHARED
    }
    with pytest.raises(ValueError, match="'head/scale:0' is neither"):
        role_of("head/scale:0")


TARGETED, UNTARGETED = dict(attack=PGD(num_classes=10)), dict(attack=PGD(targeted=False))
FIVE_STEPS, NOISE = dict(attack=PGD(num_steps=5, targeted=False)), dict(attack=UniformNoise())


@pytest.mark.parametrize(
    "method, aux_branches, arguments, said",
    [
        ("fast", 1, TARGETED, "`method` is 'fast'"),
        ("advprop", 1, {}, "`attack` is None, but method 'advprop' needs one"),
        ("vanilla", 0, TARGETED, "`attack` is .*needs none"),
        ("vanilla", 1, {}, "`aux_branches`=1, but method 'vanilla' trains exactly 0"),
        ("advprop", 0, TARGETED, "`aux_branches`=0, but method 'advprop' trains exactly 1"),
        ("fine_grained", 1, TARGETED, "`aux_branches`=1, but method 'fine_grained' trains"),
        ("fast_advprop", 1, NOISE, "`attack` is UniformNoise.* a `PGD`"),
        ("fast_advprop", 1, FIVE_STEPS, "`attack.num_steps` is 5"),
        ("fast_advprop", 1, TARGETED, "`attack.targeted` is True"),
        ("fast_advprop", 1, UNTARGETED, "`attack_statistics` is 'running', .*'fast_advprop'"),
        ("advprop", 1, {**NOISE, "attack_statistics": "batch"}, "attacks no network"),
        ("advprop", 1, {**UNTARGETED, "attack_statistics": "moving"}, "is 'moving'"),
    ],
)
def test_refused_arguments_are_named(method, aux_branches, arguments, said):
    if "num_steps" in said or "targeted" in said:
        arguments = {**arguments, "attack_statistics": "batch"}
    with pytest.raises(ValueError, match=said):
        steps.make_train_step(
            method, small_state(aux_branches), RATE_ONE, global_batch_size=4, **arguments
        )


def test_refused_batches_are_named():
    def step(method, aux, **more):
        made = traced_step(method, small_state(aux), **make_attack(method), **more)
        return made.python_function

    with pytest.raises(ValueError, match="method 'fine_grained' also needs 'augmented_images'"):
        step("fine_grained", 2)(batch())
    with pytest.raises(ValueError, match="`accumulation_steps` is 3, but a replica's batch is 4"):
        step("vanilla", 0, accumulation_steps=3)(batch())
    with pytest.raises(ValueError, match="`adversarial_share` is 0.2, but of 2 images"):
        step("fast_advprop", 1)(batch(2))
