"""The official recipes as configs: they are valid, and their numbers are the published
ones.
"""

import importlib.util
import pathlib
import re

import pytest

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from efficientnet_advprop.training import build

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


def load(file):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", ["official", "relatives"])
def test_docstrings_quote_the_published_accuracies(file):
    module = load(file)
    names = module.NAMES if file == "official" else module.RELATIVES
    quoted = dict(re.findall(r"([\w-]+) (\d\d\.\d+)", module.__doc__))
    assert {name: float(top1) for name, top1 in quoted.items()} == {
        name: PUBLISHED[name].top1 for name in names
    }
    for name in names:
        config, row = module.get_config(name), PUBLISHED[name]
        config.validate()
        assert config.model.variant == row.variant
        assert config.model.normalization == row.normalization
        assert (config.data.image_size, config.data.eval_crop) == (row.image_size, row.crop)


def test_randaugment_and_baseline_differ_in_the_augmentation_only():
    module = load("official")
    baseline, randaugment = map(module.get_config, ("b5-baseline", "b5-randaugment"))
    assert (baseline.data.augment, randaugment.data.augment) == ("none", "randaugment")
    assert randaugment.data.randaugment_num_layers == 2
    assert randaugment.data.randaugment_magnitude == 17.0
    assert module.get_config("b7-randaugment").data.randaugment_magnitude == 28.0
    assert baseline.optimizer == randaugment.optimizer


@pytest.mark.parametrize("method", METHODS)
def test_relatives_go_with_every_method(method):
    for variant, classes in (("lite0", 1000), ("edgetpu-S", 1001), ("condconv-b0-8e-depth", 1000)):
        config = load("relatives").get_config(f"{variant}-{method}")
        config.validate()
        assert (config.model.variant, config.training.method) == (variant, method)
        assert config.model.num_classes == classes


def test_large_batches_share_batch_norms_by_images():
    """128 images: with 1,024 cores of 64 images each two cores, as the official flag
    says it.
    """
    config = load("large_batch").get_config("b5-65536")
    config.validate()
    assert build.batch_norm_group_size(config, num_replicas=1024) == 2
    assert build.batch_norm_group_size(config, num_replicas=256) == 1
    build.check_batch_norm_groups(config, num_replicas=1024)
    rate = build.make_learning_rate(config, steps_per_epoch=20.0, total_steps=7000)
    assert float(rate(20 * 43)) == pytest.approx(0.081 * 256, rel=1e-3)
    assert float(rate(7000)) == pytest.approx(0.1, rel=1e-3)
    config.model.batch_norm_batch_size = 192
    with pytest.raises(
        ConfigError, match="`config.model.batch_norm_batch_size` is 192.*per group: 3"
    ):
        build.check_batch_norm_groups(config, num_replicas=1024)
    config.model.batch_norm_group_size = 2
    with pytest.raises(ConfigError, match="which say the same"):
        config.validate()


def test_a_parabola_that_would_rise_is_refused():
    config = load("large_batch").get_config()
    config.optimizer.learning_rate_per_256 = 1e-4
    with pytest.raises(ConfigError, match="`config.optimizer.poly_end` is 0.1"):
        config.validate()


# Read in the repository of Smooth Adversarial Training: ResNet-50, clean and under
# untargeted PGD of 10, 20 and 50 steps; EfficientNets, clean.
SAT_RESNET50 = {
    "relu": (68.7, 35.3, 33.7, 33.1),
    "silu": (69.7, 43.0, 42.2, 41.9),
    "elu": (69.0, 41.6, 40.9, 40.7),
    "gelu": (69.9, 42.6, 41.8, 41.5),
    "softplus": (68.1, 41.1, 40.4, 40.2),
    "smooth_relu": (69.3, 41.3, 40.4, 40.1),
}
SAT_EFFICIENTNETS = dict(
    b0=65.2, b1=68.6, b2=70.3, b3=73.1, b4=75.9, b5=77.8, b6=79.2, b7=79.8, l1=80.7
)


