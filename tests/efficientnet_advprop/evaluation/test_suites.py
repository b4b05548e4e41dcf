"""Scoring models on test sets: each set read once, none scored twice, models that take turns not mixed up."""

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.config import DataConfig
from efficientnet_advprop.data import corruptions, digits
from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.evaluation.suites import TestSet, digits_suite, evaluate_suite

TestSet.__test__ = False  # a class of ours, not of pytest's


def make_batches(labels):
    """Black images of class `labels`, batch of all."""
    count = len(labels)
    return [{"images": tf.zeros([count, 1, 1, 3]), "labels": tf.constant(labels), "mask": tf.ones([count])}]


def always(label):
    return lambda images: tf.one_hot(tf.fill([images.shape[0]], label), 3)


def test_scores_each_model_on_each_set_once():
    opened = []

    def opener(name, labels):
        return lambda: opened.append(name) or make_batches(labels)

    suite = [TestSet("clean", opener("clean", [0, 0, 1, 2])), TestSet("fog/1", opener("fog/1", [1, 1, 1, 0]))]
    zero, one = always(0), always(1)
    models = {"zero": lambda: zero, "one": lambda: one}
    results, saves, lines = Results({}, dict.fromkeys(models, "")), [], []
    evaluate_suite(models, suite, results, save=lambda: saves.append(len(results.scores)), log=lines.append)
    found = {name: [scores[model].num_top1 for model in models] for name, scores in results.scores.items()}
    assert found == {"clean": [2, 1], "fog/1": [1, 3]}
    assert opened == ["clean", "fog/1"] and saves[-1] == 2

    evaluate_suite(models, [*suite, TestSet("fog/2", opener("fog/2", [2]))], results, save=lambda: None, log=lines.append)
    assert opened == ["clean", "fog/1", "fog/2"]
    assert results.scores["fog/2"]["one"].num_top1 == 0


def test_models_may_take_turns_in_one_network():
    answer = tf.Variable(0)
    logits_fn = lambda images: tf.one_hot(tf.fill([images.shape[0]], answer), 3)  # noqa: E731

    def prepare(label):
        return lambda: answer.assign(label) is None or logits_fn

    results = Results({}, {"zero": "", "two": ""})
    suite = [TestSet("clean", lambda: make_batches([0, 2, 2]))]
    evaluate_suite({"zero": prepare(0), "two": prepare(2)}, suite, results, save=lambda: None, log=lambda line: None)
    assert [score.num_top1 for score in results.scores["clean"].values()] == [1, 2]


def test_digits_suite_is_the_corrupted_images_in_the_order_of_the_clean_ones(tmp_path):
    data = DataConfig(source="digits", image_size=32, eval_crop="none")
    digits.ensure_digits(str(tmp_path))
    attack = PGD(4.0, targeted=False)
    suite = {s.name: s for s in digits_suite(data, str(tmp_path), batch_size=250, num_classes=10, attacks=[attack])}
    assert len(suite) == 1 + 1 + 15 * 5
    assert suite["pgd/4"].attack == attack and suite["clean"].attack is None and suite["fog/3"].attack is None
    clean, labels = digits.load_digits("validation")
    batch = next(iter(suite["contrast/5"].open_batches()))
    expected = np.stack([corruptions.corrupt(clean[i], "contrast", 5, seed=i) for i in range(20)])
    np.testing.assert_array_equal(batch["images"][:20], expected)
    np.testing.assert_array_equal(batch["labels"], labels[:250])
