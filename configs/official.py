r"""The recipes of the official README other than AutoAugment: "baseline" and
RandAugment.

Usage:

    python -m efficientnet_advprop.train --config=configs/official.py:b0-baseline \
        --data_dir=gs://…/imagenet --model_dir=gs://…/b0-baseline --strategy=tpu --tpu=local

"baseline" trains without augmentation. RandAugment is for B5 and B7. Expected ImageNet
top-1 of the averaged weights, as published with the checkpoints:

    b0-baseline 76.7   b1-baseline 78.7   b2-baseline 79.8
    b3-baseline 81.1   b4-baseline 82.5   b5-baseline 83.1
    b5-randaugment 83.7   b7-randaugment 84.7

Those runs held out the first 20 training files, as --config.data.holdout_shards=20
does. The magnitudes of RandAugment are those of its paper (Cubuk et al. 2019, section
4.4): two operations per image, with magnitude 17 for B5 and 28 for B7, quoted from
memory. The official flag --mixup_alpha (default 0) corresponds to
--config.data.mixup_alpha=0.2.

Cost: that of configs/efficientnet.py.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.models.scaling import VARIANTS

RANDAUGMENT_MAGNITUDES = {"b5": 17.0, "b7": 28.0}
NAMES = [f"b{index}-baseline" for index in range(6)] + [
    f"{variant}-randaugment" for variant in RANDAUGMENT_MAGNITUDES
]


def get_config(text: str = "b0-baseline") -> ExperimentConfig:
    if text not in NAMES:
        raise ValueError(
            f"`text` is {text!r}, but must be one of {', '.join(NAMES)}:"
            " configs/official.py:b0-baseline. AutoAugment is configs/efficientnet.py."
        )
    variant, recipe = text.split("-")
    config = ExperimentConfig()
    config.model.variant = variant
    config.model.normalization = "imagenet"
    config.data.image_size = VARIANTS[variant].image_size
    if recipe == "randaugment":
        config.data.augment = "randaugment"
        config.data.randaugment_num_layers = 2
        config.data.randaugment_magnitude = RANDAUGMENT_MAGNITUDES[variant]
    config.training.method = "vanilla"
    config.training.global_batch_size = 2048
    return config
