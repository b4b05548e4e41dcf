"""The recipes of the official README other than AutoAugment: "baseline" and
RandAugment.

    python -m efficientnet_advprop.train --config=configs/official.py:b0-baseline …

"baseline" trains without augmentation. RandAugment is for B5, B7 and B8. Expected ImageNet
top-1 of the averaged weights, as published with the checkpoints:

    b0-baseline 76.7   b1-baseline 78.7   b2-baseline 79.8
    b3-baseline 81.1   b4-baseline 82.5   b5-baseline 83.1
    b5-randaugment 83.7   b7-randaugment 84.7   b8-randaugment 85.4

The last one stood in the README for a while, and its checkpoint is gone. The others
held out the first 20 training files, as --config.data.holdout_shards=20 does.
RandAugment has two operations per image, of magnitude 17 for B5 and 28 for B7 and B8, as
that README says. The official flag --mixup_alpha (default 0) corresponds to
--config.data.mixup_alpha=0.2.

Cost: that of configs/efficientnet.py.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import base

RANDAUGMENT_MAGNITUDES = {"b5": 17.0, "b7": 28.0, "b8": 28.0}
NAMES = [f"b{index}-baseline" for index in range(6)] + [
    f"{variant}-randaugment" for variant in RANDAUGMENT_MAGNITUDES
]


@base.with_float32
def get_config(text: str = "b0-baseline") -> ExperimentConfig:
    base.split(text, NAMES, example="official:b0-baseline")
    variant, recipe = text.split("-")
    config = base.make("official", variant)
    if recipe == "randaugment":
        config.data.augment = "randaugment"
        config.data.randaugment_num_layers = 2
        config.data.randaugment_magnitude = RANDAUGMENT_MAGNITUDES[variant]
    config.use_method("vanilla")
    return config
