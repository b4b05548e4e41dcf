"""The evaluator against scikit-learn and closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax
from sklearn.metrics import top_k_accuracy_score

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.evaluation.evaluator import Evaluator, score

NUM_CLASSES = 7


def make_batches(images, labels, batch_size):
    """Batches of a fixed size with the last one padded, as the pipeline makes them;
    padding is labelled like a hit would be.
    """
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        padding = batch_size - len(labels[part])
        yield {
            "images": tf.constant(
                np.concatenate([images[part], np.zeros([padding, *images.shape[1:]], images.dtype)])
            ),
            "labels": tf.constant(np.concatenate([labels[part], np.zeros(padding, np.int32)])),
            "mask": tf.constant([1.0] * (batch_size - padding) + [0.0] * padding),
        }


def logits_from_pixels(images):
    """A classifier whose logits are the first pixels: what it says can be put into an
    image.
    """
    return tf.reshape(images, [images.shape[0], -1])[:, :NUM_CLASSES]


@pytest.fixture(scope="module")
def images_and_labels():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, [53, 1, 3, 3]).astype(np.float32), rng.integers(
        0, NUM_CLASSES, 53
    ).astype(np.int32)


@pytest.mark.parametrize("batch_size", [1, 10, 53, 64])
def test_every_image_counts_once_at_any_batch_size(images_and_labels, batch_size):
    images, labels = images_and_labels
    logits = images.reshape(53, -1)[:, :NUM_CLASSES]
    score = Evaluator(logits_from_pixels)(make_batches(images, labels, batch_size))
    assert score.num_images == 53
    for k, found in ((1, score.top1), (5, score.top5)):
        assert found == pytest.approx(
            top_k_accuracy_score(labels, logits, k=k, labels=range(NUM_CLASSES))
        )


def test_two_replicas_count_like_one(images_and_labels, two_replicas):
    images, labels = images_and_labels
    dataset = tf.data.Dataset.from_generator(
        lambda: make_batches(images, labels, 16),
        output_signature={
            "images": tf.TensorSpec([16, 1, 3, 3]),
            "labels": tf.TensorSpec([16], tf.int32),
            "mask": tf.TensorSpec([16]),
        },
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    distributed = two_replicas.experimental_distribute_dataset(dataset.with_options(options))
    evaluate = Evaluator(logits_from_pixels, strategy=two_replicas)
    assert evaluate(distributed) == Evaluator(logits_from_pixels)(make_batches(images, labels, 10))


def test_answers_are_those_of_the_images_whatever_the_batches(images_and_labels):
    images, labels = images_and_labels
    logits = images.reshape(53, -1)[:, :NUM_CLASSES].astype(np.float64)
    found = list(
        Evaluator(logits_from_pixels).predict(with_positions(make_batches(images, labels, 10)))
    )
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    assert (
        joined["positions"].tolist() == list(range(53))
        and joined["labels"].tolist() == labels.tolist()
    )
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(joined["classes"], order[:, :5])
    np.testing.assert_array_equal(
        joined["ranks"], [list(row).index(label) for row, label in zip(order, labels)]
    )
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(
        joined["probabilities"], np.take_along_axis(probabilities, order[:, :5], 1), atol=1e-6
    )


def with_positions(batches):
    start = 0
    for batch in batches:
        yield {**batch, "positions": tf.range(start, start + len(batch["labels"]))}
        start += len(batch["labels"])


def test_ties_and_non_finite_logits_are_no_gift():
    constant, broken = [0.0] * 7, [0.0, np.nan, 0.0, 0.0, 0.0, 0.0, 0.0]
    logits = tf.constant([constant, constant, broken, broken, [np.inf] + [0.0] * 6])
    labels = tf.constant([0, 6, 1, 0, 0])
    answers = score(logits, labels)
    assert answers.ranks.numpy().tolist() == [0, 6, 7, 7, 7]
    assert answers.classes.numpy()[1:3].tolist() == [[0, 1, 2, 3, 4], [-1] * 5]
    assert answers.probabilities.numpy()[2].tolist() == [0.0] * 5


def test_minus_infinity_excludes_a_class():
    """SciPy's log-softmax says the losses; who excludes all classes says nothing."""
    inf = np.inf
    logits = np.array([[5.0, -inf, 1.0], [5.0, -inf, 1.0], [-inf] * 3, [5.0, -inf, np.nan]])
    for function in (score, tf.function(score, jit_compile=True)):
        predictions = function(tf.constant(logits), tf.constant([2, 1, 0, 0]))
        assert predictions.ranks.numpy().tolist() == [1, 2, 3, 3]
        assert predictions.classes.numpy().tolist()[:3] == [[0, 2, 1], [0, 2, 1], [-1] * 3]
        wanted = -log_softmax(logits[:2], axis=1)[[0, 1], [2, 1]]
        np.testing.assert_allclose(predictions.losses[:2], wanted, rtol=1e-6)
        assert np.isnan(predictions.losses[2:]).all()
        assert (predictions.probabilities.numpy()[:2, 2] == 0.0).all()


