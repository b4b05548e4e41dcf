import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.models.network import official_name
from efficientnet_advprop.training import losses
from tests.conftest import golden, make_tiny


@pytest.mark.parametrize("case", "ab")
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", ["0", "0.1"])
def test_cross_entropy_is_the_official_one(case, soft, smoothing):
    numbers = golden("optim.npz")
    prefix = f"ce_{case}_" + ("soft_" if soft else "")
    logits = tf.constant(numbers[f"ce_{case}_logits"])
    labels = tf.constant(numbers[f"ce_{case}_soft_labels" if soft else f"ce_{case}_labels"])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        per_example = losses.cross_entropy(labels, logits, float(smoothing))
        mean = tf.reduce_mean(per_example)
    np.testing.assert_allclose(
        per_example, numbers[f"{prefix}loss_per_example_ls{smoothing}"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(mean, numbers[f"{prefix}loss_mean_ls{smoothing}"], rtol=1e-6)
    np.testing.assert_allclose(
        tape.gradient(mean, logits),
        numbers[f"{prefix}grad_logits_ls{smoothing}"],
        rtol=1e-4,
        atol=1e-7,
    )


def test_weight_decay_covers_the_official_variables_and_no_auxiliary_ones():
    b0 = EfficientNet("b0", aux_branches=0)
    covered = {official_name(variable.name) for variable in losses.decayed_variables(b0)}
    assert covered == set(golden("optim.json")["weight_decay"]["included"])
    official = golden("variables_v2.json.gz")["models"]["efficientnetv2-b0"]
    spared = losses.decayed_variables(EfficientNet("v2-b0", aux_branches=0), biases=False)
    assert len(spared) == official["weight_decay_variables"]
    parameters = sum(variable.shape.num_elements() for variable in spared)
    assert parameters == official["weight_decay_parameters"]
    tiny = make_tiny(aux_branches=2)
    decayed = losses.decayed_variables(tiny)
    assert decayed and not any(
        "aux" in variable.name or "gamma" in variable.name for variable in decayed
    )
