"""The schema: every field a run can be told, its unit and its default, once.

A config file under `configs/` returns an `ExperimentConfig`; `--config.attack.epsilon=1` overrides one field of it. Overrides
are applied after construction, so the doors call `config.validate()` before anything starts. Flags say where and how a program
runs (directories, hardware); the config says what is computed, and is saved with every run.
"""

import dataclasses
import difflib
import json
import math
import re
import typing
from typing import Any, Optional

from efficientnet_advprop.errors import UsageError
from efficientnet_advprop.methods import AUGMENTED, METHODS
from efficientnet_advprop.models import resnet_scaling, scaling
from efficientnet_advprop.models.network import COMPUTE_DTYPES, NORMALIZATIONS
from efficientnet_advprop.models.normalization import AUX_SHARES
from efficientnet_advprop.training.optimizers import OPTIMIZERS
from efficientnet_advprop.training.schedules import SCHEDULES
from efficientnet_advprop.training.steps import STATISTICS

SOURCES = ("tfrecord", "digits")  # or "tfds:" and a name
CROPS = ("inception", "pad", "none")
AUGMENTATIONS = ("none", "autoaugment", "randaugment")
AUGMENTATION_OPS = ("official", "meant")
ATTACKS = ("pgd", "noise")

# What a run may change when it is started again: none of it touches the weights it ends with (if there are no bad records).
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
    """A config field whose value breaks a rule; the message names the field, the value, the rule and the way out."""


@dataclasses.dataclass
class ModelConfig:
    """The network. `None` means: what the scaling table says for the variant."""

    variant: str = "b0"  # "b0" … "b8", "l2" | "resnet50", "resnet101", "resnet152", "resnet200"
    num_classes: int = 1000
    width_coefficient: Optional[float] = None
    depth_coefficient: Optional[float] = None
    dropout_rate: Optional[float] = None
    survival_prob: float = (
        0.8  # stochastic depth: of the last block, falling linearly from 1; 1 switches it off
    )
    normalization: str = (
        "advprop"  # of pixels, inside the model: "advprop" | "imagenet" | "caffe" | "none"
    )
    compute_dtype: str = (
        "bfloat16"  # of activations; variables, statistics, losses and logits are float32
    )
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3
    batch_norm_group_size: Optional[int] = (
        None  # replicas that share batch moments; None: the official rule (up to 8: 1)
    )
    recomputed_blocks: int = 0  # the first so many blocks compute their activations again in the backward pass: less memory
    aux_shares: str = "none"  # with main's batch norms: "none" (the paper) | "statistics" | "affine" (gamma and beta)


@dataclasses.dataclass
class AttackConfig:
    """Projected gradient descent in pixel units of 255 (the paper: α = 1, n = ε + 1; for ε = 1, n = 1), or its control."""

    name: str = "pgd"  # "pgd" (FGSM, I-FGSM and GD are settings of it) | "noise" (uniform in ±ε: none of the options below)
    epsilon: float = 1.0
    step_size: float = 1.0
    num_steps: int = 1
    targeted: bool = (
        True  # at a uniformly drawn wrong class; False ascends the loss of the true one
    )
    random_start: float = (
        0.8  # probability of starting from uniform noise in ±ε rather than from the clean image
    )
    projection: bool = True  # onto the ε-ball; False is plain gradient descent (GD)
    statistics: str = "running"  # of the auxiliary batch norms in the attack: "running" (the paper) | "batch" (Fast AdvProp)


@dataclasses.dataclass
class DataConfig:
    """What the network sees. The trainer reads TFRecords only; `source` says who writes them when they are not there."""

    source: str = "tfrecord"  # "tfrecord" | "digits" (scikit-learn's, written on first use) | "tfds:NAME" (prepared by TFDS)
    image_size: int = 224
    crop: str = "inception"  # of training images: "inception" | "pad" (a random shift) | "none"
    crop_padding: int = 0  # pixels
    # Of evaluation images: "released" (size / (size + 32)), a fraction such as "0.875", "none" (all).
    eval_crop: str = "released"
    horizontal_flip: bool = True
    augment: str = "none"  # of training images: "none" | "autoaugment" (policy v0) | "randaugment"
    augment_ops: str = "official"  # "official": as that code ran | "meant": Solarize, Posterize, Contrast as it meant them
    randaugment_num_layers: int = 2
    randaugment_magnitude: float = 10.0
    cutout_half_size: int = (
        0  # pixels: half the side of a gray square, after the augmentation; 0: none
    )
    mixup_alpha: float = (
        0.0  # of the Beta distribution by which a replica's images are mixed in pairs; 0: no MixUp
    )
    cutmix_alpha: float = 0.0  # the same for pasting a box; 0: no CutMix. With both, each has half of a replica's batch
    shuffle_buffer: int = 16384  # records
    cache: bool = False  # keep the encoded training records in the host's memory; then only the buffer shuffles them
    holdout_shards: int = 0  # the first so many training files are left out, and are what "validation" means ("minival")
    num_train_examples: Optional[int] = (
        None  # of digits: how many of the training images to use; None: all there are
    )
    max_bad_records: int = 0


