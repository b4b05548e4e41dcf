"""APGD, FAB and Square on a network whose robustness is known, in every way to run them."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from efficientnet_advprop.attacks import (
    APGD,
    FAB,
    PGD,
    AttackError,
    AutoAttack,
    Square,
    UniformNoise,
    norms,
)
from efficientnet_advprop.attacks.apgd import check_distances
from efficientnet_advprop.attacks.attack import Found
from efficientnet_advprop.attacks.fab import shortest_step
from efficientnet_advprop.attacks.objectives import dlr, likeliest_wrong_classes, targeted_dlr
from efficientnet_advprop.attacks.square import _l2_window, _places, window_sides
from tests.efficientnet_advprop.attacks.linear_network import (
    SHAPE,
    batch,
    boundary_distances,
    linear,
)
from tpu_utils import replica_runtime

SEED = tf.constant([3, 4])
ATTACKS = {
    "apgd": lambda **ball: APGD(num_steps=30, **ball),
    "apgd_dlr": lambda **ball: APGD(num_steps=30, loss="dlr", **ball),
    "apgd_t": lambda **ball: APGD(num_steps=30, loss="dlr", targeted=True, num_targets=4, **ball),
    "apgd_t_ce": lambda **ball: APGD(num_steps=30, targeted=True, num_targets=4, **ball),
    "fab": lambda **ball: FAB(num_steps=10, targeted=False, **ball),
    "fab_t": lambda **ball: FAB(num_steps=10, num_targets=4, **ball),
    "square": lambda **ball: Square(num_queries=2000, **ball),  # of one pixel from the 200th on
}


def median_radius(norm):
    """A radius that half of the images withstand, between two of their distances."""
    distances = np.sort(boundary_distances(*batch(32), norm))
    return float(distances[15:17].mean())


# Each attack quickly under one of the norms; the slow tests have the other.
QUICK = [("apgd", "linf"), ("apgd_dlr", "l2"), ("apgd_t", "linf"), ("apgd_t_ce", "l2")]
QUICK += [("fab", "linf"), ("fab_t", "l2"), ("square", "linf"), ("square", "l2")]


@pytest.mark.parametrize(
    "name, norm",
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in itertools.product(ATTACKS, ["linf", "l2"])
    ],
)
def test_what_withstands_is_what_must(name, norm):
    images, labels = batch(32)
    distances = boundary_distances(images, labels, norm)
    network = linear
    if name == "square":  # it changes the last row and column in its first guess only
        images = np.pad(images, [[0, 0], [0, 1], [0, 1], [0, 0]], mode="edge")
        network = lambda images: linear(images[:, :-1, :-1])  # noqa: E731
    epsilon = median_radius(norm)
    attack = ATTACKS[name](epsilon=epsilon, norm=norm, num_classes=5)
    found = tf.function(lambda: attack.search(network, images, labels, SEED))()
    still_correct = found.still_correct.numpy()
    assert still_correct[distances > epsilon].all()  # nothing is found where there is nothing
    # Square sees no gradient, and under L2 has little room in 4 × 4 pixels.
    reach = {"linf": 0.95, "l2": 0.6}[norm] if name == "square" else 1.0
    assert not still_correct[distances <= reach * epsilon].any()
    np.testing.assert_array_equal(network(found.images).numpy().argmax(-1) == labels, still_correct)
    np.testing.assert_array_equal(found.images.numpy()[still_correct], images[still_correct])
    lengths = norms.NORMS[norm].length(found.images - images.astype(np.float32)).numpy()
    assert lengths.max() <= epsilon * (1 + 1e-5)


def test_what_is_not_finite_is_not_found():
    images = np.zeros([3, 2, 2, 1], np.float32)
    nothing_yet = Found(tf.constant(images), tf.constant([True, True, True]))
    images[0, 1, 1, 0], images[1, 0, 1, 0], images[2, 0, 0, 0] = np.nan, np.inf, 1.0
    found = nothing_yet.update(tf.constant(images), tf.constant([True, True, True]))
    np.testing.assert_array_equal(found.still_correct, [True, True, False])
    np.testing.assert_array_equal(tf.reduce_sum(found.images, [1, 2, 3]), [0.0, 0.0, 1.0])


def short(name, norm, epsilon=None):
    """The attack in few steps."""
    attack = ATTACKS[name](epsilon=epsilon or median_radius(norm), norm=norm, num_classes=5)
    few = dict(num_queries=4) if name == "square" else dict(num_steps=4, num_targets=2)
    return dataclasses.replace(attack, **few)


@pytest.mark.parametrize(
    "name",
    ["apgd_t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fab_t", "square"))],
)
def test_the_same_eagerly_and_under_xla(name):
    attack, batch_of_eight = short(name, "l2"), batch(8)
    run = lambda: attack(linear, *batch_of_eight, SEED)  # noqa: E731
    np.testing.assert_allclose(tf.function(run, jit_compile=True)(), run(), atol=1e-2)


class HostWithoutXla(replica_runtime.ReplicaRuntime):
    """As that of a TensorFlow built for TPUs, where parts of an attack cannot be compiled."""

    compiles_parts = False


@pytest.mark.parametrize("name", ["apgd_t", "fab_t", "square"])
def test_the_same_in_a_function_and_where_no_part_can_be_compiled(name, monkeypatch):
    attack, batch_of_eight = short(name, "linf"), batch(8)
    run = lambda: attack(linear, *batch_of_eight, SEED)  # noqa: E731
    wanted, genuine = tf.function(run)(), tf.function

    def function(*arguments, **options):
        assert not options.get("jit_compile")
        return genuine(*arguments, **options)

    monkeypatch.setattr(tf, "function", function)
    with replica_runtime.use(HostWithoutXla()):
        np.testing.assert_allclose(run(), wanted, atol=1e-2)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: APGD(2.0, num_steps=n, num_gradients=n, num_restarts=n, num_classes=5),
        lambda n: APGD(2.0, num_steps=n, targeted=True, num_targets=min(n, 4), num_classes=5),
        lambda n: FAB(2.0, num_steps=n, num_targets=min(n, 4), num_classes=5),
        lambda n: Square(2.0, num_queries=n, num_restarts=n, num_classes=5),
    ],
)
def test_one_trace_whatever_the_number_of_steps(make):
    images, labels = batch(4)

    def num_calls(attack):
        calls = []

        def counted(images):
            calls.append(1)
            return linear(images)

        tf.function(lambda: attack(counted, images, labels, SEED)).get_concrete_function()
        return len(calls)

    assert num_calls(make(3)) == num_calls(make(40)) <= 4


def test_static_shapes_and_no_gradient_through_the_result():
    images, labels = batch(4)
    weights = tf.Variable(tf.random.stateless_normal([48, 5], SEED))
    logits_fn = lambda images: tf.reshape(images, [-1, 48]) @ weights  # noqa: E731

    @tf.function
    def run(images, labels):
        with tf.GradientTape() as tape:
            adversarial_images = APGD(3.0, num_steps=2)(logits_fn, images, labels, SEED)
        assert adversarial_images.shape == images.shape == (4, *SHAPE)
        assert tape.gradient(adversarial_images, weights) is None
        return adversarial_images

    assert run(tf.constant(images), tf.constant(labels)).dtype == tf.float32


@pytest.mark.parametrize("version", ["rand", pytest.param("standard", marks=pytest.mark.slow)])
def test_on_two_replicas(two_replicas, version):
    images, labels = batch(8)
    short = dict(num_targets=4, num_steps=5, num_queries=10)
    attack = AutoAttack(3.0, num_classes=5, version=version, **short)
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(images[4 * context.replica_id_in_sync_group :][:4], tf.float32)
    )
    half_labels = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(labels[4 * context.replica_id_in_sync_group :][:4])
    )
    run = tf.function(
        lambda *halves: two_replicas.run(lambda *half: attack(linear, *half, SEED), args=halves)
    )
    found = np.concatenate(two_replicas.experimental_local_results(run(halves, half_labels)))
    is_robust = boundary_distances(images, labels, "linf") > 3.0
    assert 0 < is_robust.sum() < 8
    np.testing.assert_array_equal(linear(found).numpy().argmax(-1) == labels, is_robust)


def test_images_that_are_wrong_at_once_come_back_unchanged():
    images, labels = batch(8)
    labels[::2] = (labels[::2] + 1) % 5
    for name in ("apgd_t", "fab", "square"):
        found = short(name, "linf", epsilon=20.0).search(linear, images, labels, SEED)
        np.testing.assert_array_equal(found.images[::2], images[::2])
        assert not found.still_correct[::2].numpy().any()


def test_only_what_still_correct_is_attacked():
    images, labels = batch(8)
    still_correct = np.arange(8) < 4
    found = APGD(40.0, num_steps=5).search(linear, images, labels, SEED, still_correct)
    assert (found.images.numpy() != images).any((1, 2, 3)).tolist() == still_correct.tolist()


def test_step_sizes_are_checked_where_the_paper_says():
    """p₁ = 0.22, pⱼ₊₁ = pⱼ + max(pⱼ − pⱼ₋₁ − 0.03, 0.06), of 100 steps."""
    assert list(check_distances(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(check_distances(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert check_distances(1) == {1: 1}


def test_windows_shrink_as_in_autoattack():
    """Halved after 10, 50, 200, … queries, which are the paper's of 10,000, also where
    there are fewer; 0.8 of 32 × 32 pixels at first.
    """
    sides = window_sides(10_000, 0.8, 32, 32, "linf")
    assert len(sides) == 10_000
    for query, share in ((0, 0.8), (10, 0.8), (11, 0.4), (50, 0.4), (51, 0.2), (8001, 0.8 / 512)):
        assert sides[query] == max(round(np.sqrt(share * 1024)), 1), query
    np.testing.assert_array_equal(window_sides(5_000, 0.8, 32, 32, "linf"), sides[:5_000])
    assert set(window_sides(5_000, 0.8, 32, 32, "l2") % 2) == {1}
    assert window_sides(5_000, 0.8, 224, 224, "l2").min() == 19  # √(0.8 / 128) · 224 = 17.7
    assert window_sides(5_000, 1.0, 4, 8, "l2").max() == 3


@pytest.mark.parametrize("side", [1, 3, 6])
def test_windows_lie_where_the_references_do(side):
    """It draws ⌊u · (length − side)⌋ with u in [0, 1)."""
    rows, columns = (place.numpy().ravel() for place in _places(4000, 6, 9, side, SEED))
    for place, length in ((rows, 6), (columns, 9)):
        assert set(place) == set(range(max(length - side, 1)))
        counts = np.bincount(place)
        expected = 4000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 27  # 0.1 % of seeds with 8 bins


@pytest.mark.parametrize("side, turned", [(5, False), (7, True), (3, False)])
def test_the_l2_window_is_the_papers(side, turned):
    """Nested rectangles added up one by one, as the paper's authors do."""

    def bump(height, width):
        values = np.zeros([height, width])
        top, left = height // 2, width // 2
        for number in range(max(height // 2, width // 2) + 1):
            rows = slice(max(top, 0), min(top + 2 * number + 1, height))
            values[rows, max(left, 0) : min(left + 2 * number + 1, width)] += 1 / (number + 1) ** 2
            top, left = top - 1, left - 1
        return values / np.linalg.norm(values)

    wanted = np.concatenate([bump(side // 2, side), -bump(side - side // 2, side)])
    wanted = wanted / np.linalg.norm(wanted)
    wanted = wanted.T if turned else wanted
    rows, columns = tf.range(9)[None, :, None, None] - 1, tf.range(10)[None, None, :, None] - 2
    found = _l2_window(rows, columns, side, tf.fill([1, 1, 1, 1], turned), 10)[0, :, :, 0].numpy()
    np.testing.assert_allclose(found[1 : 1 + side, 2 : 2 + side], wanted, atol=1e-6)
    found[1 : 1 + side, 2 : 2 + side] = 0.0
    assert not found.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(4))
def test_the_shortest_step_to_a_hyperplane_is_scipys(norm, seed):
    random = np.random.RandomState(seed)
    point = random.uniform(0.0, 255.0, 12) * (random.uniform(size=12) > 0.2)
    normal = random.standard_normal(12)
    offset = normal @ (255.0 * (random.uniform(size=12) > 0.5)) * 0.4  # of a point in the range
    gap = normal @ point - offset
    if norm == "linf":  # the least t with |step| ≤ t
        ones = np.ones([12, 1])
        solution = scipy.optimize.linprog(
            np.append(np.zeros(12), 1.0),
            A_ub=np.block([[np.eye(12), -ones], [-np.eye(12), -ones]]),
            b_ub=np.zeros(24),
            A_eq=np.append(normal, 0.0)[None],
            b_eq=[-gap],
            bounds=[*zip(-point, 255.0 - point), (0.0, None)],
        )
        wanted = solution.fun
    else:
        # Pixels as shares of 255: in 0 … 255, ftol asks for digits that float64 does not have.
        shares, rest = point / 255.0, gap / 255.0
        solution = scipy.optimize.minimize(
            lambda step: step @ step,
            np.zeros(12),
            jac=lambda step: 2.0 * step,
            bounds=[*zip(-shares, 1.0 - shares)],
            constraints=[dict(type="eq", fun=lambda s: normal @ s + rest, jac=lambda s: normal)],
            method="SLSQP",
            options=dict(maxiter=500, ftol=1e-12),
        )
        wanted = 255.0 * np.sqrt(solution.fun)
    assert solution.success
    shape = [1, 2, 2, 3]
    found = shortest_step(
        tf.constant(point.reshape(shape), tf.float32),
        tf.constant(normal.reshape(shape), tf.float32),
        tf.constant([gap], tf.float32),
        tf.zeros(shape),
        norms.NORMS[norm],
    )
    step = found.numpy().reshape(-1).astype(np.float64)
    assert (point + step >= -1e-4).all() and (point + step <= 255.0 + 1e-4).all()
    np.testing.assert_allclose(normal @ step, -gap, rtol=1e-4)
    length = np.abs(step).max() if norm == "linf" else np.linalg.norm(step)
    np.testing.assert_allclose(length, wanted, rtol=1e-3)


def test_a_hyperplane_that_no_image_is_on_is_approached_as_far_as_the_range_goes():
    point, normal = tf.fill([1, 2, 2, 3], 200.0), tf.ones([1, 2, 2, 3])
    for norm in norms.NORMS.values():
        np.testing.assert_allclose(
            shortest_step(point, normal, tf.constant([-1e6]), point, norm), 55.0
        )


def test_losses_by_hand():
    logits = tf.constant([[5.0, 3.0, 1.0, -1.0, -7.0], [1.0, 2.0, 0.0, 4.0, 3.0]])
    labels, targets = tf.constant([0, 0]), tf.constant([2, 4])
    np.testing.assert_allclose(dlr(labels, logits), [-(5 - 3) / (5 - 1), (4 - 1) / (4 - 2)])
    wanted = [-(5 - 1) / (5 - 0.5 * (1 - 1)), -(1 - 3) / (4 - 0.5 * (2 + 1))]
    np.testing.assert_allclose(targeted_dlr(labels, targets, logits), wanted, rtol=1e-6)
    np.testing.assert_allclose(dlr(labels, 7.0 * logits - 3.0), dlr(labels, logits), rtol=1e-6)
    assert likeliest_wrong_classes(labels, logits, 3).numpy().tolist() == [[1, 2, 3], [3, 4, 1]]


REFUSED = [
    (APGD, dict(epsilon=0.0), "epsilon"),
    (APGD, dict(epsilon=float("nan")), "epsilon"),
    (FAB, dict(epsilon=576.0), "epsilon"),  # under L∞
    (PGD, dict(epsilon=-1.0, num_classes=10), "epsilon"),
    (UniformNoise, dict(epsilon=-1.0), "epsilon"),
    (Square, dict(norm="l1"), "norm"),
    (PGD, dict(norm="l1"), "norm"),
    (APGD, dict(loss="hinge"), "loss"),
    (APGD, dict(num_steps=0), "num_steps"),
    (PGD, dict(num_steps=0), "num_steps"),
    (PGD, dict(step_size=0.0), "step_size"),
    (PGD, dict(random_start=1.5), "random_start"),
    (PGD, dict(loss_scale=0.0), "loss_scale"),
    (PGD, dict(num_classes=None), "num_classes"),  # of which a wrong one is to be drawn
    (APGD, dict(num_gradients=0), "num_gradients"),
    (APGD, dict(num_restarts=1.5), "num_restarts"),
    (APGD, dict(targeted=True, num_classes=9, num_targets=9), "num_targets"),
    (FAB, dict(num_classes=4, num_targets=9), "num_targets"),
    (APGD, dict(loss="dlr", num_classes=2), "num_classes"),
    (APGD, dict(loss="dlr", targeted=True, num_targets=2, num_classes=3), "num_classes"),
    (Square, dict(num_queries=0), "num_queries"),
    (Square, dict(first_share=0.0), "first_share"),
    (AutoAttack, dict(version="best"), "version"),
    (AutoAttack, dict(num_classes=5, num_targets=9), "num_targets"),
    (AutoAttack, dict(batch_size=0), "batch_size"),
]


@pytest.mark.parametrize("kind, arguments, name", REFUSED)
def test_refused_arguments_are_named(kind, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` is {arguments[name]!r}"):
        kind(**arguments)


def test_what_cannot_be_attacked_is_named():
    images, labels = batch(4)
    column = lambda images: linear(images)[:, 0]  # noqa: E731
    flat = lambda images: tf.stop_gradient(linear(images))  # noqa: E731
    for arguments, network, images_given, labels_given, said in (
        (dict(num_classes=7), linear, images, labels, "`num_classes` is 7, but `logits_fn` .* 5"),
        ({}, linear, images, tf.one_hot(labels, 5), "`labels` have shape .4, 5."),
        ({}, linear, images[0], labels, "`images` has shape .4, 4, 3."),
        ({}, column, images, labels, "`logits_fn` returned shape .4,."),
        ({}, flat, images, labels, "`logits_fn`.*differentiated.*Square"),
        (dict(epsilon=2000.0, norm="l2"), linear, images, labels, "`epsilon` is 2000.0.*1766.69"),
    ):
        with pytest.raises(AttackError, match=said):
            APGD(**{"epsilon": 3.0, **arguments})(network, images_given, labels_given, SEED)
    assert Square(40.0, num_queries=3)(flat, images, labels, SEED).shape == images.shape
