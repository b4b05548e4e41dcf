"""The schema: every field a run can be told, its unit and its default, once.

A config file under `configs/` returns an `ExperimentConfig`;
`--config.attack.epsilon=1` overrides one field of it. Overrides are applied after
construction, so the doors call `config.validate()` before anything starts. Flags say
where and how a program runs (directories, hardware); the config says what is computed,
and is saved with every run.
"""

import dataclasses
import difflib
import json
import re
import typing
from typing import Any, Optional

from efficientnet_advprop.config import fields as config_fields
from efficientnet_advprop.config.fields import (
    Rule,
    at_least,
    field,
    fraction,
    more_than,
    one_of,
    positive_fraction,
    probability,
)
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.runtime.errors import UsageError
from efficientnet_advprop.runtime.keras_variant import FORM, is_keras_variant

# The choices, here so that a config needs none of the modules that act upon it, which
# import TensorFlow; tests/efficientnet_advprop/test_config.py holds them to those
# modules' tables.
VARIANTS = (
    *("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "l1", "l2"),
    *("lite0", "lite1", "lite2", "lite3", "lite4"),
    *("edgetpu-S", "edgetpu-M", "edgetpu-L"),
    *("condconv-b0-4e", "condconv-b0-8e", "condconv-b0-8e-depth"),
    *("resnet50", "resnet101", "resnet152", "resnet200"),
)
NORMALIZATIONS = ("advprop", "imagenet", "lite", "caffe", "none", "unit")
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = (
    *("relu", "relu6", "elu", "swish", "silu", "gelu"),
    *("softplus", "parametric_softplus", "smooth_relu"),
)
ACTIVATIONS_WITH_ALPHA = ("softplus", "parametric_softplus", "smooth_relu")
DENOISERS = (
    *("none", "non_local_softmax", "non_local_gaussian", "non_local_dot"),
    *("bilateral_softmax", "bilateral_gaussian", "bilateral_dot", "mean", "median"),
)
SMOOTH_RELU_GRADIENTS = ("none", "attack", "training", "both")
AUX_SHARES = ("none", "statistics", "moments", "affine")
STATISTICS = ("running", "batch")
OPTIMIZERS = ("rmsprop", "momentum", "sgd", "lars")
SCHEDULES = ("exponential", "cosine", "constant", "piecewise", "poly")
EMBEDDED = ("digits", "characters")  # written into `data_dir` on first use
SOURCES = ("tfrecord", *EMBEDDED)  # or "tfds:" and a name
CROPS = ("inception", "pad", "none")
AUGMENTATIONS = ("none", "autoaugment", "randaugment")
AUGMENTATION_OPS = ("official", "meant")
ATTACKS = ("pgd", "noise")

# What a Keras model's own function decides. Recipes set some of these for their own
# network, so the first are only reported as without effect; the others are refused.
_KERAS_MODEL_DECIDES = (
    "model.width_coefficient",
    "model.depth_coefficient",
    "model.dropout_rate",
    "model.survival_prob",
    "model.batch_norm_momentum",
    "model.batch_norm_epsilon",
)
_KERAS_MODEL_HAS_NOT = (
    "model.batch_norm_group_size",
    "model.batch_norm_batch_size",
    "model.recomputed_blocks",
    "model.aux_shares",
    "model.activation",
    "model.activation_alpha",
    "model.smooth_relu_gradient",
    "model.denoise",
    "init.checkpoint",
    "init.freeze",
    "init.layer_decay",
    "init.head_learning_rate_factor",
)

# What a run may change when it is started again: none of it touches the weights it ends
# with (if there are no bad records).
OPERATIONAL_FIELDS = (
    "data.max_bad_records",
    "training.steps_per_loop",
    "training.checkpoint_every_steps",
    "training.keep_last",
    "training.summary_every_steps",
    "training.evaluate_every_epochs",
    "training.eval_batch_size",
)


class ConfigError(UsageError, ValueError):
    """A config field whose value breaks a rule; the message names the field, the value,
    the rule and the way out.
    """


@dataclasses.dataclass
class ModelConfig:
    """The network. `None` means: what the variant's row of the scaling table says."""

    variant: str = field(
        "b0",
        "the network; or a function that returns a Keras model",
        Rule(
            lambda value: value in VARIANTS or is_keras_variant(value),
            f"must be one of {', '.join(map(repr, VARIANTS))}, or {FORM}",
        ),
    )
    num_classes: int = field(1000, "classes of the classifier", at_least(1))
    width_coefficient: Optional[float] = field(
        None, "factor of all widths", more_than(0, "; leave it out for the variant's own")
    )
    depth_coefficient: Optional[float] = field(
        None, "factor of all repeats", more_than(0, "; leave it out for the variant's own")
    )
    dropout_rate: Optional[float] = field(None, "dropout before the classifier", fraction())
    survival_prob: float = field(
        0.8,
        "stochastic depth: probability that the last block survives, falling linearly from 1",
        positive_fraction("; 1 switches stochastic depth off"),
    )
    normalization: str = field(
        "advprop", "how the model normalises pixels", one_of(*NORMALIZATIONS)
    )
    compute_dtype: str = field(
        "bfloat16",
        "type of activations; variables, statistics, losses and logits are float32",
        one_of(*COMPUTE_DTYPES),
    )
    batch_norm_momentum: float = field(0.99, "of the moving statistics", fraction())
    batch_norm_epsilon: float = field(1e-3, "added to the variance", more_than(0))
    batch_norm_group_size: Optional[int] = field(
        None,
        "replicas that share batch moments; left out: the official rule, 1 up to 8 replicas",
        at_least(1, "; 1: each replica its own moments, left out: the official rule"),
    )
    batch_norm_batch_size: Optional[int] = field(
        None,
        "images whose batch moments are shared, instead of batch_norm_group_size: the official"
        " flag",
        at_least(1, " image"),
    )
    recomputed_blocks: int = field(
        0,
        "the first so many blocks compute their activations again in the backward pass: less"
        " memory",
        at_least(0),
    )
    aux_shares: str = field(
        "none",
        "what auxiliary batch norms share with main's: 'none' (the paper), 'statistics' (running "
        "ones), 'moments' (those of one batch of all images, too), or 'affine' (gamma and beta)",
        one_of(*AUX_SHARES),
    )
    activation: Optional[str] = field(
        None,
        "of all layers; left out: the variant's own; 'silu' is another word for 'swish'",
        one_of(*ACTIVATIONS),
    )
    activation_alpha: Optional[float] = field(
        None,
        "of softplus (1), parametric_softplus (10), smooth_relu (where it starts: 400), or of "
        "smooth_relu_gradient (10); left out: the number in brackets",
        more_than(0),
    )
    smooth_relu_gradient: str = field(
        "none",
        "where relu's gradient is parametric softplus's, its values being its own: a diagnosis of "
        "Smooth Adversarial Training",
        one_of(*SMOOTH_RELU_GRADIENTS),
    )
    denoise: str = field(
        "none",
        "of a ResNet: the operation of denoising blocks behind its stages",
        one_of(*DENOISERS),
    )
    denoise_stages: str = field(
        "2,3,4,5",
        "behind which stages there is a denoising block, if `denoise` names one",
        Rule(
            lambda value: re.fullmatch(r"[2-5](,[2-5])*", value) is not None,
            "must be numbers from 2 to 5, separated by commas, such as '4,5'",
        ),
    )


@dataclasses.dataclass
class AttackConfig:
    """Projected gradient descent, or noise as its control.

    The paper: α = 1 and n = ε + 1 iterations, but n = 1 for ε = 1.
    """

    name: str = field(
        "pgd",
        "'pgd' (FGSM, I-FGSM and GD are settings of it) or 'noise' (uniform in ±ε; it has none of "
        "the options below)",
        one_of(*ATTACKS),
    )
    epsilon: float = field(
        1.0, "radius of the ball", at_least(0, ", in pixels of 255; the paper uses 1 to 4")
    )
    step_size: float = field(
        1.0, "of one iteration", more_than(0, ", in pixels of 255; the paper uses 1")
    )
    num_steps: int = field(
        1,
        "iterations",
        at_least(1, "; the paper uses 1 to 5, and training without an attack is method 'vanilla'"),
    )
    targeted: bool = field(
        True, "aims at a uniformly drawn wrong class; false ascends the loss of the true one"
    )
    random_start: float = field(
        0.8,
        "probability of starting from uniform noise in ±ε rather than from the clean image",
        probability(),
    )
    projection: bool = field(True, "onto the ε-ball; false is plain gradient descent (GD)")
    statistics: str = field(
        "running",
        "of the auxiliary batch norms in the attack: 'running' (the paper) or 'batch' (Fast"
        " AdvProp)",
        one_of(*STATISTICS),
    )


@dataclasses.dataclass
class DataConfig:
    """What the network sees.

    The trainer reads TFRecords; `source` says who writes them.
    """

    source: str = field(
        "tfrecord",
        "'tfrecord' (they are there), 'digits' (scikit-learn's) or 'characters' (rendered),"
        " both written on first use, or 'tfds:NAME' (prepared by TFDS)",
        Rule(
            lambda value: value in SOURCES or (value.startswith("tfds:") and len(value) > 5),
            f"must be one of {', '.join(map(repr, SOURCES))}, or 'tfds:' and a data set's name",
        ),
    )
    image_size: int = field(224, "height and width of images", at_least(1, " pixel"), "pixels")
    crop: str = field(
        "inception",
        "of training images: 'pad' is a random shift by `crop_padding`",
        one_of(*CROPS),
    )
    crop_padding: int = field(0, "border for the crop 'pad'", at_least(0, " pixels"), "pixels")
    eval_crop: str = field(
        "released",
        "of evaluation images: 'released' is size / (size + 32), 'none' the whole image",
        Rule(
            lambda value: _is_eval_crop(value),
            "must be 'released', 'none' or a fraction in (0, 1], such as '0.875'",
        ),
    )
    horizontal_flip: bool = field(True, "of half of the training images")
    augment: str = field(
        "none", "of training images; 'autoaugment' is policy v0", one_of(*AUGMENTATIONS)
    )
    augment_ops: str = field(
        "official",
        "'official': as that code ran; 'meant': Solarize, Posterize, Contrast as it meant them",
        one_of(*AUGMENTATION_OPS),
    )
    randaugment_num_layers: int = field(2, "operations per image", at_least(1))
    randaugment_magnitude: float = field(
        10.0, "strength of the operations", at_least(0, "; usually 5 to 30")
    )
    cutout_half_size: int = field(
        0,
        "half the side of a gray square, after the augmentation; 0: none",
        at_least(0, " pixels"),
        "pixels",
    )
    mixup_alpha: float = field(
        0.0,
        "of the Beta distribution by which a replica's images are mixed in pairs",
        at_least(0, "; 0 switches MixUp off"),
    )
    cutmix_alpha: float = field(
        0.0,
        "the same for pasting a box; with both, each has half of a replica's batch",
        at_least(0, "; 0 switches CutMix off"),
    )
    shuffle_buffer: int = field(16384, "size of the buffer", at_least(1, " record"), "records")
    cache: bool = field(
        False,
        "keep the encoded training records in the host's memory; then only the buffer shuffles"
        " them",
    )
    holdout_shards: int = field(
        0,
        "the first so many training files are left out, and are what 'validation' means (minival)",
        at_least(0),
    )
    validation_prefix: str = field(
        "validation",
        "which files 'validation' means: 'minival' are those of `prepare --minival_list`",
        Rule(
            lambda value: re.fullmatch(r"[a-z_]+", value) is not None,
            "must be the prefix of files, in small letters, such as 'validation' or 'minival'",
        ),
    )
    num_train_examples: Optional[int] = field(
        None, "how many training images to use; left out: all there are", at_least(1)
    )
    max_bad_records: int = field(
        0, "unreadable records that may be passed over before the run stops", at_least(0)
    )


@dataclasses.dataclass
class OptimizerConfig:
    """The official recipe.

    RMSProp, warm-up, staircase decay, weight decay in the loss, averaged weights.
    """

    name: str = field("rmsprop", "the update rule", one_of(*OPTIMIZERS))
    momentum: float = field(0.9, "of the updates", fraction())
    decay: float = field(0.9, "of RMSProp's mean square", fraction())
    epsilon: float = field(1e-3, "inside RMSProp's square root", more_than(0))
    lars_weight_decay: float = field(
        1e-5, "of LARS, on top of weight_decay: times the weights, in its update", at_least(0)
    )
    lars_epsilon: float = field(0.0, "added to LARS's norm of gradients", at_least(0))
    learning_rate_per_256: float = field(
        0.016, "learning rate per 256 images of the global batch", more_than(0)
    )
    schedule: str = field(
        "exponential",
        "'piecewise' multiplies by decay_factor at decay_at_epochs; 'poly' is a parabola down to"
        " poly_end",
        one_of(*SCHEDULES),
    )
    decay_factor: float = field(0.97, "of one decay", positive_fraction())
    decay_epochs: float = field(2.4, "between two decays", more_than(0), "epochs")
    decay_at_epochs: str = field(
        "",
        "of 'piecewise': when the learning rate decays",
        Rule(
            lambda value: _are_epochs(value),
            "must be rising numbers > 0, separated by commas, such as '30,60,90,100'",
        ),
        "epochs",
    )
    poly_end: float = field(0.1, "of 'poly': the last learning rate, not per 256", at_least(0))
    warmup_epochs: float = field(5.0, "linear rise from 0", at_least(0), "epochs")
    weight_decay: float = field(1e-5, "times half the square of the decayed weights", at_least(0))
    label_smoothing: float = field(0.1, "of the training losses", fraction())
    ema_decay: float = field(
        0.9999,
        "of the averages of weights and statistics",
        fraction("; 0 switches averaging off"),
    )


@dataclasses.dataclass
class InitConfig:
    """Fine-tuning: weights to start from, what of them stays, and how fast the rest
    learns.
    """

    checkpoint: str = field(
        "",
        "in the released format: a name ('b3-advprop'), directory, prefix or .tar.gz; '': random "
        "weights",
        Rule(lambda value: value == value.strip(), "must not begin or end with a space"),
    )
    use_ema: bool = field(True, "take the averages in it, where there are any")
    include_head: bool = field(True, "take the classifier too, if it has as many classes")
    freeze: str = field(
        "none",
        "what stays as it is, up to and including this part",
        Rule(
            lambda value: re.fullmatch(r"none|backbone|stem|blocks_\d+", value) is not None,
            "must be 'none', 'backbone' (all but the classifier), 'stem' or a block such as "
            "'blocks_3'",
        ),
    )
    layer_decay: float = field(
        1.0,
        "each part's learning rate is that of the part above times this",
        positive_fraction("; 1 gives all parts the same rate"),
    )
    head_learning_rate_factor: float = field(1.0, "of the classifier's learning rate", more_than(0))


@dataclasses.dataclass
class TrainingConfig:
    """How long, in what portions, and what is kept."""

    method: str = field(
        "advprop",
        "'adversarial' does without auxiliary batch norms, 'adversarial_only' without clean images "
        "too; a row of efficientnet_advprop/config/methods.py",
        one_of(*METHODS),
    )
    num_epochs: float = field(350.0, "length of the run", more_than(0), "epochs")
    global_batch_size: int = field(
        4096,
        "training images per update, over all replicas and accumulation steps",
        at_least(1, " image"),
    )
    accumulation_steps: int = field(1, "parts of a batch, one after the other", at_least(1))
    steps_per_loop: int = field(100, "updates inside one tf.function call", at_least(1))
    seed: int = field(
        0, "of all random numbers", Rule(lambda value: 0 <= value < 2**31, "must lie in [0, 2³¹)")
    )
    checkpoint_every_steps: int = field(1000, "between two checkpoints", at_least(1), "steps")
    keep_last: int = field(3, "checkpoints that are kept", at_least(1))
    summary_every_steps: int = field(100, "between two reports", at_least(1), "steps")
    evaluate_every_epochs: float = field(
        1.0,
        "between two evaluations",
        at_least(0, "; 0: never here, but by `evaluate --watch` elsewhere"),
        "epochs",
    )
    eval_batch_size: int = field(1024, "evaluation images at once, over all replicas", at_least(1))


@dataclasses.dataclass
class ExperimentConfig:
    """One run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    attack: AttackConfig = dataclasses.field(default_factory=AttackConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def validate(self) -> None:
        """Checks every field's type and value, and those rules that tie fields
        together.

        Raises:
            ConfigError: at the first broken rule.
        """
        for name, value, annotated in flatten(self):
            section, field_name = name.split(".")
            rule = config_fields.broken_rule(getattr(self, section), field_name, value, annotated)
            if rule is not None:
                raise ConfigError(f"`config.{name}` is {value!r}, but {rule}.")
        training, optimizer, attack = self.training, self.optimizer, self.attack
        if training.global_batch_size % training.accumulation_steps:
            raise ConfigError(
                f"`config.training.global_batch_size` is {training.global_batch_size}, but must"
                f" divide by `config.training.accumulation_steps` = {training.accumulation_steps};"
                " change one of them."
            )
        if optimizer.warmup_epochs >= training.num_epochs:
            raise ConfigError(
                f"`config.optimizer.warmup_epochs` is {optimizer.warmup_epochs:g}, but must be less"
                f" than `config.training.num_epochs` = {training.num_epochs:g}, or the run ends"
                " while the learning rate still rises."
            )
        initial = optimizer.learning_rate_per_256 * training.global_batch_size / 256
        if optimizer.schedule == "poly" and initial <= optimizer.poly_end:
            raise ConfigError(
                f"`config.optimizer.poly_end` is {optimizer.poly_end:g}, but must be less than the"
                " first learning rate, `config.optimizer.learning_rate_per_256` · batch / 256 ="
                f" {initial:g}, or the rate would rise; lower it."
            )
        if self.data.holdout_shards and self.data.validation_prefix != "validation":
            raise ConfigError(
                f"`config.data.holdout_shards` is {self.data.holdout_shards} and"
                f" `config.data.validation_prefix` {self.data.validation_prefix!r}, but only one"
                " can say what 'validation' means; leave one of them out."
            )
        if self.model.batch_norm_batch_size and self.model.batch_norm_group_size:
            raise ConfigError(
                f"`config.model.batch_norm_batch_size` is {self.model.batch_norm_batch_size} and"
                f" `config.model.batch_norm_group_size` {self.model.batch_norm_group_size}, which"
                " say the same in images and in replicas; leave one of them out."
            )
        if (optimizer.schedule == "piecewise") != bool(optimizer.decay_at_epochs):
            raise ConfigError(
                f"`config.optimizer.decay_at_epochs` is {optimizer.decay_at_epochs!r}, but"
                f" `config.optimizer.schedule` is {optimizer.schedule!r}: epochs go with"
                " 'piecewise', and only with it."
            )
        self._check_keras_model()
        self._check_network()
        self._check_attack()
        if METHODS[training.method].has_attack and attack.targeted and self.model.num_classes < 2:
            raise ConfigError(
                f"`config.model.num_classes` is {self.model.num_classes}, but a targeted attack"
                " needs a wrong class to aim at; use at least 2 classes or"
                " --config.attack.targeted=false."
            )

    def _check_network(self) -> None:
        """That what is said about the activation and about denoising goes together."""
        model = self.model
        has_smooth_gradient = model.smooth_relu_gradient != "none"
        if has_smooth_gradient and model.activation != "relu":
            raise ConfigError(
                f"`config.model.smooth_relu_gradient` is {model.smooth_relu_gradient!r}, but goes"
                f" with `config.model.activation` 'relu' alone, which is {model.activation!r}; set"
                " that to 'relu'."
            )
        if model.smooth_relu_gradient in ("attack", "training") and (
            self.attack.statistics == "batch"
        ):
            raise ConfigError(
                f"`config.model.smooth_relu_gradient` is {model.smooth_relu_gradient!r}, but with"
                " `config.attack.statistics` 'batch' the attack runs in training mode, too; take"
                " 'both', or 'running' statistics."
            )
        if model.denoise != "none" and not model.variant.startswith("resnet"):
            raise ConfigError(
                f"`config.model.denoise` is {model.denoise!r}, but `config.model.variant` is"
                f" {model.variant!r}, and only ResNets have denoising blocks; take 'resnet152', or"
                " leave the field out."
            )
        takes_alpha = has_smooth_gradient or model.activation in ACTIVATIONS_WITH_ALPHA
        if model.activation_alpha is not None and not takes_alpha:
            raise ConfigError(
                f"`config.model.activation_alpha` is {model.activation_alpha:g}, but"
                f" `config.model.activation` is {model.activation!r}: α goes with"
                f" {', '.join(ACTIVATIONS_WITH_ALPHA)} and smooth_relu_gradient."
            )

    def _check_keras_model(self) -> None:
        """That no field speaks of parts that only this project's networks have."""
        if not is_keras_variant(self.model.variant):
            return
        for name in _KERAS_MODEL_HAS_NOT:
            default = get(ExperimentConfig(), name)
            if get(self, name) != default:
                raise ConfigError(
                    f"`config.{name}` is {get(self, name)!r}, but {self.model.variant!r} is a Keras"
                    f" model, whose function alone decides that; leave it at {default!r}."
                )
        if self.optimizer.name == "lars":
            raise ConfigError(
                f"`config.optimizer.name` is 'lars', but {self.model.variant!r} is a Keras model,"
                " in which LARS does not know the batch norms by their names; take 'momentum'."
            )

    def fields_without_effect(self) -> list[str]:
        """The fields that differ from their defaults and say nothing to this run's
        Keras model.
        """
        if not is_keras_variant(self.model.variant):
            return []
        return [
            name
            for name in _KERAS_MODEL_DECIDES
            if get(self, name) != get(ExperimentConfig(), name)
        ]

    def _check_attack(self) -> None:
        """That the method has the attack and the images that it needs, and the attack
        no option that means nothing to it.
        """
        method, attack = METHODS[self.training.method], self.attack
        if AUGMENTED in method.views and self.data.augment == "none":
            raise ConfigError(
                f"`config.data.augment` is 'none', but method {self.training.method!r} trains an"
                " auxiliary branch on augmented images; name an augmentation."
            )
        wanted, reason = {}, ""
        if method.has_attack and attack.name == "noise":
            wanted = {
                field.name: field.default
                for field in dataclasses.fields(attack)
                if field.name not in ("name", "epsilon")
            }
            reason = "attack 'noise' has no such option; leave it at"
        if self.model.aux_shares == "moments":
            try:
                method.in_one_batch()
            except ValueError:
                raise ConfigError(
                    f"`config.model.aux_shares` is 'moments', but method {self.training.method!r}"
                    " has passes that cannot share a batch; take 'none', 'statistics' or 'affine'."
                ) from None
        if method.adversarial_share is not None:
            wanted = {"name": "pgd", "num_steps": 1, "targeted": False, "statistics": "batch"}
            reason = f"method {self.training.method!r} trains with the attack's own pass; set it to"
        for name, value in wanted.items():
            if getattr(attack, name) != value:
                raise ConfigError(
                    f"`config.attack.{name}` is {getattr(attack, name)!r}, but {reason} {value!r}."
                )

    def use_method(self, method: str) -> None:
        """Makes this a run of `method`, with what the method prescribes; everything
        else stays.

        Fine-grained AdvProp needs augmented images: AutoAugment's, where there is no
        augmentation yet. Fast AdvProp (Mei et al., ICLR 2022) attacks in its training
        pass: one step from noise, untargeted, with batch statistics; and it runs for as
        many epochs less as its steps see more images, so that the run costs what it
        did.
        """
        self.training.method = method
        if AUGMENTED in METHODS[method].views and self.data.augment == "none":
            self.data.augment = "autoaugment"
        share = METHODS[method].adversarial_share
        if share is not None:
            self.attack = AttackConfig(
                epsilon=self.attack.epsilon,
                step_size=self.attack.epsilon,
                targeted=False,
                random_start=1.0,
                statistics="batch",
            )
            self.training.num_epochs /= 1.0 + share
            self.optimizer.decay_epochs /= 1.0 + share
            self.optimizer.warmup_epochs /= 1.0 + share
            at_epochs = [
                float(epoch) / (1.0 + share)
                for epoch in self.optimizer.decay_at_epochs.split(",")
                if epoch
            ]
            self.optimizer.decay_at_epochs = ",".join(f"{epoch:g}" for epoch in at_epochs)

    def to_json(self) -> str:
        """The config as JSON text, one section per dataclass; `from_json` reads it
        back.
        """
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ExperimentConfig":
        """The config that `to_json` wrote.

        Fields missing from the text have their defaults.

        Raises:
            ConfigError: not such a text, an unknown field, or a value that `validate`
                refuses.
        """
        try:
            sections = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"The saved config is not JSON: {error}; it is written by"
                " `ExperimentConfig.to_json`."
            ) from error
        config = cls()
        known = {name for name, _, _ in flatten(config)}
        if not isinstance(sections, dict) or not all(
            isinstance(fields, dict) for fields in sections.values()
        ):
            raise ConfigError(
                "The saved config is not an object of sections; it is written by"
                " `ExperimentConfig.to_json`."
            )
        for section, fields in sections.items():
            for field_name, value in fields.items():
                if f"{section}.{field_name}" not in known:
                    raise ConfigError(
                        f"`config.{section}.{field_name}` is in the saved config, but no field of"
                        f" this version's; {_suggest(f'{section}.{field_name}', known)}"
                    )
                setattr(getattr(config, section), field_name, value)
        config.validate()
        return config