@dataclasses.dataclass
class OptimizerConfig:
    """The official recipe: RMSProp, warm-up, staircase decay, weight decay in the loss, averaged weights."""

    name: str = "rmsprop"  # "rmsprop" | "momentum" | "sgd"
    momentum: float = 0.9
    decay: float = 0.9  # of RMSProp's mean square
    epsilon: float = 1e-3  # inside RMSProp's square root
    learning_rate_per_256: float = 0.016  # scaled by global_batch_size / 256
    schedule: str = "exponential"  # "exponential" | "cosine" | "constant" | "piecewise": by decay_factor at decay_at_epochs
    decay_factor: float = 0.97
    decay_epochs: float = 2.4
    decay_at_epochs: str = ""  # of "piecewise": epochs, rising, separated by commas: "30,60,90,100"
    warmup_epochs: float = 5.0
    weight_decay: float = 1e-5
    label_smoothing: float = 0.1
    ema_decay: float = 0.9999  # 0: no averaging


@dataclasses.dataclass
class InitConfig:
    """Fine-tuning: weights to start from, what of them stays, and how fast the rest learns."""

    checkpoint: str = ""  # in the released format: a name ("b3-advprop"), directory, prefix or .tar.gz; "": random weights
    use_ema: bool = True  # the averages in it, where there are any
    include_head: bool = True  # the classifier too, if it has as many classes
    freeze: str = "none"  # "none" | "backbone" (all but the classifier) | the last part to stay: "stem", "blocks_0", …
    layer_decay: float = 1.0  # each part's learning rate is that of the part above times this
    head_learning_rate_factor: float = 1.0  # of the classifier's learning rate


