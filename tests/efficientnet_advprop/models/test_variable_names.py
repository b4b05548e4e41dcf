"""The digest of a network's weights."""

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.variable_names import weights_digest


def test_digest_sees_values_and_names_and_nothing_else():
    def make(value, name="v"):
        return [tf.Variable(np.full([2], value, np.float32), name=name)]

    assert weights_digest(make(1.0)) == weights_digest(make(1.0))
    assert (
        len({weights_digest(make(1.0)), weights_digest(make(1.5)), weights_digest(make(1.0, "w"))})
        == 3
    )
