"""Vanilla EfficientNet on ImageNet, B0 to B8, by the official recipe.

    python -m efficientnet_advprop.train --config=configs/efficientnet.py:b0 …

Expected ImageNet top-1 of the averaged weights, with AutoAugment, as published at
AdvProp's release:

    b0 77.3   b1 79.2   b2 80.3   b3 81.7   b4 83.0   b5 83.7   b6 84.2   b7 84.5

Its batch (2,048) and normalisation are not those of configs/advprop.py, whose own
baseline is configs/advprop.py:b0-vanilla. `-float32` behind the variant computes as the
official code did then.

The following chip-hours of a TPU v3 are lower bounds from the schedule of its compiler
(docs/experiments.md); no run has been timed.

    b0 58   b1 106   b2 130   b3 210   b4 538   b5 1,171   b6 1,772   b7 3,212   b8 4,655
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import base
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS


@base.with_float32
def get_config(text: str = "b0") -> ExperimentConfig:
    variant, _ = base.split(text, RELEASED_VARIANTS, example="efficientnet:b0")
    config = base.make("official", variant)
    config.data.augment = "autoaugment"
    config.use_method("vanilla")
    return config
