r"""ResNets on ImageNet, vanilla and by AdvProp: 105 epochs of SGD, as in Fast AdvProp's
paper.

Usage:

    python -m efficientnet_advprop.train --config=configs/resnet.py:resnet50-advprop \
        --data_dir=gs://…/imagenet --model_dir=gs://…/resnet50 --strategy=tpu --tpu=local

The recipe is that of Mei et al., ICLR 2022. The part after the colon is a variant
(resnet50, resnet101, resnet152, resnet200) and a method (vanilla, advprop, adversarial,
adversarial_only, fast_advprop, fine_grained). AdvProp attacks with PGD1 (ε = 1); for PGD5, add
--config.attack.epsilon=4 --config.attack.num_steps=5.

Expected results of ResNet-50 (Mei et al.): ImageNet top-1 / ImageNet-C mean error /
ImageNet-R / Stylized, and the cost:

    vanilla 76.2 / 58.5 / 36.3 / 7.8, 1×   advprop PGD1 77.5 / 54.3 / 39.5 / 8.6, 3×
    PGD5 77.0 / 52.0 / 42.3 / 12.0, 7×   Fast AdvProp 76.5 / 56.4 / 38.2 / 8.3, 1×

Expected top-1 of ResNet-50 / 101 / 152 / 200 (Xie et al., quoted from memory; their
recipe is not known): vanilla 76.7 / 78.3 / 79.0 / 79.3, AdvProp 77.4 / 79.2 / 79.8 /
80.1. No run has been timed, and no chip-hours are known; `make preflight`
(docs/preflight.md) computes them with the TPU's compiler.

The official ResNets for TPUs use another recipe: 90 epochs in batches of 1,024
(learning rate 0.1 per 256 images), 5 epochs of warm-up, a tenth of the rate at epochs
30, 60 and 80, Nesterov momentum, and pixels normalised by mean and standard deviation.
"""

from efficientnet_advprop.config import METHODS, ExperimentConfig
from efficientnet_advprop.models import resnet_scaling


def get_config(text: str = "resnet50-advprop") -> ExperimentConfig:
    variant, _, method = text.partition("-")
    if variant not in resnet_scaling.VARIANTS or method not in METHODS:
        raise ValueError(
            f"`text` is {text!r}, but must be one of {', '.join(resnet_scaling.VARIANTS)}, a hyphen"
            f" and one of {', '.join(METHODS)}: configs/resnet.py:resnet50-advprop."
        )
    config = ExperimentConfig()
    config.model.variant = variant
    config.model.survival_prob = 1.0
    config.model.batch_norm_momentum = 0.9
    config.model.batch_norm_epsilon = 1e-5
    config.data.image_size = resnet_scaling.VARIANTS[variant].image_size
    config.data.eval_crop = "0.875"
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate_per_256 = 0.1
    config.optimizer.schedule = "piecewise"
    config.optimizer.decay_factor = 0.1
    config.optimizer.decay_at_epochs = "30,60,90,100"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.label_smoothing = 0.0
    config.optimizer.ema_decay = 0.0
    config.training.num_epochs = 105.0
    config.training.global_batch_size = 256
    config.use_method(method)
    return config
