import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.training.state import ExponentialMovingAverage
from tests.conftest import golden


@pytest.mark.parametrize(
    "name, decay, start",
    [(f"ema_shadow_num_updates_from_{start}", 0.9999, start) for start in (0, 1000, 89980, 200000)]
    + [("ema_shadow_decay0.9_from_0", 0.9, 0)],
)
def test_shadows_are_the_official_ones(name, decay, start):
    numbers = golden("optim.npz")
    values = numbers["ema_variable_values"]
    variable = tf.Variable(values[0], name="v")
    ema = ExponentialMovingAverage([variable], decay)
    assert ema.shadows[0].name == golden("optim.json")["ema_shadow_name"] + ":0"
    update = tf.function(ema.update)
    np.testing.assert_array_equal(ema.shadows[0], numbers[name][0])
    for t in range(1, len(values)):
        variable.assign(values[t])
        update(tf.constant(start + t, tf.int64))
        np.testing.assert_allclose(ema.shadows[0], numbers[name][t], rtol=2e-6, atol=1e-7)


def test_averages_go_to_namesakes_only():
    variable = tf.Variable([1.0, 2.0], name="v")
    ema = ExponentialMovingAverage([variable], 0.5)
    variable.assign([5.0, 5.0])
    other, stranger = tf.Variable([0.0, 0.0], name="v"), tf.Variable([0.0], name="w")
    ema.copy_to([other])
    np.testing.assert_array_equal(other, [1.0, 2.0])
    with pytest.raises(ValueError, match="holds w, of which there is no average"):
        ema.copy_to([other, stranger])


def test_decay_out_of_range():
    with pytest.raises(ValueError, match="`decay` is 1.0"):
        ExponentialMovingAverage([], 1.0)
