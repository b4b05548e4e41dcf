r"""Fine-grained AdvProp on ImageNet: batch norms for plain, augmented and adversarial
images.

Usage:

    python -m efficientnet_advprop.train --config=configs/fine_grained.py:b0 \
        --data_dir=gs://…/imagenet --model_dir=gs://…/fine-b0 --strategy=tpu --tpu=local

The main branch trains on plainly preprocessed images, "aux" on the same images after
AutoAugment, and "aux_2" on the plain images after the attack PGD1 (ε = 1). Expected: a
small further gain for small networks (quoted from memory of the paper).

Cost: 3.67 times the chip-hours of configs/efficientnet.py (docs/experiments.md), by
arithmetic; no run has been timed.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS, VARIANTS


def get_config(variant: str = "b0") -> ExperimentConfig:
    if variant not in RELEASED_VARIANTS:
        raise ValueError(
            f"`variant` is {variant!r}, but must be one of {', '.join(RELEASED_VARIANTS)}: "
            "configs/fine_grained.py:b0."
        )
    config = ExperimentConfig()
    config.model.variant = variant
    config.data.image_size = VARIANTS[variant].image_size
    config.use_method("fine_grained")
    return config
