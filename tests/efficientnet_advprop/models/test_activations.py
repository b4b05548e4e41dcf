import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models import activations
from tpu_utils.replicas import replica_runtime


class Host(replica_runtime.ReplicaRuntime):
    """This host, with XLA or as if it had none."""

    def __init__(self, compiles_parts):
        self._compiles_parts = compiles_parts

    @property
    def compiles_parts(self):
        return self._compiles_parts


def plain(x, *weights):
    """The same, left to automatic differentiation."""
    y = tf.nn.silu(x)
    return (
        y * activations.squeeze_excite(tf.reduce_mean(y, [1, 2]), *weights)[:, None, None, :]
        if weights
        else y
    )


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 2e-6), (tf.bfloat16, 8e-2)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("compiles_parts", [True, False])
def test_values_and_gradients_are_those_of_automatic_differentiation(
    dtype, tolerance, gated, in_function, compiles_parts
):
    if compiles_parts and not replica_runtime.current().compiles_parts:
        pytest.skip("this TensorFlow has no XLA for the host")
    random = np.random.RandomState(0)
    x = tf.cast(random.uniform(-12, 12, [2, 4, 5, 3]), dtype)
    upstream = tf.cast(random.standard_normal(x.shape), dtype)
    shapes = [[3, 2], [2], [2, 3], [3]] if gated else []
    weights = [tf.cast(random.standard_normal(shape), dtype) for shape in shapes]

    def differentiate(function, *arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = function(*arguments)
        return [y, *tape.gradient(y, arguments, tf.cast(upstream, y.dtype))]

    def ours():
        return differentiate(activations.gated_swish if gated else activations.swish, x, *weights)

    with replica_runtime.use(Host(compiles_parts)):
        found = tf.function(ours)() if in_function else ours()
    wanted = differentiate(plain, *(tf.cast(value, tf.float32) for value in (x, *weights)))
    assert len(found) == len(wanted) == 2 + len(shapes)
    for value, reference in zip(found, wanted):
        assert value.dtype == dtype
        scale = np.abs(reference).max()
        np.testing.assert_allclose(
            tf.cast(value, tf.float32), reference, rtol=0, atol=tolerance * scale
        )
