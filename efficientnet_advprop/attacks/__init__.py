"""Adversarial attacks as functions of a `logits_fn`.

They import no model, no flags and no strategy.
"""

from typing import Union

from efficientnet_advprop.attacks.apgd import APGD
from efficientnet_advprop.attacks.autoattack import AutoAttack
from efficientnet_advprop.attacks.fab import FAB
from efficientnet_advprop.attacks.network_checks import AttackWarning
from efficientnet_advprop.attacks.noise import UniformNoise
from efficientnet_advprop.attacks.pgd import PGD
from efficientnet_advprop.attacks.search import AttackError
from efficientnet_advprop.attacks.square import Square

# (logits_fn, images, labels, seed) → images
Attack = Union[PGD, UniformNoise, APGD, FAB, Square, AutoAttack]

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
