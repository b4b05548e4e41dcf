r"""AdvProp on ImageNet with each attack that the paper compares, EfficientNet-B0 to B8.

Usage:

    python -m efficientnet_advprop.train --config=configs/attackers.py:b3-gd \
        --data_dir=gs://…/imagenet --model_dir=gs://…/b3-gd --strategy=tpu --tpu=local

The part after the colon is a variant and an attack: pgd1, pgd3, pgd4, pgd5 (ε = 1, 2,
3, 4), untargeted (PGD5 from the true labels), ifgsm (PGD5 without a random start), gd
(PGD5 without the projection), noise (uniform with ε = 4, without an attack) or no-aux
(PGD5 through the main batch norms).

Expected: small networks are best with pgd1, large ones with up to pgd5; ifgsm and gd
are about as good as pgd5 (both quoted from memory of the paper). For noise, nothing is
published.

Cost: (2K + 6)/3 times the chip-hours of configs/efficientnet.py (docs/experiments.md)
for K attack steps; twice as much for noise.
"""

import dataclasses

from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS, VARIANTS

PGD5 = AttackConfig(epsilon=4.0, num_steps=5)
ATTACKERS = {
    "pgd1": AttackConfig(epsilon=1.0, num_steps=1),
    "pgd3": AttackConfig(epsilon=2.0, num_steps=3),
    "pgd4": AttackConfig(epsilon=3.0, num_steps=4),
    "pgd5": PGD5,
    "untargeted": dataclasses.replace(PGD5, targeted=False),
    "ifgsm": dataclasses.replace(PGD5, random_start=0.0),
    "gd": dataclasses.replace(PGD5, projection=False),
    "noise": AttackConfig(name="noise", epsilon=4.0),
    "no-aux": PGD5,
}


def get_config(text: str = "b0-pgd1") -> ExperimentConfig:
    variant, _, attacker = text.partition("-")
    if variant not in RELEASED_VARIANTS or attacker not in ATTACKERS:
        raise ValueError(
            f"`text` is {text!r}, but must be one of {', '.join(RELEASED_VARIANTS)}, a hyphen and "
            f"one of {', '.join(ATTACKERS)}: configs/attackers.py:b0-pgd1."
        )
    config = ExperimentConfig()
    config.model.variant = variant
    config.data.image_size = VARIANTS[variant].image_size
    config.data.augment = "autoaugment"
    config.attack = dataclasses.replace(ATTACKERS[attacker])
    config.use_method("adversarial" if attacker == "no-aux" else "advprop")
    return config
