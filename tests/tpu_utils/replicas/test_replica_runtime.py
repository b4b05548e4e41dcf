"""Random words: the library's own bits, by the generator that suits the device."""

import numpy as np
import tensorflow as tf

from tpu_utils.replicas import replica_runtime

SEED = tf.constant([3, 4])


def test_random_words_are_philoxs():
    drawn = tf.random.stateless_uniform([12], SEED, None, None, tf.int32, alg="philox").numpy()
    np.testing.assert_array_equal(
        replica_runtime.current().random_words(12, SEED), drawn.reshape(3, 4).T.ravel()
    )


def test_on_a_tpu_tensorflow_chooses_the_generator(monkeypatch):
    monkeypatch.setattr(replica_runtime, "_on_tpu", lambda: True)
    draw = tf.function(lambda: replica_runtime.current().random_words(12, SEED), autograph=False)
    (drawn,) = (
        operation
        for operation in draw.get_concrete_function().graph.get_operations()
        if "UniformFullInt" in operation.type
    )
    assert tf.get_static_value(drawn.inputs[3]) == tf.random.Algorithm.AUTO_SELECT.value
    chosen = tf.random.stateless_uniform([12], SEED, None, None, tf.int32, alg="auto_select")
    np.testing.assert_array_equal(draw(), chosen)
