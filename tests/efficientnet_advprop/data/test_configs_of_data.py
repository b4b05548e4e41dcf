"""The data sections of the config files, as the pipeline understands them."""

import importlib.util
import pathlib

import pytest

from efficientnet_advprop.data import pipeline

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


def get_config(file, *variant):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize(
    "file, source, classes, augments",
    [
        ("advprop", "tfrecord", 1000, True),
        ("efficientnet", "tfrecord", 1000, True),
        ("cifar10", "tfds:cifar10", 10, False),
        ("pets", "tfds:oxford_iiit_pet", 37, False),
    ],
)
def test_configs(file, source, classes, augments):
    config = get_config(file)
    config.validate()
    assert (config.data.source, config.model.num_classes) == (source, classes)
    # The published figures include AutoAugment.
    assert (pipeline.make_augmentation(config.data) is not None) == augments
