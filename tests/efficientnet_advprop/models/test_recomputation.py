"""Recomputed blocks give what kept ones give: the same gradients, statistics moved
once, and the work really done again.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import ResNet
from efficientnet_advprop.models.network import recompute_in_backward
from efficientnet_advprop.training import optimizers, steps
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import TrainState
from tests.conftest import load_tiny, make_tiny

INPUTS = tf.random.stateless_normal([4, 8, 8, 8], [0, 1])

TINY = dict(num_classes=10, width_coefficient=0.25, depth_coefficient=0.3, survival_prob=0.5)


def run_network(model, images):
    """Logits, the gradients of some loss and the inputs', and every variable afterwards."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=True, branch="aux", seed=tf.constant([3, 4]))
        loss = tf.reduce_sum(tf.sin(logits))
    return logits, tape.gradient(loss, [images, *model.trainable_variables])


def assert_same(kept, recomputed):
    assert [value is None for value in kept] == [value is None for value in recomputed]
    for index, (one, other) in enumerate(zip(kept, recomputed)):
        if one is not None:
            scale = np.abs(one).max() + 1e-6
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * scale, err_msg=str(index))


def compare(make_network, strategy):
    images = 255.0 * tf.random.stateless_uniform([2, 32, 32, 3], [0, 1])
    results = []
    for recomputed_blocks in (0, 2):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = make_network(recomputed_blocks=recomputed_blocks)
        logits, gradients = tf.function(
            lambda model=model: strategy.run(run_network, (model, images))
        )()

        def first(value):
            return value if value is None else strategy.experimental_local_results(value)[0].numpy()

        results.append([first(value) for value in (logits, *gradients, *model.variables)])
    assert_same(*results)
    # Of the main branch's norms: recomputing must not make zeros of them.
    assert any(value is None for value in results[0])


# Stochastic depth shows a second run that draws other numbers, the variables show
# statistics that move twice.
@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_logits_gradients_and_statistics_are_those_of_kept_blocks(replicas, two_replicas):
    compare(
        functools.partial(ResNet, "resnet50", **TINY),
        two_replicas if replicas == 2 else tf.distribute.get_strategy(),
    )


def test_xla_does_the_work_twice():
    """Identical operations on identical inputs are one operation to XLA, unless
    something keeps them apart.
    """
    kernel = tf.Variable(tf.random.stateless_normal([3, 3, 4, 4], [0, 1]))

    def block(x):
        for _ in range(2):
            x = tf.sin(tf.nn.conv2d(x, kernel, 1, "SAME"))
        return x

    def make_gradients(run):
        @tf.function(jit_compile=True)
        def gradients(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.square(run(x)))
            return tape.gradient(loss, [x, kernel])

        return gradients

    counts, results = [], []
    for run in (block, lambda x: recompute_in_backward(block, x)):
        gradients = make_gradients(run)
        compiled = gradients.experimental_get_compiler_ir(INPUTS[..., :4])(stage="optimized_hlo")
        counts.append(compiled.count(" convolution("))
        results.append(gradients(INPUTS[..., :4]))
    kept, recomputed = counts
    # Two forward, three gradients: of both kernels and the inner activation, perhaps the inputs.
    assert kept >= 5
    assert recomputed == kept + 2
    assert_same(*results)


@pytest.mark.slow
def test_an_advprop_step_of_efficientnet_with_recomputed_blocks_is_the_step_with_kept_ones():
    random = np.random.RandomState(0)
    batch = {
        "images": tf.constant(random.randint(0, 256, [4, 32, 32, 3]), tf.uint8),
        "labels": tf.constant([1, 3, 5, 7]),
    }
    results = []
    for recomputed_blocks in (0, 3):
        model = make_tiny(recomputed_blocks=recomputed_blocks, survival_prob=0.5, dropout_rate=0.3)
        load_tiny(model.variables)
        state = TrainState(model, optimizers.SGD(model.trainable_variables))
        step = steps.make_train_step(
            "advprop",
            state,
            LearningRate(0.1, 1.0),
            global_batch_size=4,
            attack=PGD(4.0, 2.0, 2, num_classes=10),
            weight_decay=0.0,
        )
        tf.function(step)(batch)
        results.append([variable.numpy() for variable in model.variables])
    assert_same(*results)
