import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, UniformNoise
from efficientnet_advprop.attacks.pgd import draw_wrong_labels
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import DualBatchNormalization
from tests.conftest import golden, load_tiny, make_tiny
from tests.efficientnet_advprop.attacks.linear_network import WEIGHTS, linear
from tpu_utils import randomness

SEED = tf.constant([3, 4])


def batch(size=16):
    random = np.random.RandomState(1)
    images = random.randint(0, 256, [size, 4, 4, 3]).astype(np.uint8)
    return images, random.randint(0, 5, [size]).astype(np.int32)


def losses(images, labels):
    logits = linear(images)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def test_one_step_without_random_start_is_fgsm():
    images, labels = batch()
    attack = PGD(epsilon=3.0, step_size=3.0, targeted=False, random_start=0.0)
    found = attack(linear, images, labels)
    probabilities = tf.nn.softmax(linear(images))
    # Of a linear model's cross-entropy.
    gradients = (probabilities - tf.one_hot(labels, 5)) @ tf.transpose(WEIGHTS)
    wanted = np.clip(images + 3.0 * np.sign(gradients).reshape(images.shape), 0, 255)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == tf.float32


def reference(images, labels, epsilon, step_size, num_steps, project, sign):
    """The iteration as the paper writes it, in NumPy."""
    x = images.astype(np.float32)
    for _ in range(num_steps):
        probabilities = tf.nn.softmax(linear(x)).numpy()
        gradients = (probabilities - np.eye(5)[labels]) @ WEIGHTS.T
        x = x + sign * step_size * np.sign(gradients).reshape(x.shape)
        x = np.clip(x, images - epsilon, images + epsilon) if project else x
        x = np.clip(x, 0, 255).astype(np.float32)
    return x


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_iterations_without_random_start(project, targeted, num_steps):
    images, labels = batch()
    attack = PGD(
        2.0, 1.0, num_steps, targeted=targeted, random_start=0.0, num_classes=5, project=project
    )
    found = attack(linear, images, labels, SEED)
    target_seed = randomness.split(SEED, 3)[0]
    aim = draw_wrong_labels(labels, 5, target_seed).numpy() if targeted else labels
    wanted = reference(images, aim, 2.0, 1.0, num_steps, project, -1.0 if targeted else 1.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_steps_under_l2_go_along_the_gradient_and_end_on_the_ball():
    """Of a linear network's loss, by hand; far from the ends of the pixel range."""
    images = np.random.RandomState(2).randint(100, 156, [6, 4, 4, 3]).astype(np.float32)
    labels = np.arange(6, dtype=np.int32) % 5
    attack = PGD(7.0, 3.0, 4, targeted=False, random_start=0.0, norm="l2")
    wanted = images.astype(np.float64)
    for _ in range(4):
        probabilities = tf.nn.softmax(linear(tf.cast(wanted, tf.float32))).numpy()
        gradients = ((probabilities - np.eye(5)[labels]) @ WEIGHTS.T).reshape(images.shape)
        lengths = np.sqrt(np.square(gradients).sum((1, 2, 3), keepdims=True))
        wanted = wanted + 3.0 * gradients / lengths
        difference = wanted - images
        lengths = np.sqrt(np.square(difference).sum((1, 2, 3), keepdims=True))
        wanted = images + difference * np.minimum(1.0, 7.0 / lengths)
    found = attack(linear, images, labels, SEED).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_allclose(np.sqrt(np.square(found - images).sum((1, 2, 3))), 7.0, rtol=1e-5)


def test_random_starts_under_l2_fill_the_ball():
    """Of points uniform in a ball of 48 dimensions, (length / radius)⁴⁸ is uniform."""
    images = np.full([4000, 4, 4, 3], 128.0, np.float32)
    attack = PGD(20.0, 1e-6, targeted=False, random_start=1.0, norm="l2")
    differences = attack.start(images, SEED).numpy() - images
    shares = (np.sqrt(np.square(differences).sum((1, 2, 3))) / 20.0) ** 48
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    np.testing.assert_allclose(differences.mean(0), 0.0, atol=0.2)  # 4.6 standard errors


def test_stays_in_the_ball_and_in_the_pixel_range_and_uses_them():
    images, labels = batch(64)
    images[:32] = np.where(images[:32] > 127, 255, 0)
    found = PGD(4.0, 1.0, 7, random_start=1.0, num_classes=5)(linear, images, labels, SEED).numpy()
    distance = np.abs(found - images)
    assert distance.max() <= 4.0 + 1e-4 and found.min() >= 0.0 and found.max() <= 255.0
    assert distance.max() > 3.99 and distance.mean() > 1.0


def test_gradient_descent_leaves_the_ball_but_not_the_pixel_range():
    images, labels = batch(64)
    attack = PGD(1.0, 1.0, 9, random_start=0.0, num_classes=5, project=False)
    found = attack(linear, images, labels, SEED).numpy()
    assert np.abs(found - images).max() == 9.0
    assert found.min() == 0.0 and found.max() == 255.0


def test_targets_are_uniform_over_the_wrong_classes():
    labels = tf.repeat(tf.range(10), 9000)
    targets = draw_wrong_labels(labels, 10, SEED).numpy()
    counts = np.zeros([10, 10])
    np.add.at(counts, (labels.numpy(), targets), 1)
    assert (np.diag(counts) == 0).all()
    off_diagonal = counts[~np.eye(10, dtype=bool)]
    chi_square = ((off_diagonal - 1000.0) ** 2 / 1000.0).sum()
    assert chi_square < 120.0  # 80 degrees of freedom: exceeded by chance in 0.3 % of seeds


def test_targeted_descends_to_the_target_and_untargeted_away_from_the_label():
    images, labels = batch(64)
    untargeted = PGD(4.0, 1.0, 5, targeted=False, random_start=0.0)(linear, images, labels)
    assert (losses(untargeted, labels) > losses(images, labels)).numpy().all()
    aim = draw_wrong_labels(labels, 5, randomness.split(SEED, 3)[0])
    targeted = PGD(4.0, 1.0, 5, random_start=0.0, num_classes=5)(linear, images, labels, SEED)
    assert (losses(targeted, aim) < losses(images, aim)).numpy().all()


def test_class_weights_for_labels():
    images, labels = batch(64)
    attack = PGD(4.0, 1.0, 3, targeted=False, random_start=0.5)
    one_hot = tf.one_hot(labels, 5)
    wanted = attack(linear, images, labels, SEED)
    np.testing.assert_array_equal(attack(linear, images, one_hot, SEED), wanted)
    mixed = 0.6 * one_hot + 0.4 * tf.one_hot((labels + 2) % 5, 5)
    found = PGD(4.0, 1.0, 5, targeted=False, random_start=0.0)(linear, images, mixed)
    loss = tf.nn.softmax_cross_entropy_with_logits
    before, after = (loss(mixed, linear(x)) for x in (images, found))
    assert (after > before).numpy().all()


def test_targets_are_uniform_over_the_classes_without_weight():
    weights = tf.tile([[0.0, 0.3, 0.0, 0.7, 0.0, 0.0]], [20000, 1])
    counts = np.bincount(draw_wrong_labels(weights, 6, SEED), minlength=6)
    assert counts[1] == counts[3] == 0
    assert np.abs(counts[[0, 2, 4, 5]] - 5000).max() < 4 * np.sqrt(20000 * 0.25 * 0.75)
    # No class without weight: the one that has least.
    found = draw_wrong_labels(tf.constant([[0.4, 0.6], [0.7, 0.3]]), 2, SEED)
    assert found.numpy().tolist() == [0, 1]


def test_the_loss_scale_changes_nothing_in_float32():
    images, labels = batch()
    attack = PGD(2.0, 1.0, 2, num_classes=5)
    scaled = dataclasses.replace(attack, loss_scale=128.0)
    wanted = attack(linear, images, labels, SEED)
    np.testing.assert_array_equal(scaled(linear, images, labels, SEED), wanted)


# Fractions of equal pixels after one step; measured: see docs/maintainers/verification.md.
@pytest.mark.parametrize(
    "compute_dtype, loss_scale, bound",
    [("bfloat16", 1.0, 0.97), pytest.param("float16", 128.0, 0.99, marks=pytest.mark.slow)],
)
def test_low_precision_keeps_the_signs_of_the_attack(tiny, compute_dtype, loss_scale, bound):
    numbers = golden("train.npz")
    images, labels = tf.constant(numbers["images"]), tf.constant(numbers["labels"])
    attack = PGD(1.0, 1.0, 1, targeted=False, random_start=0.0)
    wanted = attack(lambda x: tiny(x, branch="aux"), images, labels)
    low = make_tiny(compute_dtype=compute_dtype)
    load_tiny(low.variables)
    logits_fn = lambda x: low(x, branch="aux")  # noqa: E731
    assert logits_fn(images).dtype == tf.float32
    found = dataclasses.replace(attack, loss_scale=loss_scale)(logits_fn, images, labels)
    inner = (images > 0) & (images < 255)
    equal = np.mean((found == wanted).numpy()[inner.numpy()])
    still = np.mean((found == tf.cast(images, tf.float32)).numpy()[inner.numpy()])
    assert equal > bound and still < 1e-3


def test_random_start_has_its_probability_per_batch():
    images, labels = batch(8)
    attack = PGD(epsilon=4.0, step_size=1e-6, random_start=0.8, num_classes=5)
    run = tf.function(lambda seed: attack(linear, images, labels, seed))
    noisy = []
    for index in range(400):
        distance = np.abs(run(tf.constant([index, 7])) - images)
        noisy.append(distance.max() > 1.0)
        if noisy[-1]:  # uniform in ±4 where the pixel range does not clip: mean |noise| is 2
            inner = distance[(images > 4) & (images < 251)]
            assert 1.6 < inner.mean() < 2.4
    assert 0.73 < np.mean(noisy) < 0.87  # 3.5 standard deviations


@pytest.fixture(scope="module")
def small():
    """A convolution, a norm with one auxiliary branch, a dense layer; called as `tiny` is."""
    convolution, head = keras.layers.Conv2D(8, 3, 2), keras.layers.Dense(10)
    norm = DualBatchNormalization(aux_branches=1)

    def network(images, **options):
        features = tf.nn.silu(norm(convolution(tf.cast(images, tf.float32) / 255.0), **options))
        return head(tf.reduce_mean(features, [1, 2]))

    network(tf.zeros([1, 32, 32, 3]))
    network.variables = [*convolution.variables, *norm.variables, *head.variables]
    return network


@pytest.mark.parametrize("network", ["small", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_same_result_eagerly_in_a_function_and_under_xla(request, network, statistics):
    network, numbers = request.getfixturevalue(network), golden("train.npz")
    images, labels = tf.constant(numbers["images"][:, :32, :32]), tf.constant(numbers["labels"])
    # With a batch's moments every image's rounding reaches all others, and grows
    # tenfold an iteration: compare one.
    attack = PGD(2.0, 1.0, 3 if statistics == "running" else 1, num_classes=10)
    options = dict(training=True, update_statistics=False) if statistics == "batch" else {}
    before = [variable.numpy() for variable in network.variables]

    def run():
        return attack(lambda x: network(x, branch="aux", **options), images, labels, SEED)

    eager, graph, xla = run(), tf.function(run)(), tf.function(run, jit_compile=True)()
    for other in (graph, xla):
        # A sign of a gradient that is all rounding may differ: at most one value in a thousand.
        assert np.mean(np.abs(eager - other) > 1e-3) < 1e-3
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value, err_msg=variable.name)


def test_no_gradient_leaks_out():
    images, labels = batch()
    weights = tf.Variable(WEIGHTS)
    with tf.GradientTape() as tape:
        attack = PGD(random_start=0.0, num_classes=5)
        found = attack(lambda x: tf.reshape(x, [-1, 48]) @ weights, images, labels, SEED)
        loss = tf.reduce_sum(found)
    assert tape.gradient(loss, weights) is None


@pytest.mark.parametrize("num_steps", [1, 20])
def test_the_loop_is_traced_once_whatever_the_number_of_steps(num_steps):
    images, labels = batch()
    calls = []

    def counted(x):
        calls.append(1)
        return linear(x)

    tf.function(lambda: PGD(4.0, 1.0, num_steps, num_classes=5)(counted, images, labels, SEED))()
    assert len(calls) == 1


def test_noise_is_uniform_in_the_ball_and_the_pixel_range_whatever_the_network():
    images = np.random.RandomState(0).randint(0, 256, [16, 8, 8, 3]).astype(np.uint8)
    found = UniformNoise(4.0)(None, images, None, SEED).numpy()
    distance = np.abs(found - images)
    assert distance.max() <= 4.0 and found.min() >= 0.0 and found.max() <= 255.0
    assert found.dtype == np.float32
    # |noise| is uniform in 0 … 4 where nothing clips.
    inner = distance[(images > 4) & (images < 251)]
    assert 1.9 < inner.mean() < 2.1
    assert np.abs(np.quantile(inner, [0.25, 0.75]) - [1.0, 3.0]).max() < 0.15
    np.testing.assert_array_equal(found, UniformNoise(4.0)(None, images, None, SEED))
    assert np.abs(found - UniformNoise(4.0)(None, images, None, tf.constant([3, 5]))).max() > 1.0
