"""The official recipes as configs: they are valid, and their numbers are the published ones."""

import importlib.util
import pathlib
import re

import pytest

from efficientnet_advprop.config import ConfigError
from efficientnet_advprop.methods import METHODS
from efficientnet_advprop.models.checkpoints.published_checkpoints import PUBLISHED
from efficientnet_advprop.training import assembly

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
    """128 images: with 1,024 cores of 64 images each two cores, as the official flag says it."""
    config = load("large_batch").get_config("b5-65536")
    config.validate()
    assert assembly.batch_norm_group_size(config, num_replicas=1024) == 2
    assert assembly.batch_norm_group_size(config, num_replicas=256) == 1
    assembly.check_batch_norm_groups(config, num_replicas=1024)
    rate = assembly.make_learning_rate(config, steps_per_epoch=20.0, total_steps=7000)
    assert float(rate(20 * 43)) == pytest.approx(0.081 * 256, rel=1e-3)
    assert float(rate(7000)) == pytest.approx(0.1, rel=1e-3)
    config.model.batch_norm_batch_size = 192
    with pytest.raises(
        ConfigError, match="`config.model.batch_norm_batch_size` is 192.*per group: 3"
    ):
        assembly.check_batch_norm_groups(config, num_replicas=1024)
    config.model.batch_norm_group_size = 2
    with pytest.raises(ConfigError, match="which say the same"):
        config.validate()


def test_a_parabola_that_would_rise_is_refused():
    config = load("large_batch").get_config()
    config.optimizer.learning_rate_per_256 = 1e-4
    with pytest.raises(ConfigError, match="`config.optimizer.poly_end` is 0.1"):
        config.validate()


@pytest.mark.parametrize("file", ["official", "relatives", "large_batch"])
def test_unknown_names_are_answered_with_those_there_are(file):
    with pytest.raises(ValueError, match=f"`text` is 'b9'.*configs/{file}.py:"):
        load(file).get_config("b9")
