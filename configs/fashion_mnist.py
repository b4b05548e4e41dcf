r"""A small EfficientNet on Fashion-MNIST, 28×28 photographs of clothing, for a laptop.

    python -m efficientnet_advprop.train --config=configs/fashion_mnist.py:advprop \
        --data_dir=data/fashion_mnist --model_dir=runs/fashion_mnist

The part after the colon is the method, as in configs/digits.py, whose network and optimizer
these are. The records are written into `data_dir` on first use, from the IDX files there or
of Debian's package dataset-fashion-mnist.

1,000 of the 60,000 training images are used, for 1,200 updates;
configs/studies/fashion_mnist.py tells what was tried, on training images alone.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import digits

NUM_IMAGES, NUM_UPDATES = 1000, 1200
EPSILON = 8.0  # of 255


def get_config(method: str = "advprop") -> ExperimentConfig:
    config = digits.get_config(method)
    config.data.source = "fashion_mnist"
    config.data.horizontal_flip = True
    config.data.crop_padding = 2
    config.data.num_train_examples = NUM_IMAGES
    config.optimizer.ema_decay = 0.99
    config.attack.epsilon = config.attack.step_size = EPSILON
    config.attack.num_steps = 1
    config.training.steps_per_loop = 100
    config.training.checkpoint_every_steps = 500
    config.training.summary_every_steps = 500
    set_num_updates(config, NUM_UPDATES)
    return config


def set_num_updates(config: ExperimentConfig, num_updates: int) -> None:
    """Trains for so many updates, the first 100 of them a warm-up."""
    updates_per_epoch = config.data.num_train_examples / config.training.global_batch_size
    # A little more than whole updates, whose number is rounded down.
    config.training.num_epochs = num_updates / updates_per_epoch * (1.0 + 1e-6)
    config.optimizer.warmup_epochs = 100 / updates_per_epoch
