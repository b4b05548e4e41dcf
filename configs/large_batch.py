"""EfficientNet in very large batches: LARS, a polynomial schedule, batch norms over
cores.

    python -m efficientnet_advprop.train --config=configs/large_batch.py:b5-65536 …

Source: Wongpanich et al. 2020 (arXiv 2011.00071), table 2: optimizer LARS, learning
rates per 256 images, warm-up and top-1 as below. They are quoted from memory, except
for the top-1 of the last row. Expected ImageNet top-1:

    b2-16384 79.5   b2-32768 79.7   b5-16384 83.3   b5-32768 83.2   b5-65536 83.0

With the largest batch on 1,024 cores, each core has 64 images. `batch_norm_batch_size`
of 128 images is the default of the official flag. `config.optimizer.weight_decay`,
which is part of the loss, keeps its official value in addition to LARS's own weight
decay.

Cost: the arithmetic of configs/efficientnet.py.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import base

# Variant and batch → (learning rate per 256 images, epochs of warm-up).
RECIPES = {
    "b2-16384": (0.236, 50.0),
    "b2-32768": (0.118, 50.0),
    "b5-16384": (0.236, 50.0),
    "b5-32768": (0.118, 50.0),
    "b5-65536": (0.081, 43.0),
}


def get_config(text: str = "b5-65536") -> ExperimentConfig:
    base.split(text, RECIPES, example="large_batch:b5-65536")
    variant, batch = text.split("-")
    learning_rate, warmup_epochs = RECIPES[text]
    config = base.make("official", variant)
    config.data.augment = "autoaugment"
    config.model.batch_norm_batch_size = 128
    config.optimizer.name = "lars"
    config.optimizer.schedule = "poly"
    config.optimizer.learning_rate_per_256 = learning_rate
    config.optimizer.warmup_epochs = warmup_epochs
    config.training.global_batch_size = int(batch)
    config.use_method("vanilla")
    return config
