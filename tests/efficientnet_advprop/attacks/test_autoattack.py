"""AutoAttack's order, its batches and what it warns of."""

import re

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import FAB, AttackError, AttackWarning, AutoAttack, objectives
from efficientnet_advprop.attacks.autoattack import check_network
from tests.efficientnet_advprop.attacks.linear_network import (
    WEIGHTS,
    batch,
    boundary_distances,
    linear,
)

SEED = tf.constant([3, 4])
CHEAP = dict(norm="linf", num_classes=5, num_targets=4, num_steps=8, num_queries=20)


@pytest.mark.parametrize(
    "version, names",
    [
        ("standard", ["apgd_ce", "apgd_t", "fab_t", "square"]),
        ("plus", ["apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"]),
        ("rand", ["apgd_ce", "apgd_dlr"]),
    ],
)
def test_the_references_versions(version, names):
    attacks = AutoAttack(8.0, num_classes=10, version=version).attacks()
    assert list(attacks) == names
    restarts = {name: attack.num_restarts for name, attack in attacks.items()}
    for name in ("apgd_ce", "apgd_dlr", "fab"):
        assert restarts.get(name, 5) == (5 if version == "plus" else 1) or name not in names
    assert attacks["apgd_ce"].num_gradients == (20 if version == "rand" else 1)
    assert attacks["apgd_ce"].num_steps == 100
    if version != "rand":
        assert restarts["apgd_t"] == restarts["fab_t"] == restarts["square"] == 1
        assert attacks["apgd_t"].num_targets == attacks["fab_t"].num_targets == 9
        assert attacks["apgd_t"].loss == "dlr" and attacks["square"].num_queries == 5000


def test_any_number_of_images_in_batches_of_one_size_traced_once():
    images, labels = batch(30)
    labels[:3] = (labels[:3] + 1) % 5
    calls = []

    def counted(images):
        calls.append(tuple(images.shape))
        return linear(images)

    attack = AutoAttack(3.0, batch_size=8, **CHEAP)
    result = attack.run(counted, images, labels, SEED)
    num_calls = len(calls)
    assert {shape[0] for shape in calls} == {8}
    is_robust = (boundary_distances(images, labels, "linf") > 3.0) & (np.arange(30) >= 3)
    assert 5 < is_robust.sum() < 25
    assert result.still_correct["clean"].tolist() == (np.arange(30) >= 3).tolist()
    np.testing.assert_array_equal(result.still_correct["square"], is_robust)
    np.testing.assert_array_equal(result.images[is_robust], images[is_robust])
    np.testing.assert_array_equal(result.images[:3], images[:3])
    assert np.abs(result.images - images).max() <= 3.0 + 1e-4
    for earlier, later in zip(list(result.still_correct)[:-1], list(result.still_correct)[1:]):
        assert (result.still_correct[later] <= result.still_correct[earlier]).all()
    adversarial_images = attack(counted, *batch(30), SEED)
    attack(counted, *batch(17, seed=2), SEED)
    assert len(calls) == num_calls  # nothing was traced twice
    assert adversarial_images.shape == images.shape


def test_in_a_function_the_attacks_follow_each_other_on_the_batch():
    images, labels = batch(12)
    attack = AutoAttack(3.0, **CHEAP)
    found = tf.function(lambda: attack(linear, images, labels, SEED), autograph=False)()
    is_robust = boundary_distances(images, labels, "linf") > 3.0
    np.testing.assert_array_equal(linear(found).numpy().argmax(-1) == labels, is_robust)
    np.testing.assert_array_equal(found.numpy()[is_robust], images[is_robust])


def without_gradient(images):
    return tf.round(4.0 * linear(images)) + 0.0 * linear(images)


def noisy(images):
    return linear(images) + tf.random.normal([5], stddev=0.1)


@pytest.mark.parametrize(
    "logits_fn, options, said",
    [
        (linear, {}, None),
        (without_gradient, {}, "Of 6 images .*, 6 have a gradient of zero"),
        (lambda images: tf.nn.softmax(linear(images)), {}, "returns probabilities"),
        (noisy, {}, "answers the same images differently"),
        (noisy, dict(may_be_random=True), None),
        (linear, dict(epsilon=8 / 255), "`epsilon` is 0.03"),
    ],
)
def test_what_makes_an_accuracy_doubtful_is_warned_of(logits_fn, options, said):
    images, _ = batch(6)
    labels = logits_fn(images).numpy().argmax(-1)
    options = {"epsilon": 3.0, "norm": "linf", **options}
    found = check_network(logits_fn, images, labels, **options)
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


