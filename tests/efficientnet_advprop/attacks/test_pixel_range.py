"""An attack stays in its ball around the image that is evaluated, also where that has overshoots."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, UniformNoise
from efficientnet_advprop.attacks.norms import clip_to_pixel_range, pixel_range
from efficientnet_advprop.data import preprocessing

SEED = tf.constant([5, 6])


@pytest.fixture(scope="module")
def overshooting():
    """Stripes, black and white, as the evaluation resizes them: unclipped bicubic."""
    stripes = np.repeat(np.array([0, 255] * 20, np.uint8), 3)
    image = np.broadcast_to(stripes[None, :, None], [120, 120, 3])
    file = tf.io.encode_png(image).numpy()
    resized = preprocessing.preprocess_for_eval(tf.constant(file), image_size=50, crop="0.875")
    assert resized.numpy().min() < -10.0 and resized.numpy().max() > 265.0
    return tf.stack([resized, 255.0 - resized])


def linear(images):
    weights = tf.constant(np.random.RandomState(0).standard_normal([50 * 50 * 3, 4]), tf.float32)
    return tf.reshape(images, [-1, 50 * 50 * 3]) @ weights / 255.0


ATTACKS = {
    "untargeted": lambda epsilon: PGD(epsilon, 1.0, 8, targeted=False, random_start=1.0),
    "targeted": lambda epsilon: PGD(epsilon, 1.0, 8, num_classes=4, random_start=1.0),
    "one step": lambda epsilon: PGD(epsilon, epsilon or 1.0, 1, targeted=False, random_start=0.0),
    "noise": lambda epsilon: UniformNoise(epsilon),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 4.0])
def test_stays_within_epsilon_and_not_further_out(overshooting, name, epsilon):
    found = ATTACKS[name](epsilon)(linear, overshooting, tf.constant([1, 3]), SEED).numpy()
    clean = overshooting.numpy()
    if epsilon == 0.0:
        np.testing.assert_array_equal(found, clean)
    # Half of the last bit of 255, and of the sum that rounds to it.
    assert np.abs(found - clean).max() <= epsilon + 3e-5
    assert (found >= np.minimum(clean, 0.0)).all() and (found <= np.maximum(clean, 255.0)).all()
    if epsilon == 4.0:  # inside the range it is used
        inner = (clean > 5.0) & (clean < 250.0)
        assert np.abs(found - clean)[inner].max() > 3.9


@pytest.mark.parametrize(
    "images, moved, wanted",
    [
        ([0.0, 3.0, 128.0, 255.0], [-4.0, -1.0, 300.0, 259.0], [0.0, 0.0, 255.0, 255.0]),
        # An overshoot may move inwards and stay.
        ([-30.0, -30.0, 270.0, 270.0], [-34.0, -26.0, 274.0, 266.0], [-30.0, -26.0, 270.0, 266.0]),
    ],
)
def test_a_pixel_moves_in_its_range(images, moved, wanted):
    images = tf.constant(images)
    np.testing.assert_array_equal(clip_to_pixel_range(tf.constant(moved), images), wanted)
    low, high = pixel_range(images)
    np.testing.assert_array_equal(low, np.minimum(images, 0.0))
    np.testing.assert_array_equal(high, np.maximum(images, 255.0))
