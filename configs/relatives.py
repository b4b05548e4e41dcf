r"""EfficientNet-Lite, -EdgeTPU and -CondConv on ImageNet, by vanilla training or another
method.

Usage:

    python -m efficientnet_advprop.train --config=configs/relatives.py:lite0 \
        --data_dir=gs://…/imagenet --model_dir=gs://…/lite0 --strategy=tpu --tpu=local
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

from efficientnet_advprop.config import ExperimentConfig
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.models.scaling import EFFICIENTNET, VARIANTS

RELATIVES = [variant for variant, row in VARIANTS.items() if row.design != EFFICIENTNET]


def get_config(text: str = "lite0") -> ExperimentConfig:
    variant, _, method = text.rpartition("-")
    if method not in METHODS:
        variant, method = text, "vanilla"
    if variant not in RELATIVES:
        raise ValueError(
            f"`text` is {text!r}, but must be one of {', '.join(RELATIVES)}, alone or with a hyphen"
            f" and one of {', '.join(METHODS)}: configs/relatives.py:lite0-advprop."
        )
    row = VARIANTS[variant]
    config = ExperimentConfig()
    config.model.variant = variant
    config.model.normalization = row.design.normalization
    config.model.num_classes = row.design.num_classes
    config.data.image_size = row.image_size
    config.data.eval_crop = "0.875"
    config.data.augment = "autoaugment"
    config.training.global_batch_size = 2048
    config.use_method(method)
    return config
