import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models import activations
from tests.conftest import require_xla_for_the_host
from tpu_utils import replica_runtime


class Host(replica_runtime.ReplicaRuntime):
    """This host, with XLA or as if it had none."""

    compiles_parts = None

    def __init__(self, compiles_parts):
        self.compiles_parts = compiles_parts


def plain(x, *weights):
    """The same, left to automatic differentiation."""
    y = tf.nn.silu(x)
    if not weights:
        return y
    return y * activations.squeeze_excite(tf.reduce_mean(y, [1, 2]), *weights)[:, None, None, :]


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 2e-6), (tf.bfloat16, 8e-2)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("compiles_parts", [True, False])
def test_values_and_gradients_are_those_of_automatic_differentiation(
    dtype, tolerance, gated, in_function, compiles_parts
):
    if compiles_parts:
        require_xla_for_the_host()
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
        atol = tolerance * np.abs(reference).max()
        np.testing.assert_allclose(tf.cast(value, tf.float32), reference, rtol=0, atol=atol)


def softplus(x, alpha):
    return np.logaddexp(0.0, alpha * x) / alpha


def gelu(x, alpha):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def smooth_relu(x, alpha):
    return np.where(x > 0, x - np.log(alpha * np.maximum(x, 0) + 1) / alpha, 0.0)


# In float64, from the papers' formulas; SmoothReLU and parametric softplus: SAT, section 4.
REFERENCES = {
    "relu": (lambda x, alpha: np.maximum(x, 0.0), None),
    "relu6": (lambda x, alpha: np.clip(x, 0.0, 6.0), None),
    "elu": (lambda x, alpha: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))), None),
    "swish": (lambda x, alpha: x / (1.0 + np.exp(-x)), None),
    "silu": (lambda x, alpha: x / (1.0 + np.exp(-x)), None),
    "gelu": (gelu, None),
    "softplus": (softplus, 1.0),
    "parametric_softplus": (softplus, 10.0),
    "smooth_relu": (smooth_relu, 400.0),
}


def test_every_activation_has_a_reference():
    assert set(REFERENCES) == {*activations.ACTIVATIONS, *activations.OTHER_NAMES}


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("name", REFERENCES)
def test_values_and_slopes_are_those_of_the_formula(name, alpha):
    formula, own_alpha = REFERENCES[name]
    if own_alpha is None and alpha is not None:
        with pytest.raises(ValueError, match="`activation_alpha` is 3.0, but `activation` is"):
            activations.Activation(name, alpha)
        return
    alpha = own_alpha if alpha is None else alpha
    activation = activations.Activation(name, alpha).make("activation")
    # Away from the kinks at 0 and 6, where there is no slope.
    x = np.random.RandomState(1).uniform(-8, 8, [4, 6, 5, 3])
    x = np.where(np.abs(x) < 1e-3, 1e-3, x)
    x32 = tf.constant(x, tf.float32)
    activation(x32)  # its α comes into being
    with tf.GradientTape() as tape:
        tape.watch(x32)
        y = activation(x32, training=True)
        total = tf.reduce_sum(y)
    variables = getattr(activation, "trainable_variables", [])
    slopes, *to_variables = tape.gradient(total, [x32, *variables])
    np.testing.assert_allclose(y, formula(x, alpha), rtol=2e-5, atol=2e-6)
    step = 1e-6
    wanted = (formula(x + step, alpha) - formula(x - step, alpha)) / (2 * step)
    np.testing.assert_allclose(slopes, wanted, rtol=1e-4, atol=2e-5)
    assert len(to_variables) == (name == "smooth_relu")
    for gradient in to_variables:  # of α's root: 2·√α·dy/dα
        step = 1e-4 * alpha
        by_alpha = (formula(x, alpha + step) - formula(x, alpha - step)).sum() / (2 * step)
        np.testing.assert_allclose(gradient, 2 * alpha**0.5 * by_alpha, rtol=1e-4)


def test_smooth_relu_at_known_points():
    """With α = 4 at x = ¼(e − 1) it is x − ¼, and its slope αx/(1 + αx) is 1 − 1/e."""
    activation = activations.Activation("smooth_relu", 4.0).make("activation")
    x = tf.constant([-1.0, 0.0, (np.e - 1) / 4], tf.float32)
    activation(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = activation(x)
    np.testing.assert_allclose(y, [0, 0, (np.e - 1) / 4 - 0.25], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(y, x), [0, 0, 1 - 1 / np.e], atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize("where", activations.SMOOTH_RELU_GRADIENTS)
def test_relu_with_a_smooth_gradient_is_relu_forwards_and_softplus_backwards(where, dtype):
    """SAT, section 4: parametric softplus's derivative with α = 10 is 1/(1 + e^(−10x))."""
    activation = activations.Activation("relu", smooth_relu_gradient=where).make("activation")
    x = tf.cast(np.linspace(-2, 2, 81) + 0.0125, dtype)
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = activation(x, training=training)
        np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(tf.nn.relu(x), tf.float32))
        values = np.asarray(tf.cast(x, tf.float32), np.float64)
        smooth = where in ("both", "training" if training else "attack")
        wanted = 1 / (1 + np.exp(-10 * values)) if smooth else (values > 0).astype(float)
        tolerance = 1e-6 if dtype == tf.float32 else 4e-3
        slope = tape.gradient(y, x)
        assert slope.dtype == dtype
        np.testing.assert_allclose(tf.cast(slope, tf.float32), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["gelu", "parametric_softplus", "smooth_relu"])
def test_one_pass_is_the_same_where_there_is_no_xla_and_inside_of_a_compiled_step(name):
    activation = activations.Activation(name).make("activation")
    x = tf.constant(np.random.RandomState(0).standard_normal([2, 3, 3, 2]), tf.float32)
    activation(x)

    def slopes(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = activation(x)
        return y, tape.gradient(y, x)

    wanted = slopes(x)
    with replica_runtime.use(Host(False)):
        for found in (slopes(x), tf.function(slopes)(x), tf.function(slopes, jit_compile=True)(x)):
            for value, reference in zip(found, wanted):
                np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6)
