"""Who disturbs: adversaries as functions of a `logits_fn`. They know no model, no flags and no strategy."""

from typing import Union

from efficientnet_advprop.attacks.noise import UniformNoise
from efficientnet_advprop.attacks.pgd import PGD

Attack = Union[PGD, UniformNoise]  # (logits_fn, images, labels, seed) → images
