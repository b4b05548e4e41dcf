"""What `make demo` trains: configs/digits.py with fewer images, a smaller network and a
stronger attack.

Usage:

    python -m efficientnet_advprop.demo --config=configs/demo.py

It was chosen so that three methods with three seeds take a few minutes, and on training
images that the demo does not use (300 to 796), with other seeds: docs/maintainers/decisions.md.
"""

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.configs import digits

NUM_IMAGES = 150
EPSILON = 96.0  # of 255


def get_config(method: str = "advprop") -> ExperimentConfig:
    config = digits.get_config(method)
    config.model.width_coefficient = 0.25
    config.attack.epsilon = EPSILON
    config.attack.step_size = EPSILON / 2
    digits.set_num_images(config, NUM_IMAGES)
    return config
