import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.training.schedules import LearningRate
from tests.conftest import golden


@pytest.mark.parametrize(
    "name",
    [
        "exponential",
        "exponential_nowarmup",
        "exponential_imagenet",
        "exponential_imagenet_big",
        "cosine",
        "constant",
        "poly",
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_rates_are_the_official_ones(name, compiled):
    numbers, facts = golden("optim.npz"), golden("optim.json")
    setting = {**facts["lr_defaults"], **facts["lr"][name.removesuffix("_big")]}
    rate = LearningRate(
        setting["initial_lr"],
        setting["steps_per_epoch"],
        setting["lr_decay_type"],
        setting["decay_factor"],
        setting["decay_epochs"],
        setting["warmup_epochs"],
        setting["total_steps"] or 0,
    )
    at = tf.function(rate, jit_compile=compiled)
    steps = numbers[f"lr_{name}_steps" if name.endswith("_big") else "lr_steps"]
    found = [float(at(tf.constant(step))) for step in steps]
    np.testing.assert_allclose(
        found, numbers[f"lr_{name}"], rtol=2e-6, atol=2e-7 if name == "cosine" else 0
    )


def test_piecewise_falls_at_its_epochs():
    # Mei et al.: a tenth at epochs 30, 60, 90 and 100.
    rate = LearningRate(
        0.1, 10.0, "piecewise", 0.1, warmup_epochs=0.0, decay_at_epochs=(30.0, 60.0, 90.0, 100.0)
    )
    at = {0: 0.1, 299: 0.1, 300: 0.01, 599: 0.01, 600: 1e-3, 900: 1e-4, 1000: 1e-5, 1049: 1e-5}
    np.testing.assert_allclose(
        [float(rate(tf.constant(step))) for step in at], list(at.values()), rtol=1e-5
    )


def test_refused_arguments_are_named():
    with pytest.raises(ValueError, match="`schedule` is 'linear'"):
        LearningRate(0.1, 1.0, "linear")
    with pytest.raises(ValueError, match="`total_steps` is 0, but a poly"):
        LearningRate(0.1, 1.0, "poly")
    with pytest.raises(ValueError, match="`total_steps` is 0"):
        LearningRate(0.1, 1.0, "cosine")
    with pytest.raises(ValueError, match="`decay_at_epochs` is empty"):
        LearningRate(0.1, 1.0, "piecewise")
