"""Smooth Adversarial Training on ImageNet: adversarial images alone, smooth activations.

    python -m efficientnet_advprop.train --config=configs/smooth_adversarial.py:resnet50-silu …

The part after the colon is a ResNet (resnet50, resnet101, resnet152) and, behind a
hyphen, its activation (silu unless said; relu, elu, gelu, softplus, smooth_relu), or an
EfficientNet (b0 … b7, l1), which has swish.

Source: Xie, Tan, Gong, Yuille and Le 2020 (arXiv 2006.14536) and its public repository.
Read there: 100 epochs; learning rate 0.1 per 256 images, divided by ten at epochs 30,
60 and 90, with 5 epochs of warm-up; weight decay 1e-4; label smoothing 0.1; an
untargeted attack on running statistics, of which 80 % of the batches start from noise;
a step of at least ε over the number of steps; pixels in [−1, 1]; batch norms with ε
1e-5 and momentum 0.9. Recalled from the paper: ε = 4 and one step of this size,
throughout the run. The batch is not said there; ours is 1,024. For EfficientNets no
training code is published. Their published evaluation has the same batch norms and no
averages, and a later work quotes 100 epochs, so they get the same recipe, with the
dropout and stochastic depth of their own. Only the repository's second L1 ("enhanced",
82.2) is evaluated by averages of decay 0.9999: --config.optimizer.ema_decay=0.9999.
Their momentum is Nesterov's, which is not offered here.

Expected ImageNet top-1 of ResNet-50, clean / under untargeted PGD of 10 / 20 / 50 steps
with ε = 4 and α = 1, as the repository publishes it (`evaluate --suite=pgd
--pgd_epsilon=4 --pgd_steps=10`):

    relu 68.7 / 35.3 / 33.7 / 33.1          silu 69.7 / 43.0 / 42.2 / 41.9
    elu 69.0 / 41.6 / 40.9 / 40.7           gelu 69.9 / 42.6 / 41.8 / 41.5
    softplus 68.1 / 41.1 / 40.4 / 40.2      smooth_relu 69.3 / 41.3 / 40.4 / 40.1

Of ResNet-101 and -152 with silu: 72.9 / 46.4 / 45.5 / 45.2 and 74.0 / 47.3 / 46.2 /
45.8. Of EfficientNets only clean accuracies are published:

    b0 65.2   b1 68.6   b2 70.3   b3 73.1   b4 75.9   b5 77.8   b6 79.2   b7 79.8   l1 80.7

Cost: (2K + 3)/3 of the arithmetic of an epoch of vanilla training with K attack steps,
so 1.7 times for this recipe's one step.
"""

import dataclasses

from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import base

RESNETS = ("resnet50", "resnet101", "resnet152")
ACTIVATIONS = ("silu", "relu", "elu", "gelu", "softplus", "smooth_relu")
EFFICIENTNETS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l1")
ATTACK = AttackConfig(epsilon=4.0, step_size=4.0, num_steps=1, targeted=False)


def get_config(text: str = "resnet50-silu") -> ExperimentConfig:
    names = [f"{resnet}-{activation}" for resnet in RESNETS for activation in ACTIVATIONS]
    names = [*EFFICIENTNETS, *RESNETS, *names]
    base.split(text, names, example="smooth_adversarial:resnet50-silu")
    variant, _, activation = text.partition("-")
    config = base.make("smooth_adversarial", variant)
    if variant in RESNETS:
        config.model.activation = activation or ACTIVATIONS[0]
    config.attack = dataclasses.replace(ATTACK)
    config.use_method("adversarial_only")
    return config