@dataclasses.dataclass
class TrainingConfig:
    """How long, in what portions, and what is kept."""

    method: str = "advprop"  # "vanilla" | "advprop" | "adversarial" (without auxiliary ones) | "fine_grained" | "fast_advprop"
    num_epochs: float = 350.0
    global_batch_size: int = (
        4096  # training images per update, over all replicas and accumulation steps
    )
    accumulation_steps: int = 1
    steps_per_loop: int = 100  # updates inside one tf.function call
    seed: int = 0
    checkpoint_every_steps: int = 1000
    keep_last: int = 3
    summary_every_steps: int = 100
    evaluate_every_epochs: float = 1.0
    eval_batch_size: int = 1024


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
        """Checks every field's type and value, and those rules that tie fields together.

        Raises:
            ConfigError: at the first broken rule.
        """
        for name, value, field_type in flatten(self):
            _check_type(name, value, field_type)
        for name, is_valid, rule in _RULES:
            value = get(self, name)
            if value is not None and not is_valid(value):
                raise ConfigError(f"`config.{name}` is {value!r}, but {rule}.")
        training, optimizer, attack = self.training, self.optimizer, self.attack
        if training.global_batch_size % training.accumulation_steps:
            raise ConfigError(
                f"`config.training.global_batch_size` is {training.global_batch_size}, but must divide by "
                f"`config.training.accumulation_steps` = {training.accumulation_steps}; change one of them."
            )
        if optimizer.warmup_epochs >= training.num_epochs:
            raise ConfigError(
                f"`config.optimizer.warmup_epochs` is {optimizer.warmup_epochs:g}, but must be less than "
                f"`config.training.num_epochs` = {training.num_epochs:g}, or the run ends while the learning rate still rises."
            )
        if (optimizer.schedule == "piecewise") != bool(optimizer.decay_at_epochs):
            raise ConfigError(
                f"`config.optimizer.decay_at_epochs` is {optimizer.decay_at_epochs!r}, but `config.optimizer.schedule` is "
                f"{optimizer.schedule!r}: epochs go with 'piecewise', and only with it."
            )
        self._check_attack()
        if METHODS[training.method].has_attack and attack.targeted and self.model.num_classes < 2:
            raise ConfigError(
                f"`config.model.num_classes` is {self.model.num_classes}, but a targeted attack needs a wrong class to aim at; "
                "use at least 2 classes or --config.attack.targeted=false."
            )

    def _check_attack(self) -> None:
        """That the method has the attack and the images that it needs, and the attack no option that means nothing to it."""
        method, attack = METHODS[self.training.method], self.attack
        if AUGMENTED in method.views and self.data.augment == "none":
            raise ConfigError(
                f"`config.data.augment` is 'none', but method {self.training.method!r} trains an auxiliary branch on augmented "
                "images; name an augmentation."
            )
        wanted, reason = {}, ""
        if method.has_attack and attack.name == "noise":
            wanted = {
                field.name: field.default
                for field in dataclasses.fields(attack)
                if field.name not in ("name", "epsilon")
            }
            reason = "attack 'noise' has no such option; leave it at"
        if method.adversarial_share is not None:
            wanted = {"name": "pgd", "num_steps": 1, "targeted": False, "statistics": "batch"}
            reason = f"method {self.training.method!r} trains with the attack's own pass; set it to"
        for name, value in wanted.items():
            if getattr(attack, name) != value:
                raise ConfigError(
                    f"`config.attack.{name}` is {getattr(attack, name)!r}, but {reason} {value!r}."
                )

    def use_method(self, method: str) -> None:
        """Makes this a run of `method`, with what the method prescribes; everything else stays.

        Fine-grained AdvProp needs augmented images: AutoAugment's, where there is no augmentation yet.
        Fast AdvProp (Mei et al., ICLR 2022) attacks in its training pass: one step from noise, untargeted, with batch
        statistics; and it runs for as many epochs less as its steps see more images, so that the run costs what it did.
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
        """The config as JSON text, one section per dataclass; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ExperimentConfig":
        """The config that `to_json` wrote. Fields missing from the text have their defaults.

        Raises:
            ConfigError: not such a text, an unknown field, or a value that `validate` refuses.
        """
        try:
            sections = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"The saved config is not JSON: {error}; it is written by `ExperimentConfig.to_json`."
            ) from error
        config = cls()
        known = {name for name, _, _ in flatten(config)}
        if not isinstance(sections, dict) or not all(
            isinstance(fields, dict) for fields in sections.values()
        ):
            raise ConfigError(
                "The saved config is not an object of sections; it is written by `ExperimentConfig.to_json`."
            )
        for section, fields in sections.items():
            for field, value in fields.items():
                if f"{section}.{field}" not in known:
                    raise ConfigError(
                        f"`config.{section}.{field}` is in the saved config, but no field of this version's; "
                        f"{_suggest(f'{section}.{field}', known)}"
                    )
                setattr(getattr(config, section), field, value)
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
    """The fields in which two configs differ: "section.field" → (value in `one`, value in `other`)."""
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


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def type_rule(name: str, value: Any) -> str:
    """Says that `value` is not of the type of the field "section.field"."""
    annotated = {known: field_type for known, _, field_type in flatten(ExperimentConfig())}[name]
    optional = typing.get_origin(annotated) is typing.Union
    kind = _KINDS[typing.get_args(annotated)[0] if optional else annotated]
    return f"`config.{name}` is {value!r}, but must be {kind}{' (or left out)' if optional else ''}"


