"""Fine-grained AdvProp on ImageNet: batch norms for plain, augmented and adversarial
images.

    python -m efficientnet_advprop.train --config=configs/fine_grained.py:b0 …

It is configs/advprop.py:b0-fine_grained: the same attack, and nothing but the method
differs. The main branch trains on plainly preprocessed images, "aux" on the same images after
AutoAugment, and "aux_2" on the plain images after the attack. Expected: a small further
gain for small networks (recalled from the paper, which names the attack PGD1 for them).

Cost: (2K + 9)/3 of the arithmetic of vanilla training with K attack steps.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import advprop, base


@base.with_float32
def get_config(text: str = "b0") -> ExperimentConfig:
    variant, _ = base.split(text, advprop.ATTACKS, example="fine_grained:b0")
    return advprop.get_config(f"{variant}-fine_grained")
