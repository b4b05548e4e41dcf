r"""Vanilla EfficientNet on ImageNet, B0 to B8: the baseline of AdvProp.

Usage:

    python -m efficientnet_advprop.train --config=configs/efficientnet.py:b0 \
        --data_dir=gs://…/imagenet --model_dir=gs://…/b0 --strategy=tpu --tpu=local

Expected ImageNet top-1 of the averaged weights, with AutoAugment, as published at
AdvProp's release:

    b0 77.3   b1 79.2   b2 80.3   b3 81.7   b4 83.0   b5 83.7   b6 84.2   b7 84.5

The following chip-hours of a TPU v3 are lower bounds from the schedule of its compiler
(docs/experiments.md); no run has been timed.

    b0 58   b1 106   b2 130   b3 210   b4 538   b5 1,171   b6 1,772   b7 3,212   b8 4,655
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS, VARIANTS


def get_config(variant: str = "b0") -> ExperimentConfig:
    if variant not in RELEASED_VARIANTS:
        raise ValueError(
            f"`variant` is {variant!r}, but must be one of {', '.join(RELEASED_VARIANTS)}: "
            "configs/efficientnet.py:b0."
        )
    config = ExperimentConfig()
    config.model.variant = variant
    config.model.normalization = "imagenet"
    config.data.image_size = VARIANTS[variant].image_size
    config.data.augment = "autoaugment"
    config.training.method = "vanilla"
    config.training.global_batch_size = 2048
    return config
