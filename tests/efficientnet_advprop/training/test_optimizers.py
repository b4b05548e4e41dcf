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
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
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


def test_unknown_name():
    with pytest.raises(ValueError, match="`name` is 'adam'.*'rmsprop', 'momentum', 'sgd'"):
        optimizers.make_optimizer("adam", [])