def _check_type(name: str, value: Any, annotated: Any) -> None:
    optional = typing.get_origin(annotated) is typing.Union
    if optional and value is None:
        return
    expected = typing.get_args(annotated)[0] if optional else annotated
    accepted = (int, float) if expected is float else expected
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{type_rule(name, value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"`config.{name}` is {value!r}, but must be finite.")


def _one_of(*choices: str):
    return (lambda value: value in choices), f"must be one of {', '.join(map(repr, choices))}"


def _at_least(low: float, hint: str = ""):
    return (lambda value: value >= low), f"must be ≥ {low}{hint}"


def _more_than(low: float, hint: str = ""):
    return (lambda value: value > low), f"must be > {low}{hint}"


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


def _is_part(value: str) -> bool:
    return re.fullmatch(r"none|backbone|stem|blocks_\d+", value) is not None


_PROBABILITY = (lambda value: 0 <= value <= 1), "is a probability, in [0, 1]"
_FRACTION = (lambda value: 0 <= value < 1), "must lie in [0, 1)"

_RULES = [
    ("model.variant", *_one_of(*scaling.VARIANTS, *resnet_scaling.VARIANTS)),
    ("model.num_classes", *_at_least(1)),
    ("model.width_coefficient", *_more_than(0, "; leave it out for the variant's own")),
    ("model.depth_coefficient", *_more_than(0, "; leave it out for the variant's own")),
    ("model.dropout_rate", *_FRACTION),
    (
        "model.survival_prob",
        (lambda value: 0 < value <= 1),
        "must lie in (0, 1]; 1 switches stochastic depth off",
    ),
    ("model.normalization", *_one_of(*NORMALIZATIONS)),
    ("model.compute_dtype", *_one_of(*COMPUTE_DTYPES)),
    ("model.batch_norm_momentum", *_FRACTION),
    ("model.batch_norm_epsilon", *_more_than(0)),
    (
        "model.batch_norm_group_size",
        *_at_least(1, "; 1: each replica its own moments, left out: the official rule"),
    ),
    ("model.recomputed_blocks", *_at_least(0)),
    ("model.aux_shares", *_one_of(*AUX_SHARES)),
    ("attack.name", *_one_of(*ATTACKS)),
    ("attack.epsilon", *_at_least(0, ", in pixels of 255; the paper uses 1 to 4")),
    ("attack.step_size", *_more_than(0, ", in pixels of 255; the paper uses 1")),
    ("attack.num_steps", *_at_least(1, "; the paper uses 1 to 5")),
    ("attack.random_start", *_PROBABILITY),
    ("attack.statistics", *_one_of(*STATISTICS)),
    (
        "data.source",
        (lambda value: value in SOURCES or (value.startswith("tfds:") and len(value) > 5)),
        f"must be one of {', '.join(map(repr, SOURCES))}, or 'tfds:' and a data set's name",
    ),
    ("data.image_size", *_at_least(1, " pixel")),
    ("data.crop", *_one_of(*CROPS)),
    ("data.crop_padding", *_at_least(0, " pixels")),
    (
        "data.eval_crop",
        _is_eval_crop,
        "must be 'released', 'none' or a fraction in (0, 1], such as '0.875'",
    ),
    ("data.augment", *_one_of(*AUGMENTATIONS)),
    ("data.augment_ops", *_one_of(*AUGMENTATION_OPS)),
    ("data.randaugment_num_layers", *_at_least(1)),
    ("data.randaugment_magnitude", *_at_least(0, "; usually 5 to 30")),
    ("data.cutout_half_size", *_at_least(0, " pixels")),
    ("data.mixup_alpha", *_at_least(0, "; 0 switches MixUp off")),
    ("data.cutmix_alpha", *_at_least(0, "; 0 switches CutMix off")),
    ("data.shuffle_buffer", *_at_least(1, " record")),
    ("data.holdout_shards", *_at_least(0)),
    ("data.num_train_examples", *_at_least(1)),
    ("data.max_bad_records", *_at_least(0)),
    ("optimizer.name", *_one_of(*OPTIMIZERS)),
    ("optimizer.momentum", *_FRACTION),
    ("optimizer.decay", *_FRACTION),
    ("optimizer.epsilon", *_more_than(0)),
    ("optimizer.learning_rate_per_256", *_more_than(0)),
    ("optimizer.schedule", *_one_of(*SCHEDULES)),
    ("optimizer.decay_factor", (lambda value: 0 < value <= 1), "must lie in (0, 1]"),
    ("optimizer.decay_epochs", *_more_than(0)),
    (
        "optimizer.decay_at_epochs",
        _are_epochs,
        "must be rising numbers > 0, separated by commas, such as '30,60,90,100'",
    ),
    ("optimizer.warmup_epochs", *_at_least(0)),
    ("optimizer.weight_decay", *_at_least(0)),
    ("optimizer.label_smoothing", *_FRACTION),
    (
        "optimizer.ema_decay",
        (lambda value: 0 <= value < 1),
        "must lie in [0, 1); 0 switches averaging off",
    ),
    (
        "init.checkpoint",
        (lambda value: value == value.strip()),
        "must not begin or end with a space",
    ),
    (
        "init.freeze",
        _is_part,
        "must be 'none', 'backbone' (all but the classifier), 'stem' or a block such as 'blocks_3'",
    ),
    (
        "init.layer_decay",
        (lambda value: 0 < value <= 1),
        "must lie in (0, 1]; 1 gives all parts the same rate",
    ),
    ("init.head_learning_rate_factor", *_more_than(0)),
    ("training.method", *_one_of(*METHODS)),
    ("training.num_epochs", *_more_than(0)),
    ("training.global_batch_size", *_at_least(1, " image")),
    ("training.accumulation_steps", *_at_least(1)),
    ("training.steps_per_loop", *_at_least(1)),
    ("training.seed", (lambda value: 0 <= value < 2**31), "must lie in [0, 2³¹)"),
    ("training.checkpoint_every_steps", *_at_least(1)),
    ("training.keep_last", *_at_least(1)),
    ("training.summary_every_steps", *_at_least(1)),
    ("training.evaluate_every_epochs", *_more_than(0)),
    ("training.eval_batch_size", *_at_least(1)),
]
