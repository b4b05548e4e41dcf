"""What labels mean, by type and shape: for the attack, the training loss and the evaluation alike."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, AttackError, UniformNoise
from efficientnet_advprop.attacks.labels import check_classes, check_labels
from efficientnet_advprop.attacks.pgd import cross_entropy, draw_wrong_labels
from efficientnet_advprop.evaluation.evaluator import Evaluator, score
from efficientnet_advprop.training import losses
from tests.efficientnet_advprop.attacks.linear_network import linear
from tests.efficientnet_advprop.attacks.test_pgd import batch

SEED = tf.constant([3, 4])
CLASSES = np.array([3, 0, 4, 1])
ONE_HOT = np.eye(5)[CLASSES]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
# Classes as people have them: every integer type, and Keras's CIFAR-10's second
# dimension.
CLASS_FORMS = [CLASSES.astype(dtype) for dtype in INTEGERS]
CLASS_FORMS += [CLASSES[:, None].astype(dtype) for dtype in INTEGERS]
CLASS_FORMS += [CLASSES.tolist(), CLASSES[:, None].tolist()]
WEIGHT_FORMS = [ONE_HOT.astype(dtype) for dtype in ("float64", "float16", "int64", "uint8", "bool")]
LOGITS = np.random.RandomState(0).standard_normal([4, 5]).astype(np.float32)
LOSSES = np.log(np.exp(LOGITS).sum(1)) - LOGITS[np.arange(4), CLASSES]


def form_name(value):
    value = np.asarray(value)
    return f"{value.dtype}{list(value.shape)}"


@pytest.mark.parametrize("labels", CLASS_FORMS, ids=form_name)
def test_classes_of_every_integer_type(labels):
    found = check_labels(labels, 5, 4)
    assert found.dtype == tf.int32
    np.testing.assert_array_equal(found, CLASSES)
    np.testing.assert_array_equal(tf.function(lambda x: check_labels(x, 5))(labels), CLASSES)


@pytest.mark.parametrize("labels", WEIGHT_FORMS, ids=form_name)
def test_weights_of_every_type(labels):
    found = check_labels(labels, 5, 4)
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, ONE_HOT)
    with pytest.raises(AttackError, match="one class"):
        check_classes(labels, 5, 4)


@pytest.mark.parametrize("labels", [*CLASS_FORMS[::3], *WEIGHT_FORMS], ids=form_name)
def test_losses_and_attacks_are_those_of_the_classes(labels):
    np.testing.assert_allclose(losses.cross_entropy(labels, LOGITS), LOSSES, rtol=1e-5)
    np.testing.assert_allclose(cross_entropy(labels, tf.constant(LOGITS)), LOSSES, rtol=1e-5)
    images = batch(4)[0]
    attack = PGD(4.0, 2.0, 3, targeted=False, random_start=0.0, num_classes=5)
    wanted = attack(linear, images, CLASSES.astype(np.int32), SEED)
    np.testing.assert_array_equal(attack(linear, images, labels, SEED), wanted)
    targets = draw_wrong_labels(labels, 5, SEED).numpy()
    assert (targets != CLASSES).all() and (targets < 5).all() and (targets >= 0).all()


SOFT = np.full([4, 5], 0.2, np.float32)
REFUSED = [  # with what the message says of it
    (CLASSES.astype(np.float32), r"float32 of shape \(4,\)"),
    (CLASSES[:, None].astype(np.float32), r"float32 of shape \(4, 1\).*\[batch, 5\]"),
    (CLASSES > 0, r"bool of shape \(4,\)"),
    ((CLASSES > 0)[:, None], r"bool of shape \(4, 1\)"),
    (np.eye(6)[CLASSES], r"float64 of shape \(4, 6\)"),
    (np.eye(6, dtype=np.int64)[CLASSES], r"int64 of shape \(4, 6\)"),
    (ONE_HOT[:, None], r"shape \(4, 1, 5\)"),
    (np.int32(3), r"shape \(\)"),
    (np.array(["a", "b", "c", "d"]), "string of shape"),
    (CLASSES + 0j, "complex128 of shape"),
    (CLASSES[:3], r"shape \(3,\).* 4 images"),
    (ONE_HOT[:3], r"shape \(3, 5\).* 4 images"),
    (CLASSES + 1, r"hold 5.* \[0, 5\)"),
    (CLASSES.astype(np.int8) - 1, "hold -1"),
    (np.array([0, 1, 2, 2**40]), f"hold {2**40}"),
    (np.array([0, 1, 2, 2**64 - 1], np.uint64), f"hold {2**64 - 1}"),
    (SOFT * 2, "sum is 2"),
    (SOFT * 0, "sum is 0"),
    (SOFT - ONE_HOT * 0.4, "hold -0.2"),
    (SOFT * np.nan, "hold nan"),
]


@pytest.mark.parametrize("labels, said", REFUSED, ids=lambda value: form_name(value)[:40])
def test_what_fits_neither_is_refused_in_words(labels, said):
    images = batch(4)[0]
    for targeted in (True, False):
        with pytest.raises(AttackError, match=f"(?s)`labels` .*{said}"):
            PGD(1.0, targeted=targeted, num_classes=5)(linear, images, labels, SEED)
    with pytest.raises(AttackError, match="`labels` "):
        PGD(1.0, targeted=False)(linear, images, labels, SEED)  # knows of no number of classes
    with pytest.raises(AttackError, match=f"(?s)`labels` .*{said}"):
        losses.cross_entropy(labels, LOGITS, 0.1)
    with pytest.raises(AttackError, match="`labels` "):
        score(tf.constant(LOGITS), labels)


def test_labels_whose_shape_is_not_known_when_tracing():
    found = []
    for shape, dtype in ((None, tf.int32), ([None, None], tf.int32), ([None, None], tf.bool)):
        spec = tf.TensorSpec(shape, dtype)
        with pytest.raises(AttackError, match="`labels` are"):
            tf.function(lambda x: check_labels(x, 5), input_signature=[spec])(ONE_HOT)
    spec = tf.TensorSpec([None, None], tf.float32)
    run = tf.function(lambda x: found.append(check_labels(x, 5)) or 0, input_signature=[spec])
    run(tf.constant(ONE_HOT, tf.float32))
    assert found[0].shape.as_list() == [None, 5]


# Values that cannot be seen when tracing are never counted.
UNKNOWN = np.array([3, 5, -1, 1], np.int64)  # of 5 classes
HUGE = np.array([3, 2**40, -(2**40), 1], np.int64)  # int32 would make classes of them


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("labels", [HUGE, UNKNOWN.astype(np.int32)])
def test_a_traced_loss_of_no_class_is_not_a_number(labels, jit_compile):
    run = tf.function(
        lambda labels: losses.cross_entropy(labels, LOGITS, 0.1), jit_compile=jit_compile
    )
    np.testing.assert_array_equal(np.isnan(run(labels)), [False, True, True, False])


@pytest.mark.parametrize("labels, targeted", [(HUGE, True), (UNKNOWN.astype(np.int32), False)])
def test_a_traced_attack_on_no_class_is_loud(labels, targeted):
    images = batch(4)[0]
    attack = PGD(4.0, 2.0, 2, targeted=targeted, random_start=0.0, num_classes=5)

    def run(labels):
        return attack(linear, images, labels, SEED)

    with pytest.raises(tf.errors.InvalidArgumentError, match="label value"):
        tf.function(run)(labels)
    found = tf.function(run, jit_compile=True)(labels).numpy()
    np.testing.assert_array_equal(np.isnan(found).all(axis=(1, 2, 3)), [False, True, True, False])


def evaluation_batches(labels, mask=(1, 1, 1, 1)):
    images, labels = tf.constant(batch(4)[0]), tf.constant(labels)
    mask = tf.constant(mask, tf.float32)
    yield {"images": images, "labels": labels, "mask": mask, "positions": tf.range(4)}


@pytest.mark.parametrize("attack", [None, PGD(8.0, 4.0, 2, targeted=False, random_start=1.0)])
def test_the_evaluation_takes_classes_of_every_form_and_refuses_others(attack):
    evaluate = Evaluator(linear, attack=attack)
    own = tf.argmax(linear(batch(4)[0]), -1).numpy()
    wanted = None
    for labels in (own, own[:, None].astype(np.uint8)):  # each form is traced anew
        score = evaluate(evaluation_batches(labels))
        answers = next(iter(evaluate.predict(evaluation_batches(labels))))
        np.testing.assert_array_equal(answers["labels"], own)
        assert score.num_images == 4 and score.num_top1 == (answers["ranks"] == 0).sum()
        wanted = wanted or score
        assert score == wanted
    assert attack is not None or wanted.num_top1 == 4
    for wrong in (np.eye(5)[own], own.astype(np.float32)):
        with pytest.raises(AttackError, match="`labels`"):
            evaluate(evaluation_batches(wrong))
    for wrong in (UNKNOWN, HUGE):  # of own's type and shape: traced already
        with pytest.raises(AttackError, match="`labels` of 2 of 4 images are no classes"):
            evaluate(evaluation_batches(wrong))
        with pytest.raises(AttackError, match="`labels` of 2 of 4 images .*for one"):
            next(iter(evaluate.predict(evaluation_batches(wrong))))
        # What stands in padding is no label.
        assert evaluate(evaluation_batches(wrong, (1, 0, 0, 1))).num_images == 2


def test_noise_looks_at_no_labels():
    images = batch(4)[0]
    assert UniformNoise(1.0)(None, images, None, SEED).shape == images.shape