def test_a_call_warns():
    images, labels = batch(6)
    attack = AutoAttack(8 / 255, **dict(CHEAP, num_steps=2, num_queries=2))
    with pytest.warns(AttackWarning, match="`epsilon` is 0.03"):
        attack(linear, images, labels, SEED)


def test_what_square_alone_finds_is_warned_of():
    @tf.custom_gradient
    def misleading(images):  # the right logits, the gradient of the wrong direction
        return (
            linear(images),
            lambda upstream: -tf.reshape(upstream @ WEIGHTS.T / 255.0, tf.shape(images)),
        )

    images, labels = batch(20)
    arguments = dict(CHEAP, num_steps=3, num_queries=300)
    result = AutoAttack(4.0, **arguments).run(misleading, images, labels, SEED)
    before, after = (result.still_correct[name].sum() for name in ("fab_t", "square"))
    assert before > after
    assert any(f"on {before - after} of 20 images" in one for one in result.warnings)


def test_a_network_that_says_nothing_is_refused():
    images, labels = batch(6)
    attack = AutoAttack(3.0, **CHEAP)
    with pytest.raises(AttackError, match="same logits for all of 6 images"):
        attack(lambda images: 0.0 * linear(images), images, labels, SEED)
    with pytest.raises(AttackError, match="NaN"):
        attack(lambda images: linear(images) / 0.0, images, labels, SEED)


def test_no_images_at_all():
    images, labels = batch(0)
    assert AutoAttack(3.0, **CHEAP)(linear, images, labels, SEED).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("num_allowed", [2, 3, 5])
def test_a_class_of_logit_minus_infinity_is_as_if_it_were_not_there(num_allowed):
    """The network of five classes and three more, excluded, against the five alone."""
    generator = np.random.RandomState(0)
    logits = tf.constant(generator.standard_normal([6, num_allowed]), tf.float32)
    masked = tf.concat([logits, tf.fill([6, 3], -np.inf)], -1)
    labels = tf.constant(generator.randint(0, num_allowed, 6))
    targets = (labels + 1) % num_allowed
    functions = [
        lambda x: objectives.cross_entropy(labels, x),
        lambda x: objectives.cross_entropy(tf.one_hot(labels, x.shape[-1]), x),
        lambda x: objectives.margin(labels, x),
    ]
    if num_allowed >= 3:
        functions.append(lambda x: objectives.dlr(labels, x))
    if num_allowed >= 4:
        functions.append(lambda x: objectives.targeted_dlr(labels, targets, x))
    for function in functions:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([logits, masked])
            wanted, found = function(logits), function(masked)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        gradients = tape.gradient(found, masked).numpy()
        np.testing.assert_allclose(
            gradients[:, :num_allowed], tape.gradient(wanted, logits), rtol=1e-5
        )
        np.testing.assert_array_equal(gradients[:, num_allowed:], 0.0)
    assert np.isfinite(objectives.targeted_dlr(labels, targets, masked)).all()
    likeliest = objectives.likeliest_wrong_classes(labels, masked, num_allowed)
    assert (likeliest[:, :-1].numpy() < num_allowed).all()
    assert (likeliest.numpy() != labels.numpy()[:, None]).all()


def test_excluded_classes_do_not_help_or_harm():
    images, labels = batch(16)
    masked = lambda x: tf.concat([linear(x), tf.fill([x.shape[0], 3], -np.inf)], -1)  # noqa: E731
    attack = AutoAttack(3.0, **dict(CHEAP, num_classes=8))
    result = attack.run(masked, images, labels, SEED)
    is_robust = boundary_distances(images, labels, "linf") > 3.0
    assert 0 < is_robust.sum() < 16
    assert result.warnings == []
    fab = FAB(3.0, num_classes=8, num_steps=8, targeted=False)  # which looks at all classes
    found = tf.function(lambda: fab.search(masked, images, labels, SEED).still_correct)()
    np.testing.assert_array_equal(found, is_robust)
    for still_correct in list(result.still_correct.values())[1:]:
        assert still_correct[is_robust].all()
    np.testing.assert_array_equal(result.still_correct["square"], is_robust)
