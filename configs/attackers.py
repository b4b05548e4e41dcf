"""AdvProp on ImageNet with each attack that the paper compares, EfficientNet-B0 to B8.

    python -m efficientnet_advprop.train --config=configs/attackers.py:b3-gd …

The part after the colon is a variant and an attack: pgd1, pgd3, pgd4, pgd5, pgd7 (ε =
1, 2, 3, 4, 6), untargeted (PGD5 from the true labels), ifgsm (PGD5 without a random
start), gd (I-FGSM without the projection), noise (uniform with ε = 4, without an
attack) or no-aux (PGD5 through the main batch norms). All networks of a size differ in
the attack alone, and from configs/advprop.py:b3-vanilla in the method.

Expected, all recalled from the paper: the published figure of a size is the best of
pgd1, pgd3, pgd4 and pgd5, chosen on validation images; small networks are best with
pgd1, large ones with up to pgd5, and pgd7 hurts b7 (85.0); ifgsm and gd are about as good
as pgd5; no-aux is below vanilla for small networks, and above it from b5 to b7. For
noise, nothing is published.

Cost: (2K + 6)/3 times the chip-hours of configs/efficientnet.py (docs/experiments.md)
for K attack steps; twice as much for noise.
"""

import dataclasses

from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import base
from efficientnet_advprop.models.scaling import RELEASED_VARIANTS

PGD5 = AttackConfig(epsilon=4.0, num_steps=5)
IFGSM = dataclasses.replace(PGD5, random_start=0.0)
ATTACKERS = {
    "pgd1": AttackConfig(epsilon=1.0, num_steps=1),
    "pgd3": AttackConfig(epsilon=2.0, num_steps=3),
    "pgd4": AttackConfig(epsilon=3.0, num_steps=4),
    "pgd5": PGD5,
    "pgd7": AttackConfig(epsilon=6.0, num_steps=7),
    "untargeted": dataclasses.replace(PGD5, targeted=False),
    "ifgsm": IFGSM,
    # Recalled: the paper removes the random start first, and then the projection.
    "gd": dataclasses.replace(IFGSM, projection=False),
    "noise": AttackConfig(name="noise", epsilon=4.0),
    "no-aux": PGD5,
}


@base.with_float32
def get_config(text: str = "b0-pgd1") -> ExperimentConfig:
    variant, attacker = base.split(
        text, RELEASED_VARIANTS, ATTACKERS, example="attackers:b0-pgd1", is_optional=False
    )
    config = base.make("advprop", variant)
    config.attack = dataclasses.replace(ATTACKERS[attacker])
    config.use_method("adversarial" if attacker == "no-aux" else "advprop")
    return config
