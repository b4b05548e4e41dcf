"""What `make demo` trains: configs/digits.py with fewer images, a smaller network and a
stronger attack.

Usage:

    python -m efficientnet_advprop.demo --config=configs/demo.py

It was chosen so that three methods with three seeds take a few minutes, and on training
images that the demo does not use (300 to 796), with other seeds: docs/decisions.md.
"""

import importlib.util
import os

from efficientnet_advprop.config import ExperimentConfig

_path = os.path.join(os.path.dirname(__file__), "digits.py")
_spec = importlib.util.spec_from_file_location("digits_config", _path)
_digits = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_digits)

NUM_IMAGES = 150
EPSILON = 96.0  # of 255


def get_config(method: str = "advprop") -> ExperimentConfig:
    config = _digits.get_config(method)
    config.model.width_coefficient = 0.25
    config.attack.epsilon = EPSILON
    config.attack.step_size = EPSILON / 2
    _digits.set_num_images(config, NUM_IMAGES)
    return config
