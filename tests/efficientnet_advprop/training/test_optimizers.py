import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.training import optimizers
from tests.conftest import golden

SLOTS = {
    "rmsprop": {"rms": "mean_squares", "momentum": "momenta"},
    "momentum": {"momentum": "momenta"},
    "sgd": {},
}


@pytest.mark.parametrize("rates", ["const", "varying"])
@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.parametrize("compiled", [False, True])
def test_twenty_official_updates(name, rates, compiled):
    numbers, facts = golden("optim.npz"), golden("optim.json")["opt"]
    keys = "wbs"
    variables = [tf.Variable(numbers[f"opt_init_{key}"], name=key) for key in keys]
    optimizer = optimizers.make_optimizer(name, variables)
    update = tf.function(optimizer.apply, jit_compile=compiled)
    for t in range(facts["steps"]):
        rate = facts["constant_lr"] if rates == "const" else numbers["opt_lr_varying"][t]
        update(
            [tf.constant(numbers[f"opt_grads_{key}"][t]) for key in keys],
            tf.constant(rate, tf.float32),
        )
        for index, key in enumerate(keys):
            wanted = numbers[f"opt_{name}_{rates}_var_{key}"][t]
            np.testing.assert_allclose(
                variables[index], wanted, rtol=5e-6, atol=1e-6, err_msg=f"{key} after {t + 1}"
            )
            for slot, attribute in SLOTS[name].items():
                wanted = numbers[f"opt_{name}_{rates}_{slot}_{key}"][t]
                np.testing.assert_allclose(
                    getattr(optimizer, attribute)[index], wanted, rtol=5e-6, atol=1e-6
                )


def test_slots_start_and_are_called_as_in_the_official_checkpoints():
    facts = golden("optim.json")["opt"]["rmsprop"]
    optimizer = optimizers.RMSProp([tf.Variable([1.0, 2.0], name="w")])
    slots = {"rms": optimizer.mean_squares[0], "momentum": optimizer.momenta[0]}
    for slot, variable in slots.items():
        assert variable.name == facts["slot_variable_names"][slot] + ":0"
        assert set(variable.numpy()) == {facts["slot_initial"][slot]}


def lars_in_float64(values, gradients, momenta, rate, excluded, epsilon=0.0):
    """One update by the formula of the official `lars_optimizer`, in place."""
    for name, gradient in gradients.items():
        value, step = values[name], rate * gradient
        if name not in excluded:
            norm, gradient_norm = np.linalg.norm(value), np.linalg.norm(gradient)
            trust = 1.0
            if norm > 0 and gradient_norm > 0:
                trust = 1e-3 * norm / (gradient_norm + 1e-5 * norm + epsilon)
            step = rate * trust * (gradient + 1e-5 * value)
        momenta[name] = 0.9 * momenta[name] + step
        values[name] = value - momenta[name]


@pytest.mark.parametrize("compiled", [False, True])
def test_lars_is_the_official_formula_with_both_exclusions(compiled):
    random = np.random.RandomState(0)
    shapes = {
        "blocks_0/conv2d/kernel": (2, 3),
        "blocks_0/tpu_batch_normalization/gamma": (3,),
        "blocks_0/tpu_batch_normalization/aux/beta": (3,),
        "blocks_0/se/conv2d/bias": (3,),
        "head/dense/kernel": (3, 2),
    }
    values = {name: random.normal(size=shape) for name, shape in shapes.items()}
    values["head/dense/kernel"][:] = 0.0  # a norm of zero: the trust is one
    excluded = [name for name in shapes if "batch_normalization" in name or "bias" in name]
    assert len(excluded) == 3
    momenta = {name: np.zeros(shape) for name, shape in shapes.items()}
    variables = [tf.Variable(value.astype(np.float32), name=name) for name, value in values.items()]
    optimizer = optimizers.make_optimizer("lars", variables, lars_epsilon=0.01)
    assert optimizer.momenta[0].name == "blocks_0/conv2d/kernel/LARSOptimizer:0"
    update = tf.function(optimizer.apply, jit_compile=compiled)
    for rate in (2.0, 0.5, 3.0, 0.0, 1.0):  # rates that change: they are inside the momentum
        gradients = {name: random.normal(size=shape) for name, shape in shapes.items()}
        gradients["blocks_0/conv2d/kernel"] *= rate != 3.0  # a gradient of zero: the trust is one
        lars_in_float64(values, gradients, momenta, rate, excluded, epsilon=0.01)
        update(
            [tf.constant(gradient, tf.float32) for gradient in gradients.values()],
            tf.constant(rate, tf.float32),
        )
        for variable, wanted in zip(variables, values.values()):
            np.testing.assert_allclose(variable, wanted, rtol=1e-5, atol=1e-6)


def test_unknown_name():
    with pytest.raises(ValueError, match="`name` is 'adam'.*'rmsprop', 'momentum', 'sgd', 'lars'"):
        optimizers.make_optimizer("adam", [])
