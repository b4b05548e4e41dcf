"""Fine-grained AdvProp on ImageNet: plain, augmented and adversarial images, each through batch norms of their own.

    python -m efficientnet_advprop.train --config=configs/fine_grained.py:b0 --data_dir=gs://…/imagenet \
        --model_dir=gs://…/fine-b0 --strategy=tpu --tpu=local

The main branch sees plainly pre-processed images, "aux" the same ones after AutoAugment, "aux_2" what PGD1 (ε = 1) makes of the
plain ones. Expected: a small further gain for small networks (recalled from the paper, whose numbers are not at hand).
Cost: 3.67 times the chip-hours of configs/efficientnet.py (docs/experiments.md), by arithmetic; nobody has timed a run.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS, VARIANTS


def get_config(variant: str = "b0") -> ExperimentConfig:
    if variant not in RELEASED_VARIANTS:
        raise ValueError(
            f"`variant` is {variant!r}, but must be one of {', '.join(RELEASED_VARIANTS)}: configs/fine_grained.py:b0."
        )
    config = ExperimentConfig()
    config.model.variant = variant
    config.data.image_size = VARIANTS[variant].image_size
    config.use_method("fine_grained")
    return config
