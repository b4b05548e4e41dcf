"""ResNets on ImageNet, vanilla and by AdvProp: 105 epochs of SGD, as in Fast AdvProp's
paper.

    python -m efficientnet_advprop.train --config=configs/resnet.py:resnet50-advprop …

The recipe is that of Mei et al., ICLR 2022. The part after the colon is a variant
(resnet50, resnet101, resnet152, resnet200) and a method (vanilla, advprop, adversarial,
adversarial_only, fast_advprop, fine_grained). The attack is PGD1 (ε = 1); behind
`-pgd5` it is PGD5 (ε = 4), AdvProp's own for ResNets: `resnet50-advprop-pgd5`,
`resnet50-adversarial-pgd5`. Fast AdvProp has batches of 320, of which 256 images stay
clean, and the learning rate of a step, 0.1, as in its authors' code.

Expected results of ResNet-50 (Mei et al.): ImageNet top-1 / ImageNet-C mean error /
ImageNet-R / Stylized, and the cost:

    vanilla 76.2 / 58.5 / 36.3 / 7.8, 1×   advprop PGD1 77.5 / 54.3 / 39.5 / 8.6, 3×
    PGD5 77.0 / 52.0 / 42.3 / 12.0, 7×   Fast AdvProp 76.5 / 56.4 / 38.2 / 8.3, 1×

A public trainer made with the authors' guidance reports 76.67 for vanilla training and
77.42 for PGD1.

Expected top-1 of ResNet-50 / 101 / 152 / 200 (Xie et al., quoted from memory; their
recipe is not known): vanilla 76.7 / 78.3 / 79.0 / 79.3, AdvProp with PGD5 77.4 / 79.2 /
79.8 / 80.1. No run has been timed, and no chip-hours are known; `make preflight`
(docs/launching.md) computes them with the TPU's compiler.

The official ResNets for TPUs use another recipe: 90 epochs in batches of 1,024
(learning rate 0.1 per 256 images), 5 epochs of warm-up, a tenth of the rate at epochs
30, 60 and 80, Nesterov momentum, and pixels normalised by mean and standard deviation.
"""

from efficientnet_advprop.config import METHODS, ExperimentConfig
from efficientnet_advprop.configs import base
from efficientnet_advprop.models.resnet import VARIANTS

_WITH_PGD5 = ("advprop", "adversarial", "adversarial_only", "fine_grained")


def get_config(text: str = "resnet50-advprop") -> ExperimentConfig:
    options = [*METHODS, *(f"{method}-pgd5" for method in _WITH_PGD5)]
    variant, option = base.split(
        text,
        VARIANTS,
        options,
        example="resnet:resnet50-advprop",
        is_optional=False,
    )
    method, _, strength = option.partition("-")
    config = base.make("resnet", variant)
    if strength:
        config.attack.epsilon, config.attack.num_steps = 4.0, 5
    base.use_method(config, method)
    return config
