r"""Base recipes: what the networks of one table of results share.

A recipe for ImageNet trains by

    python -m efficientnet_advprop.train --config=RECIPE:NAME \
        --data_dir=gs://…/imagenet --model_dir=gs://…/NAME --strategy=tpu --tpu=local

Networks that a table compares begin with the same base, and their recipes differ in the
method alone; tests/configs/test_recipes.py holds them to that, field by field.
"""

import functools
from typing import Callable, Iterable

from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.models import resnet, scaling

_SGD = {
    "model.batch_norm_momentum": 0.9,
    "model.batch_norm_epsilon": 1e-5,
    "optimizer.name": "momentum",
    "optimizer.learning_rate_per_256": 0.1,
    "optimizer.schedule": "piecewise",
    "optimizer.decay_factor": 0.1,
    "optimizer.weight_decay": 1e-4,
    "optimizer.ema_decay": 0.0,
}
# Base → the fields in which it differs from the defaults.
BASES = {
    # AdvProp and all methods beside it: pixels in [-1, 1], batches of 4,096.
    "advprop": {"data.augment": "autoaugment"},
    # The official vanilla networks: mean and deviation of ImageNet, batches of 2,048.
    "official": {"model.normalization": "imagenet", "training.global_batch_size": 2048},
    # google/automl's EfficientNetV2, batches of 4,096.
    "v2": {
        "model.batch_norm_momentum": 0.9,
        "data.num_stages": 4,
        "optimizer.decays_biases": False,
    },
    # Mei et al., ICLR 2022.
    "resnet": {
        **_SGD,
        "data.eval_crop": "0.875",
        "optimizer.decay_at_epochs": "30,60,90,100",
        "optimizer.warmup_epochs": 0.0,
        "optimizer.label_smoothing": 0.0,
        "training.num_epochs": 105.0,
        "training.global_batch_size": 256,
    },
    # Xie et al. 2020, Smooth Adversarial Training.
    "smooth_adversarial": {
        **_SGD,
        "optimizer.decay_at_epochs": "30,60,90",
        "training.num_epochs": 100.0,
        "training.global_batch_size": 1024,
    },
    # Xie et al., CVPR 2019.
    "feature_denoising": {
        **_SGD,
        "data.eval_crop": "0.875",
        "optimizer.decay_at_epochs": "35,70,95",
        "training.num_epochs": 110.0,
        "training.global_batch_size": 4096,
    },
}


def make(base: str, variant: str) -> ExperimentConfig:
    """Returns the config of a base for a network, at the network's image size."""
    config = ExperimentConfig()
    config.model.variant = variant
    if variant in resnet.VARIANTS:
        config.data.image_size = resnet.IMAGE_SIZE
        config.model.survival_prob = 1.0
    else:
        config.data.image_size = scaling.VARIANTS[variant].image_size
    for name, value in BASES[base].items():
        section, field = name.split(".")
        setattr(getattr(config, section), field, value)
    return config


def use_method(config: ExperimentConfig, method: str) -> None:
    """Turns a recipe into that of a method; Fast AdvProp has PGD1, and a batch of 5/4.

    So the clean images of a batch stay as many, and the learning rate of a step the same,
    as in the authors' code.
    """
    if method != "fast_advprop":
        config.use_method(method)
        return
    config.attack = AttackConfig()
    config.use_method(method)
    config.training.global_batch_size = config.training.global_batch_size * 5 // 4
    config.optimizer.learning_rate_per_256 /= 5 / 4


def split(
    text: str,
    variants: Iterable[str],
    options: Iterable[str] = (),
    *,
    example: str,
    default: str = "",
    is_optional: bool = True,
) -> tuple[str, str]:
    """Splits what follows a recipe's colon: "b3-vanilla" → ("b3", "vanilla").

    Args:
        example: a right one, after the recipe's name: "advprop:b3-vanilla".
        default: the option of a variant that stands alone.
        is_optional: whether a variant may stand alone.
    """
    variants, options = tuple(variants), tuple(options)
    for option in options:
        variant = text.removesuffix(f"-{option}")
        if variant != text and variant in variants:
            return variant, option
    if is_optional and text in variants:
        return text, default
    way = "alone or with a hyphen" if is_optional else "a hyphen"
    choices = f", {way} and one of {', '.join(options)}" if options else ""
    file, _, name = example.partition(":")
    raise ValueError(
        f"`text` is {text!r}, but must be one of {', '.join(variants)}{choices}: "
        f"configs/{file}.py:{name}."
    )


def with_float32(get_config: Callable[..., ExperimentConfig]) -> Callable[..., ExperimentConfig]:
    """Lets a recipe's name end with "-float32".

    The official code computed so when AdvProp was released. bfloat16, ours and since
    August 2020 its default, is worth about 0.3 % top-1, as that commit says.
    """

    @functools.wraps(get_config)
    def get(*text: str) -> ExperimentConfig:
        config = get_config(*(name.removesuffix("-float32") for name in text))
        if text and text[0].endswith("-float32"):
            config.model.compute_dtype = "float32"
        return config

    return get
