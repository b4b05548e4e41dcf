import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.training.losses import LossScale


def test_grows_after_so_many_finite_steps_and_shrinks_at_once():
    # The rule of Keras's LossScaleOptimizer, whose own state this follows step by step.
    flags = [True, True, True, True, False, True, True, True, False, False, True]
    ours = LossScale(initial=8.0, growth_steps=3)
    reference = keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(), initial_scale=8.0, dynamic_growth_steps=3
    )
    weight = tf.Variable(1.0)
    reference.build([weight])
    for is_finite in flags:
        ours.update(tf.constant(is_finite))
        reference.apply_gradients([(tf.constant(1.0 if is_finite else float("inf")), weight)])
        assert ours.scale.numpy() == reference.loss_scale.numpy()
        assert ours.num_finite.numpy() == reference.dynamic_counter.numpy()


def test_stays_in_its_range():
    low, high = LossScale(initial=1.0), LossScale(initial=2.0**31, growth_steps=1)
    low.update(tf.constant(False))
    high.update(tf.constant(True))
    assert (low.scale.numpy(), high.scale.numpy()) == (1.0, 2.0**31)