def flatten(config: ExperimentConfig) -> list[tuple[str, Any, Any]]:
    """Every field as ("section.field", value, annotated type)."""
    result = []
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        hints = typing.get_type_hints(section.type)
        result += [
            (f"{section.name}.{name}", getattr(part, name, None), hint)
            for name, hint in hints.items()
        ]
    return result


def get(config: ExperimentConfig, name: str) -> Any:
    """The value of the field "section.field"."""
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def differences(one: ExperimentConfig, other: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: "section.field" → (value in `one`, value
    in `other`).
    """
    return {
        name: (value, get(other, name))
        for name, value, _ in flatten(one)
        if value != get(other, name)
    }


def check_override_name(name: str) -> None:
    """Raises a `ConfigError` unless `name`, as in `--config.<name>=…`, is a field."""
    known = {known_name for known_name, _, _ in flatten(ExperimentConfig())}
    if name not in known:
        raise ConfigError(f"`config.{name}` is no field of the config; {_suggest(name, known)}")


def _suggest(name: str, known: typing.Iterable[str]) -> str:
    namesakes = [other for other in known if other.split(".")[-1] == name.split(".")[-1]]
    close = sorted({*difflib.get_close_matches(name, known, n=1, cutoff=0.8), *namesakes})
    if close:
        return f"did you mean {' or '.join(f'`config.{other}`' for other in close)}?"
    siblings = sorted(other for other in known if other.split(".")[0] == name.split(".")[0])
    return f"there are {', '.join(siblings or sorted(known))}."


def is_optional(name: str) -> bool:
    """Whether "section.field" is a field that may be None."""
    hints = {known: hint for known, _, hint in flatten(ExperimentConfig())}
    return typing.get_origin(hints.get(name)) is typing.Union


def type_rule(name: str, value: Any) -> str:
    """Says that `value` is not of the type of the field "section.field"."""
    annotated = {known: hint for known, _, hint in flatten(ExperimentConfig())}[name]
    return f"`config.{name}` is {value!r}, but must be {config_fields.type_rule(annotated)}"


def describe_fields() -> str:
    """Every field with its default, meaning, unit and rule: a section's name, then a
    line each.
    """
    config = ExperimentConfig()
    lines = []
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        lines.append(f"{section.name}: {(type(part).__doc__ or '').splitlines()[0]}")
        for name, value in dataclasses.asdict(part).items():
            meaning = config_fields.help_of(part, name)
            lines.append(f"  {section.name}.{name} = {value!r}: {meaning}")
    return "\n".join(lines)


def _is_eval_crop(value: str) -> bool:
    try:
        return value in ("released", "none") or 0 < float(value) <= 1
    except ValueError:
        return False


def _are_epochs(value: str) -> bool:
    try:
        epochs = [float(part) for part in value.split(",")] if value else []
    except ValueError:
        return False
    return all(low < high for low, high in zip([0.0, *epochs], epochs))
