"""EfficientNet-Lite, -EdgeTPU and -CondConv on ImageNet, by vanilla training or another
method.

    python -m efficientnet_advprop.train --config=configs/relatives.py:lite0 …
    python -m efficientnet_advprop.train --config=configs/relatives.py:lite0-advprop …

Expected ImageNet top-1 of the averaged weights, as published with the checkpoints
(vanilla):

    lite0 75.1   lite1 76.7   lite2 77.6   lite3 79.8   lite4 81.5
    edgetpu-S 77.23   edgetpu-M 78.69   edgetpu-L 80.62
    condconv-b0-4e 77.8   condconv-b0-8e 78.3   condconv-b0-8e-depth 79.5

Normalisation, number of classes, image size and crop are those of each network. Their
READMEs do not mention the augmentation; AutoAugment is used here, as for all other
networks of that time. No Lite network trained by AdvProp is published; ε is that of the
paper's small networks.
"""

from efficientnet_advprop.config import METHODS, ExperimentConfig
from efficientnet_advprop.configs import base
from efficientnet_advprop.models.scaling import VARIANTS

RELATIVES = [name for name in VARIANTS if name.startswith(("lite", "edgetpu", "condconv"))]


def get_config(text: str = "lite0") -> ExperimentConfig:
    variant, method = base.split(
        text, RELATIVES, METHODS, example="relatives:lite0-advprop", default="vanilla"
    )
    design = VARIANTS[variant].design
    config = base.make("official", variant)
    config.model.normalization = design.normalization
    config.model.num_classes = design.num_classes
    config.data.eval_crop = "0.875"
    config.data.augment = "autoaugment"
    config.use_method(method)
    return config
