"""Rules that tie several fields of a config together."""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Iterator

from efficientnet_advprop.config.fields import ConfigError, get
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.config.tables import ACTIVATIONS_WITH_ALPHA, is_keras_variant

if TYPE_CHECKING:
    from efficientnet_advprop.config.experiment import ExperimentConfig

_Case = tuple[Any, str, str]  # whether the rule is broken, the field, the rule after "but"

# What a Keras model's own function decides. Recipes set some of these for their own
# network, so the first are only reported as without effect; the others are refused.
KERAS_MODEL_DECIDES = (
    *("model.width_coefficient", "model.depth_coefficient", "model.dropout_rate"),
    *("model.survival_prob", "model.batch_norm_momentum", "model.batch_norm_epsilon"),
)
_KERAS_MODEL_HAS_NOT = (
    *("model.batch_norm_group_size", "model.batch_norm_batch_size", "model.recomputed_blocks"),
    *("model.aux_shares", "model.activation", "model.activation_alpha"),
    *("model.smooth_relu_gradient", "model.denoise"),
    *("init.checkpoint", "init.freeze", "init.layer_decay", "init.head_learning_rate_factor"),
)


def check(config: "ExperimentConfig") -> None:
    """Raises a `ConfigError` at the first broken rule."""
    groups = (_schedule_rules, _data_rules, _keras_model_rules, _network_rules, _attack_rules)
    for is_broken, name, rule in itertools.chain(*(group(config) for group in groups)):
        if is_broken:
            raise ConfigError(f"`config.{name}` is {get(config, name)!r}, but {rule}.")


def _schedule_rules(config: "ExperimentConfig") -> Iterator[_Case]:
    training, optimizer = config.training, config.optimizer
    yield (
        training.global_batch_size % training.accumulation_steps,
        "training.global_batch_size",
        "must divide by `config.training.accumulation_steps` ="
        f" {training.accumulation_steps}; change one of them",
    )
    yield (
        optimizer.warmup_epochs >= training.num_epochs,
        "optimizer.warmup_epochs",
        f"must be less than `config.training.num_epochs` = {training.num_epochs:g}, or the run"
        " ends while the learning rate still rises",
    )
    initial = optimizer.learning_rate_per_256 * training.global_batch_size / 256
    yield (
        optimizer.schedule == "poly" and initial <= optimizer.poly_end,
        "optimizer.poly_end",
        "must be less than the first learning rate, `config.optimizer.learning_rate_per_256` ·"
        f" batch / 256 = {initial:g}, or the rate would rise; lower it",
    )
    yield (
        (optimizer.schedule == "piecewise") != bool(optimizer.decay_at_epochs),
        "optimizer.decay_at_epochs",
        f"`config.optimizer.schedule` is {optimizer.schedule!r}: epochs go with 'piecewise',"
        " and only with it",
    )


def _data_rules(config: "ExperimentConfig") -> Iterator[_Case]:
    data = config.data
    yield (
        data.holdout_shards and data.validation_prefix != "validation",
        "data.holdout_shards",
        f"`config.data.validation_prefix` is {data.validation_prefix!r}, and only one can say"
        " what 'validation' means; leave one of them out",
    )
    yield (
        data.subset_seed is not None and data.num_train_examples is None,
        "data.subset_seed",
        "`config.data.num_train_examples` is left out, so that there is nothing to draw; set it",
    )
    last_size = data.train_image_size or data.image_size
    yield (
        data.num_stages > 1 and data.stage_base_size > last_size,
        "data.stage_base_size",
        f"training images end with {last_size} pixels, and would shrink from stage to stage;"
        " lower it",
    )
    yield (
        config.model.batch_norm_batch_size and config.model.batch_norm_group_size,
        "model.batch_norm_batch_size",
        f"`config.model.batch_norm_group_size` is {config.model.batch_norm_group_size}, which"
        " says the same in replicas; leave one of them out",
    )


def _keras_model_rules(config: "ExperimentConfig") -> Iterator[_Case]:
    """No field may speak of parts that only this project's networks have."""
    variant = config.model.variant
    if not is_keras_variant(variant):
        return
    for name in _KERAS_MODEL_HAS_NOT:
        default = get(type(config)(), name)
        yield (
            get(config, name) != default,
            name,
            f"{variant!r} is a Keras model, whose function alone decides that; leave it at"
            f" {default!r}",
        )
    yield (
        config.optimizer.name == "lars",
        "optimizer.name",
        f"{variant!r} is a Keras model, in which LARS does not know the batch norms by their"
        " names; take 'momentum'",
    )


def _network_rules(config: "ExperimentConfig") -> Iterator[_Case]:
    model = config.model
    has_smooth_gradient = model.smooth_relu_gradient != "none"
    yield (
        has_smooth_gradient and model.activation != "relu",
        "model.smooth_relu_gradient",
        "goes with `config.model.activation` 'relu' alone, which is"
        f" {model.activation!r}; set that to 'relu'",
    )
    only_one_pass = model.smooth_relu_gradient in ("attack", "training")
    yield (
        only_one_pass and config.attack.statistics == "batch",
        "model.smooth_relu_gradient",
        "with `config.attack.statistics` 'batch' the attack runs in training mode, too; take"
        " 'both', or 'running' statistics",
    )
    yield (
        model.denoise != "none" and not model.variant.startswith("resnet"),
        "model.denoise",
        f"`config.model.variant` is {model.variant!r}, and only ResNets have denoising blocks;"
        " take 'resnet152', or leave the field out",
    )
    takes_alpha = has_smooth_gradient or model.activation in ACTIVATIONS_WITH_ALPHA
    yield (
        model.activation_alpha is not None and not takes_alpha,
        "model.activation_alpha",
        f"`config.model.activation` is {model.activation!r}: α goes with"
        f" {', '.join(ACTIVATIONS_WITH_ALPHA)} and smooth_relu_gradient",
    )


def _attack_rules(config: "ExperimentConfig") -> Iterator[_Case]:
    """The method needs its attack and images, and the attack no option without effect."""
    name, attack = config.training.method, config.attack
    method = METHODS[name]
    yield (
        AUGMENTED in method.views and config.data.augment == "none",
        "data.augment",
        f"method {name!r} trains an auxiliary branch on augmented images; name an augmentation",
    )
    yield (
        config.model.aux_shares == "moments" and not method.fits_one_batch,
        "model.aux_shares",
        f"method {name!r} has passes that cannot share a batch; take 'none', 'statistics' or"
        " 'affine'",
    )
    wanted, reason = {}, ""
    if method.has_attack and attack.name == "noise":
        others = [field for field in dataclasses.fields(attack) if field.name != "epsilon"]
        wanted = {field.name: field.default for field in others if field.name != "name"}
        reason = "attack 'noise' has no such option; leave it at"
    if method.adversarial_share is not None:
        wanted = {"name": "pgd", "num_steps": 1, "targeted": False, "statistics": "batch"}
        reason = f"method {name!r} trains with the attack's own pass; set it to"
    for option, value in wanted.items():
        yield getattr(attack, option) != value, f"attack.{option}", f"{reason} {value!r}"
    yield (
        method.has_attack and attack.targeted and config.model.num_classes < 2,
        "model.num_classes",
        "a targeted attack needs a wrong class to aim at; use at least 2 classes or"
        " --config.attack.targeted=false",
    )
