"""EfficientNetV2 on ImageNet, by vanilla training or another method.

    python -m efficientnet_advprop.train --config=configs/efficientnetv2.py:v2-s …
    python -m efficientnet_advprop.train --config=configs/efficientnetv2.py:v2-s-advprop …

Expected ImageNet top-1 of the averaged weights, as published with the checkpoints
(vanilla; v2-xl only with ImageNet-21k):

    v2-b0 78.7   v2-b1 79.8   v2-b2 80.5   v2-b3 82.1   v2-s 83.9   v2-m 85.2   v2-l 85.7

The recipe is that of google/automl's code, from which the paper differs: four stages of
equal length, in which images, RandAugment and mixing grow while dropout stays as it is.
B0 to B3 take pixels, crop and AutoAugment from the first EfficientNets.

Nobody has published AdvProp for these networks. `-advprop` is ours and untried on
ImageNet; it differs from the vanilla recipe in the method alone, and its attack is that
of the first EfficientNets of about the same size (configs/advprop.py).
"""

from efficientnet_advprop.config import METHODS, AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import base

# Variant → the last stage's image size, its RandAugment magnitude (0: AutoAugment), α of
# MixUp and CutMix, ε of the attack and its steps.
ROWS = {
    "v2-b0": (192, 0.0, 0.0, 1.0, 1),
    "v2-b1": (192, 0.0, 0.0, 1.0, 1),
    "v2-b2": (208, 0.0, 0.0, 2.0, 3),
    "v2-b3": (240, 0.0, 0.0, 2.0, 3),
    "v2-s": (300, 10.0, 0.0, 3.0, 4),
    "v2-m": (384, 15.0, 0.2, 4.0, 5),
    "v2-l": (384, 20.0, 0.5, 4.0, 5),
    "v2-xl": (384, 20.0, 0.5, 4.0, 5),
}


def get_config(text: str = "v2-s") -> ExperimentConfig:
    variant, method = base.split(
        text, ROWS, METHODS, example="efficientnetv2:v2-s-advprop", default="vanilla"
    )
    train_size, magnitude, alpha, epsilon, num_steps = ROWS[variant]
    config = base.make("v2", variant)
    data = config.data
    data.train_image_size = train_size
    data.mixup_alpha = data.cutmix_alpha = alpha
    if magnitude:
        config.model.normalization = data.crop = data.eval_crop = "v2"
        data.augment, data.randaugment_magnitude = "randaugment", magnitude
    else:
        config.model.normalization, data.augment = "imagenet", "autoaugment"
    config.attack = AttackConfig(epsilon=epsilon, num_steps=num_steps)
    base.use_method(config, method)
    return config
