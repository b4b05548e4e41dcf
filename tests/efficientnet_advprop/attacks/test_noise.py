import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import UniformNoise

SEED = tf.constant([3, 4])


def test_uniform_in_the_ball_and_the_pixel_range_whatever_the_network():
    images = np.random.RandomState(0).randint(0, 256, [16, 8, 8, 3]).astype(np.uint8)
    found = UniformNoise(4.0)(None, images, None, SEED).numpy()
    distance = np.abs(found - images)
    assert distance.max() <= 4.0
    assert found.min() >= 0.0
    assert found.max() <= 255.0
    assert found.dtype == np.float32
    # |noise| is uniform in 0 … 4 where nothing clips.
    inner = distance[(images > 4) & (images < 251)]
    assert 1.9 < inner.mean() < 2.1
    assert np.abs(np.quantile(inner, [0.25, 0.75]) - [1.0, 3.0]).max() < 0.15
    np.testing.assert_array_equal(found, UniformNoise(4.0)(None, images, None, SEED))
    assert np.abs(found - UniformNoise(4.0)(None, images, None, tf.constant([3, 5]))).max() > 1.0


def test_refused_arguments_are_named():
    with pytest.raises(ValueError, match="`epsilon` is -1.0"):
        UniformNoise(-1.0)