def test_smooth_adversarial_training_is_that_of_its_repository():
    module = load("smooth_adversarial")
    text = module.__doc__
    number = r"(\d\d\.\d)"
    quoted = re.findall(rf"(\w+) {number} / {number} / {number} / {number}", text)
    assert {name: tuple(map(float, row)) for name, *row in quoted if name in SAT_RESNET50} == (
        SAT_RESNET50
    )
    quoted = dict(re.findall(rf"\b((?:b|l)\d) {number}", text))
    assert {name: float(top1) for name, top1 in quoted.items()} == SAT_EFFICIENTNETS
    assert module.get_config().model.activation == "silu"
    names = [*SAT_EFFICIENTNETS, "resnet152", *(f"resnet50-{name}" for name in SAT_RESNET50)]
    for name in names:
        config = module.get_config(name)
        config.validate()
        attack, model = config.attack, config.model
        assert (attack.epsilon, attack.step_size, attack.num_steps) == (4.0, 4.0, 1)
        assert (attack.targeted, attack.random_start, attack.statistics) == (False, 0.8, "running")
        assert (model.batch_norm_epsilon, model.batch_norm_momentum) == (1e-5, 0.9)
        assert (model.normalization, config.optimizer.label_smoothing) == ("advprop", 0.1)
        rate = build.make_learning_rate(config, steps_per_epoch=100.0, total_steps=10_000)
        rates = [float(rate(step)) for step in (500, 2999, 3001, 6001, 9001)]
        assert rates == pytest.approx([0.4, 0.4, 0.04, 0.004, 0.0004], rel=1e-5)
        assert config.training.method == "adversarial_only" and config.training.num_epochs == 100
    sizes = {name: module.get_config(name).data.image_size for name in ("resnet50", "b0", "l1")}
    assert sizes == {"resnet50": 224, "b0": 224, "l1": 600}


def test_feature_denoising_is_that_of_its_repository():
    config = load("feature_denoising").get_config()
    config.validate()
    attack = config.attack
    assert (attack.epsilon, attack.step_size, attack.num_steps, attack.targeted) == (
        16,
        1,
        30,
        True,
    )
    assert (config.model.variant, config.model.denoise) == ("resnet152", "non_local_softmax")
    rate = build.make_learning_rate(config, steps_per_epoch=100.0, total_steps=11_000)
    rates = [float(rate(step)) for step in (500, 3501, 7001, 9501)]
    assert rates == pytest.approx([1.6, 0.16, 0.016, 0.0016], rel=1e-5)
    assert (config.training.num_epochs, config.training.method) == (110, "adversarial_only")


def test_high_resolution_last_begins_with_the_weak_attack_at_half_the_size():
    low, high = map(load("high_resolution_last").get_config, ("resnet50-low", "resnet50-high"))
    for config in (low, high):
        config.validate()
    assert (low.data.image_size, high.data.image_size) == (112, 224)
    assert (low.attack.num_steps, high.attack.num_steps) == (1, 3)
    assert low.attack.epsilon == high.attack.epsilon == 4.0
    # Without the weights of the first stage there is no second one.
    assert low.init.checkpoint == "" and high.init.checkpoint
    # The docstring's cost in vanilla epochs: a step of the attack is two thirds of an
    # update.
    cost = 100 * (2 * 1 + 3) / 3 * (112 / 224) ** 2 + 10 * (2 * 3 + 3) / 3
    assert f"= {cost:.0f} vanilla epochs" in load("high_resolution_last").__doc__


@pytest.mark.parametrize(
    "file",
    [
        *("official", "relatives", "large_batch"),
        *("smooth_adversarial", "feature_denoising", "high_resolution_last"),
    ],
)
def test_unknown_names_are_answered_with_those_there_are(file):
    with pytest.raises(ValueError, match=f"`text` is 'b9'.*configs/{file}.py:"):
        load(file).get_config("b9")
