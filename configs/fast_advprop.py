"""Fast AdvProp on ImageNet, EfficientNet-B0 to B8, at the cost of vanilla training.

    python -m efficientnet_advprop.train --config=configs/fast_advprop.py:b3 …

It is configs/advprop.py:b3-fast_advprop. A fifth of each batch becomes adversarial.
Source: Mei et al., ICLR 2022: one untargeted attack step from noise (ε = 1), whose pass
also trains the network; 350 / 1.2 epochs, so that the whole run costs as much as vanilla
training; a batch of 5/4, so that the clean images of a step are as many. No results are
published for EfficientNets. For ResNet-50, see configs/resnet.py:resnet50-fast_advprop
(top-1 76.5, vanilla 76.2).

Cost: that of configs/efficientnet.py (docs/experiments.md), by arithmetic.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import advprop, base


@base.with_float32
def get_config(text: str = "b0") -> ExperimentConfig:
    variant, _ = base.split(text, advprop.ATTACKS, example="fast_advprop:b0")
    return advprop.get_config(f"{variant}-fast_advprop")
