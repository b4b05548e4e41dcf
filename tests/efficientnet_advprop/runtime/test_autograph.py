"""Other people's Python may ask a tensor; ours is traced as it is written."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.evaluation.evaluator import Evaluator
from efficientnet_advprop.keras import AdvPropModel, add_auxiliary_batch_norms
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.autograph import call_as_it_is, call_rewritten
from tests.efficientnet_advprop.models import keras_functions

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
LABELS = np.arange(4)


def twice_if_positive(x):
    if tf.reduce_sum(x) > 0.0:
        return 2.0 * x
    return x


@pytest.mark.parametrize("autograph", [False, True])
def test_which_code_is_rewritten(autograph):
    rewritten = tf.function(lambda x: call_rewritten(twice_if_positive, x), autograph=autograph)
    assert [float(rewritten(tf.constant(x))) for x in (3.0, -3.0)] == [6.0, -3.0]
    assert float(call_rewritten(twice_if_positive, tf.constant(3.0))) == 6.0
    as_it_is = tf.function(lambda x: call_as_it_is(twice_if_positive, x), autograph=autograph)
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        as_it_is(tf.constant(3.0))


def evaluated(model):
    batch = {"images": IMAGES, "labels": LABELS, "mask": np.ones(4)}
    data = tf.data.Dataset.from_tensors(batch)
    return Evaluator(lambda images: model(images, training=False))(data).num_images == 4


def attacked(model):
    wrong = np.argmin(model(IMAGES), -1)  # so that no attack has to be tried
    withstood = AutoAttack(1.0, num_classes=10).run(model, IMAGES, wrong, [0, 1])
    return not withstood.still_correct["clean"].any()


def trained(model):
    trainer = AdvPropModel(add_auxiliary_batch_norms(model), PGD(1.0, 1.0, 1, num_classes=10))
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = trainer.fit(IMAGES, LABELS, batch_size=4, verbose=0).history
    return np.isfinite(history["adversarial_loss"]).all()


@pytest.mark.parametrize("use", [evaluated, attacked, trained])
def test_a_keras_model_that_asks_a_tensor_can_be(use):
    assert use(keras_functions.asks_a_tensor(10))