def test_fewer_classes_than_k():
    answers = score(tf.constant([[1.0, 2.0, 3.0]]), tf.constant([0]))
    assert answers.ranks.numpy() < 5 and answers.classes.numpy().tolist() == [[2, 1, 0]]


def test_only_the_class_subset_count():
    """Class 6 would win, but is none of those asked about; probabilities are over those
    that are.
    """
    logits = np.array([[0.0, 3.0, 1.0, 9.0, 2.0, 0.0, 9.0]])
    answers = score(tf.constant(logits), tf.constant([4]), class_subset=(1, 2, 4))
    kept = np.exp(logits[0, [1, 4, 2]])
    assert answers.ranks.numpy().tolist() == [1] and answers.classes.numpy().tolist() == [[1, 4, 2]]
    np.testing.assert_allclose(answers.probabilities[0], kept / kept.sum(), rtol=1e-6)
    np.testing.assert_allclose(answers.losses, -np.log(kept[1] / kept.sum()), rtol=1e-6)


def test_robust_accuracy_of_a_linear_classifier():
    """Its margin says which images survive: an attack of ±ε on both logits' pixels
    moves their difference by 2ε.
    """
    margins = np.array([-3.0, 1.0, 4.0, 7.9, 8.1, 20.0, 100.0], np.float32)
    images = np.full([len(margins), 1, 1, 3], 120.0, np.float32)
    images[:, 0, 0, 0] += margins
    labels = np.zeros(len(margins), np.int32)
    attack = PGD(epsilon=4.0, step_size=2.0, num_steps=6, targeted=False, random_start=1.0)

    def two_classes(x):
        return tf.reshape(x, [x.shape[0], -1])[:, :2]

    assert Evaluator(two_classes)(make_batches(images, labels, 4)).num_top1 == np.sum(margins > 0)
    assert Evaluator(two_classes, attack=attack)(
        make_batches(images, labels, 4)
    ).num_top1 == np.sum(margins > 8)


def test_an_attack_that_helps_does_not_count_as_robust():
    """A classifier that is wrong exactly at the clean images: any step away, an
    attack's too, makes it right by accident.
    """
    images, labels = np.full([20, 1, 1, 3], 100.0, np.float32), np.zeros(20, np.int32)

    def wrong_at_100(x):
        distance = tf.abs(x[:, 0, 0, 0] - 100.0)
        return tf.stack([distance, tf.fill(tf.shape(distance), 0.1)], axis=1)

    attack = PGD(epsilon=8.0, step_size=8.0, num_steps=1, targeted=False, random_start=1.0)
    adversarial_images = attack(
        wrong_at_100, tf.constant(images), tf.constant(labels), seed=tf.constant([0, 0])
    )
    assert np.mean(np.argmax(wrong_at_100(adversarial_images), -1) == labels) > 0.8
    assert Evaluator(wrong_at_100, attack=attack)(make_batches(images, labels, 20)).num_top1 == 0


def test_an_image_must_withstand_every_restart():
    """Right at its own pixel alone and wrong in one of three directions: which one a
    single random start meets is chance.
    """
    images, labels = np.full([60, 1, 1, 3], 100.0, np.float32), np.zeros(60, np.int32)

    def wrong_where_red_rises(x):
        rise = x[:, 0, 0, 0] - 100.0
        return tf.stack(
            [tf.zeros_like(rise), tf.sign(rise - 0.5)], axis=1
        )  # flat: the attack stays at its random start

    def robust(num_restarts):
        attack = PGD(epsilon=2.0, step_size=1e-6, num_steps=1, targeted=False, random_start=1.0)
        evaluate = Evaluator(wrong_where_red_rises, attack=attack, num_restarts=num_restarts)
        return evaluate(make_batches(images, labels, 60)).num_top1

    once, eight_times = robust(1), robust(8)
    assert 60 * (5 / 8) - 15 < once < 60 * (5 / 8) + 15  # P(rise < 0.5) of a uniform start in ±2
    assert eight_times < 10  # 60 · (5/8)⁸ = 1.4


def test_the_attack_draws_the_same_whenever_it_runs(images_and_labels):
    images, labels = images_and_labels
    attack = PGD(
        epsilon=60.0,
        step_size=20.0,
        num_steps=2,
        targeted=True,
        random_start=0.5,
        num_classes=NUM_CLASSES,
    )
    scores = {
        Evaluator(logits_from_pixels, attack=attack, seed=3)(make_batches(images, labels, 10))
        for _ in range(2)
    }
    assert len(scores) == 1


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        Evaluator(logits_from_pixels)([])
