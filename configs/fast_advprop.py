r"""Fast AdvProp on ImageNet, EfficientNet-B0 to B8, at the cost of vanilla training.

Usage:

    python -m efficientnet_advprop.train --config=configs/fast_advprop.py:b3 \
        --data_dir=gs://…/imagenet --model_dir=gs://…/fast-b3 --strategy=tpu --tpu=local

A fifth of each batch becomes adversarial. Source: Mei et al., ICLR 2022: one untargeted
attack step from noise (ε = 1), whose pass also trains the network; 350 / 1.2 epochs, so
that the whole run costs as much as that of configs/efficientnet.py. No results are
published for EfficientNets. For ResNet-50, see configs/resnet.py:resnet50-fast_advprop
(top-1 76.5, vanilla 76.2).

Cost: the chip-hours of configs/efficientnet.py (docs/experiments.md), by arithmetic; no
run has been timed.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS, VARIANTS


def get_config(variant: str = "b0") -> ExperimentConfig:
    if variant not in RELEASED_VARIANTS:
        raise ValueError(
            f"`variant` is {variant!r}, but must be one of {', '.join(RELEASED_VARIANTS)}: "
            "configs/fast_advprop.py:b0."
        )
    config = ExperimentConfig()
    config.model.variant = variant
    config.data.image_size = VARIANTS[variant].image_size
    config.data.augment = "autoaugment"
    config.use_method("fast_advprop")
    return config
