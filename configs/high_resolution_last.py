r"""Adversarial training in two stages: a weak attack on small images, then a stronger one
on large images.

Usage:

    python -m efficientnet_advprop.train --config=configs/high_resolution_last.py:resnet50-low \
        --data_dir=gs://…/imagenet --model_dir=gs://…/resnet50-low --strategy=tpu --tpu=local
    python -m efficientnet_advprop.release --model_dir=gs://…/resnet50-low --which=last \
        --output=gs://…/resnet50-low-weights/model.ckpt
    python -m efficientnet_advprop.train --config=configs/high_resolution_last.py:resnet50-high \
        --config.init.checkpoint=gs://…/resnet50-low-weights/model.ckpt \
        --data_dir=gs://…/imagenet --model_dir=gs://…/resnet50-high --strategy=tpu --tpu=local

The part after the colon is a network (resnet50, b0 … b7), a hyphen and the stage, low
or high. Without its checkpoint the second stage is refused.

Source: AdvXL (Wang, Li, Zhu and Xie, CVPR 2024, arXiv 2401.04727), which trains vision
transformers on up to 1.3 billion images. As reviews of it say, the first stage sees
images of reduced size and one attack step. Recalled: half the height and width, ε = 4,
three steps in the second stage. What is ours: the recipe of
configs/smooth_adversarial.py for the first stage; and for the second 10 epochs, a tenth
of the learning rate, and a cosine. Nothing is published for these networks, and nothing
was run.

Cost: with K attack steps (2K + 3)/3 of the arithmetic of vanilla training, and in the
first stage a quarter of it, since images have a quarter of the pixels: 100 epochs · 1.67
/ 4 + 10 epochs · 3 = 72 vanilla epochs, where one stage of three steps would take 300.
"""

import dataclasses

from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import base, smooth_adversarial

NETWORKS = ("resnet50", "b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7")
STAGES = ("low", "high")
# Steps of ε over their number, the least that the authors of SAT take.
HIGH_ATTACK = AttackConfig(epsilon=4.0, step_size=4.0 / 3.0, num_steps=3, targeted=False)
# Where the second stage looks for the first one's weights, unless it is told.
CHECKPOINT = "runs/{}-low-weights/model.ckpt"


def get_config(text: str = "resnet50-low") -> ExperimentConfig:
    network, stage = base.split(
        text, NETWORKS, STAGES, example="high_resolution_last:resnet50-low", is_optional=False
    )
    config = smooth_adversarial.get_config(network)
    if stage == "low":
        config.data.image_size //= 2
        return config
    config.attack = dataclasses.replace(HIGH_ATTACK)
    config.init.checkpoint = CHECKPOINT.format(network)
    config.optimizer.learning_rate_per_256 /= 10.0
    config.optimizer.schedule = "cosine"
    config.optimizer.decay_at_epochs = ""
    config.optimizer.warmup_epochs = 1.0
    config.training.num_epochs = 10.0
    return config
