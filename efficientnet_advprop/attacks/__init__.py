"""Adversarial attacks, all called `(logits_fn, images, labels, seed)`.

They import no model, no flags and no strategy.
"""

from efficientnet_advprop.attacks.apgd import APGD
from efficientnet_advprop.attacks.attack import Attack
from efficientnet_advprop.attacks.autoattack import AttackWarning, AutoAttack
from efficientnet_advprop.attacks.fab import FAB
from efficientnet_advprop.attacks.pgd import PGD, UniformNoise
from efficientnet_advprop.attacks.square import Square
from efficientnet_advprop.runtime.errors import AttackError

__all__ = [
    "APGD",
    "FAB",
    "PGD",
    "Attack",
    "AttackError",
    "AttackWarning",
    "AutoAttack",
    "Square",
    "UniformNoise",
]
