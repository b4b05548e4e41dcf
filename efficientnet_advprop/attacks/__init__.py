"""Who disturbs: adversaries as functions of a `logits_fn`. They know no model, no flags and no strategy."""

from efficientnet_advprop.attacks.pgd import PGD

__all__ = ["PGD"]
