import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tpu_utils import randomness

SEED = tf.constant([1, 2])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: randomness.uniform([7], SEED),
        lambda: randomness.uniform([7], SEED, -2.0, 3.0),
        lambda: randomness.integers([7], SEED, 1, 1000),
        lambda: randomness.noise_like(tf.zeros([2, 3, 5, 3]), SEED, -2.0, 3.0),
        lambda: randomness.fold_in(SEED, 5),
        lambda: tf.stack(randomness.split(SEED, 3)),
        lambda: randomness.dropout(tf.ones([50]), 0.5, SEED),
    ],
)
def test_the_same_numbers_eagerly_in_a_function_and_under_xla(draw):
    wanted = draw()
    np.testing.assert_array_equal(tf.function(draw, autograph=False)(), wanted)
    np.testing.assert_allclose(
        tf.function(draw, autograph=False, jit_compile=True)(), wanted, rtol=1e-6
    )


def test_uniform_is_uniform():
    values = randomness.uniform([100_000], SEED, -2.0, 3.0).numpy()
    assert -2.0 <= values.min() and values.max() < 3.0
    assert scipy.stats.kstest(values, scipy.stats.uniform(-2.0, 5.0).cdf).pvalue > 0.01


def test_normal_values_are_normal_and_finite_where_a_uniform_one_is_zero():
    """Of these 614,400 words one has no upper bits, at [56, 4, 9, 0]."""
    shape, seed = [200, 32, 32, 3], randomness.fold_in(tf.constant([2, 0]), 3)
    at_zero = []
    for jit_compile in (False, True):
        draw = tf.function(randomness.normal, autograph=False, jit_compile=jit_compile)
        values = draw(shape, seed).numpy()
        assert np.isfinite(values).all()
        at_zero.append(values[56, 4, 9, 0])
    radius_seed, angle_seed = randomness.split(seed, 2)
    assert randomness.uniform(shape, radius_seed)[56, 4, 9, 0] == 0.0
    assert randomness.positive_uniform(shape, radius_seed)[56, 4, 9, 0] == 2.0**-25
    angle = 2.0 * np.pi * randomness.uniform(shape, angle_seed)[56, 4, 9, 0].numpy()
    np.testing.assert_allclose(at_zero, np.sqrt(50.0 * np.log(2.0)) * np.cos(angle), rtol=1e-4)
    assert scipy.stats.kstest(values.ravel()[::50], "norm").pvalue > 1e-3


def test_noise_is_uniform_and_independent_between_neighbours():
    noise = randomness.noise_like(tf.zeros([4, 100, 101, 3]), SEED, -2.0, 3.0).numpy()
    assert noise.shape == (4, 100, 101, 3) and -2.0 < noise.min() and noise.max() < 3.0
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.uniform(-2.0, 5.0).cdf).pvalue > 0.01
    assert len(np.unique(noise)) > 0.8 * 2**16  # 121,200 draws of 65,536 steps leave 16 % unseen
    for axis in range(4):
        first, second = (
            noise.take(range(noise.shape[axis] - 1), axis),
            noise.take(range(1, noise.shape[axis]), axis),
        )
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4.0 / np.sqrt(first.size)


def test_dropout_keeps_the_mean():
    values = randomness.dropout(tf.ones([100_000]), 0.3, SEED).numpy()
    assert set(np.unique(values)) == {np.float32(0.0), np.float32(1.0) / np.float32(0.7)}
    assert abs(np.mean(values == 0.0) - 0.3) < 0.006  # four standard deviations


def test_seeds_differ_by_what_is_folded_in():
    seeds = {tuple(randomness.fold_in(SEED, index).numpy()) for index in range(100)}
    assert len(seeds) == 100
