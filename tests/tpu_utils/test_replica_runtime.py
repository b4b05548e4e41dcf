"""Random words: the library's own bits, by the generator that suits the device."""

import logging

import numpy as np
import tensorflow as tf

from tpu_utils import replica_runtime

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


class Adder:
    """Something whose method is compiled anew for every attack."""

    def add(self, number):
        return number + 1.0


def test_programs_of_the_same_code_are_not_taken_for_one_that_is_traced_again(caplog):
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        for number in range(8):
            program = replica_runtime.in_one_program(Adder().add)
            assert float(program(tf.constant(float(number)))) == number + 1.0
    finally:
        logger.removeHandler(caplog.handler)
    assert "retracing" not in caplog.text
