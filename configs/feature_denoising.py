"""Feature denoising on ImageNet: a ResNet with four denoising blocks, trained on
adversarial images alone.

    python -m efficientnet_advprop.train --config=configs/feature_denoising.py:resnet152 …

The part after the colon is a ResNet (resnet50, resnet101, resnet152) and, behind a
hyphen, the operation of the blocks (non_local_softmax unless said; none is the
baseline).

Source: Xie, Wu, van der Maaten, Yuille and He, CVPR 2019, and its public repository.
Read there: PGD of 30 steps of 1 with ε = 16, aimed at a random wrong class, 80 % of the
batches from noise, on running statistics; 110 epochs in batches of 4,096 (128 GPUs of
32 images); learning rate 0.1 per 256 images, divided by ten at epochs 35, 70 and 95,
with 5 epochs of warm-up; label smoothing 0.1; pixels in [−1, 1]; a block behind each of
the stages 2 to 5; weight decay 1e-4; Nesterov momentum of 0.9, for which ours is the
plain one. Recalled: batch norms with ε 1e-5.

Expected ImageNet top-1 error of ResNet-152, as that repository publishes it, clean /
under targeted PGD of 10 / 100 / 1,000 steps with ε = 16:

    none 37.7 / 47.5 / 58.3 / 61.0          non_local_softmax 34.7 / 44.3 / 54.5 / 57.2

Cost: 128 V100 for 90 hours there, 52 without the blocks; (2K + 3)/3 = 21 times the
arithmetic of vanilla training. The weights of the block of stage 2 take 39 MB an image,
so a replica has at most 109 images (docs/adversarial_training.md): on fewer than 38 cores
add --config.training.accumulation_steps. A smaller problem, in which the blocks of the
later stages alone compare positions:

    --config.model.denoise_stages=4,5
"""

from efficientnet_advprop.config import DENOISERS, AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import base

RESNETS = ("resnet50", "resnet101", "resnet152")


def get_config(text: str = "resnet152") -> ExperimentConfig:
    variant, operation = base.split(
        text,
        RESNETS,
        DENOISERS,
        example="feature_denoising:resnet152-non_local_softmax",
        default="non_local_softmax",
    )
    config = base.make("feature_denoising", variant)
    config.model.denoise = operation
    config.attack = AttackConfig(epsilon=16.0, step_size=1.0, num_steps=30)
    config.use_method("adversarial_only")
    return config
