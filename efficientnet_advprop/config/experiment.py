"""Experiment config: every field with its default, unit and validation rule.

A config file under `configs/` returns an `ExperimentConfig`, and
`--config.attack.epsilon=1` overrides one field of it. Overrides come after
construction, so programs call `config.validate()` before anything starts. The config
says what is computed and is saved with every run; flags say where (folders, hardware).
"""

import dataclasses
import json
from typing import Any, Optional

from efficientnet_advprop.config import fields as config_fields
from efficientnet_advprop.config import rules, tables
from efficientnet_advprop.config.fields import (
    ConfigError,
    Rule,
    at_least,
    field,
    flatten,
    fraction,
    get,
    more_than,
    one_of,
    pattern,
    positive_fraction,
    probability,
)
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.runtime.errors import misspelled

# What a run may change when it is started again: none of it touches the weights it ends
# with.
OPERATIONAL_FIELDS = (
    "training.steps_per_loop",
    "training.checkpoint_every_steps",
    "training.keep_last",
    "training.summary_every_steps",
    "training.evaluate_every_epochs",
    "training.eval_batch_size",
)
_FIRST_MAGNITUDE = 5.0  # of RandAugment in the first of several stages


@dataclasses.dataclass
class ModelConfig:
    """The network. `None` means: what the variant's row of the scaling table says."""

    variant: str = field(
        "b0",
        "the network; or a function that returns a Keras model",
        Rule(
            lambda value: value in tables.VARIANTS or tables.is_keras_variant(value),
            f"must be one of {', '.join(map(repr, tables.VARIANTS))}, or {tables.KERAS_VARIANT}",
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
        "advprop", "how the model normalises pixels", one_of(*tables.NORMALIZATIONS)
    )
    compute_dtype: str = field(
        "bfloat16",
        "type of activations; variables, statistics, losses and logits are float32",
        one_of(*tables.COMPUTE_DTYPES),
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
        one_of(*tables.AUX_SHARES),
    )
    activation: Optional[str] = field(
        None,
        "of all layers; left out: the variant's own; 'silu' is another word for 'swish'",
        one_of(*tables.ACTIVATIONS),
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
        one_of(*tables.SMOOTH_RELU_GRADIENTS),
    )
    denoise: str = field(
        "none",
        "of a ResNet: the operation of denoising blocks behind its stages",
        one_of(*tables.DENOISERS),
    )
    denoise_stages: str = field(
        "2,3,4,5",
        "behind which stages there is a denoising block, if `denoise` names one",
        pattern(
            r"[2-5](,[2-5])*", "must be numbers from 2 to 5, separated by commas, such as '4,5'"
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
        one_of(*tables.ATTACKS),
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
        one_of(*tables.STATISTICS),
    )


@dataclasses.dataclass
class DataConfig:
    """What the network sees: TFRecords, of which `source` says who writes them."""

    source: str = field(
        "tfrecord",
        "'tfrecord' (they are there), 'digits' (scikit-learn's, written on first use) or"
        " 'tfds:NAME' (prepared by TFDS)",
        Rule(
            lambda value: value in tables.SOURCES or (value.startswith("tfds:") and len(value) > 5),
            f"must be one of {', '.join(map(repr, tables.SOURCES))}, or 'tfds:' and a name",
        ),
    )
    image_size: int = field(224, "height and width of images", at_least(1, " pixel"), "pixels")
    train_image_size: Optional[int] = field(
        None, "of training images; left out: image_size", at_least(1, " pixel"), "pixels"
    )
    num_stages: int = field(
        1,
        "equal parts of a run, from each to the next of which training images grow, and"
        " randaugment_magnitude (from 5) and the alphas of mixing (from 0) rise to what they are"
        " set to: EfficientNetV2's progressive training",
        at_least(1),
    )
    stage_base_size: int = field(
        128,
        "of several stages: the first of n trains on images one n-th of the way from here",
        at_least(1, " pixel"),
        "pixels",
    )
    crop: str = field(
        "inception",
        "of training images: 'v2' is EfficientNetV2's, 'pad' a random shift by `crop_padding`",
        one_of(*tables.CROPS),
    )
    crop_padding: int = field(0, "border for the crop 'pad'", at_least(0, " pixels"), "pixels")
    eval_crop: str = field(
        "released",
        "of evaluation images: 'released' is size / (size + 32), 'none' the whole image; 'v2' "
        "and 'v2-ft' are EfficientNetV2's",
        Rule(
            lambda value: _is_eval_crop(value),
            "must be 'released', 'none', 'v2', 'v2-ft' or a fraction in (0, 1], such as '0.875'",
        ),
    )
    horizontal_flip: bool = field(True, "of half of the training images")
    augment: str = field(
        "none", "of training images; 'autoaugment' is policy v0", one_of(*tables.AUGMENTATIONS)
    )
    augment_ops: str = field(
        "official",
        "'official': as that code ran; 'meant': Solarize, Posterize, Contrast as it meant them",
        one_of(*tables.AUGMENTATION_OPS),
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
        pattern(
            r"[a-z_]+",
            "must be the prefix of files, in small letters, such as 'validation' or 'minival'",
        ),
    )
    num_train_examples: Optional[int] = field(
        None, "how many training images to use; left out: all there are", at_least(1)
    )
    subset_seed: Optional[int] = field(
        None,
        "draws the training files that `num_train_examples` are taken from, whole ones; left out:"
        " the first images of every file",
        at_least(0),
    )

    def stages(self) -> list["DataConfig"]:
        """Returns what each stage of a run trains on, at its `image_size`; one for most runs.

        Source: `efficientnetv2/main.py` of google/automl. As there, dropout stays as it
        is, though the paper lets it rise.
        """
        count, last_size = self.num_stages, self.train_image_size or self.image_size
        base = self.stage_base_size if count > 1 else 0
        rises = [stage / (count - 1) for stage in range(count)] if count > 1 else [1.0]
        return [
            dataclasses.replace(
                self,
                num_stages=1,
                train_image_size=None,
                image_size=int(base + (last_size - base) * ((stage + 1) / count)),
                randaugment_magnitude=self.randaugment_magnitude * rise
                + _FIRST_MAGNITUDE * (1.0 - rise),
                mixup_alpha=self.mixup_alpha * rise,
                cutmix_alpha=self.cutmix_alpha * rise,
            )
            for stage, rise in enumerate(rises)
        ]


@dataclasses.dataclass
class OptimizerConfig:
    """RMSProp, warm-up, staircase decay, weight decay in the loss, averaged weights: official."""

    name: str = field("rmsprop", "the update rule", one_of(*tables.OPTIMIZERS))
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
        one_of(*tables.SCHEDULES),
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
    decays_biases: bool = field(True, "false spares biases, as EfficientNetV2's code does")
    label_smoothing: float = field(0.1, "of the training losses", fraction())
    ema_decay: float = field(
        0.9999, "of the averages of weights and statistics", fraction("; 0 switches averaging off")
    )


@dataclasses.dataclass
class InitConfig:
    """Fine-tuning: weights to start from, what of them stays, how fast the rest learns."""

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
        pattern(
            r"none|backbone|stem|blocks_\d+",
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
        """Raises a `ConfigError` at the first field or combination that breaks a rule."""
        for name, value, annotated in flatten(self):
            section, field_name = name.split(".")
            rule = config_fields.broken_rule(getattr(self, section), field_name, value, annotated)
            if rule is not None:
                raise ConfigError(f"`config.{name}` is {value!r}, but {rule}.")
        rules.check(self)

    def fields_without_effect(self) -> list[str]:
        """Returns the fields that were set although this run's Keras model ignores them."""
        if not tables.is_keras_variant(self.model.variant):
            return []
        return [
            name
            for name in rules.KERAS_MODEL_DECIDES
            if get(self, name) != get(ExperimentConfig(), name)
        ]

    def use_method(self, method: str) -> None:
        """Makes this a run of `method` with what the method prescribes.

        Fine-grained AdvProp gets AutoAugment unless there is an augmentation. Fast
        AdvProp (Mei et al., ICLR 2022) attacks in its training pass: one step from
        noise, untargeted, with batch statistics. Its epochs shrink by as much as its
        steps see more images, so that the run costs what it did.
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
            optimizer = self.optimizer
            optimizer.decay_epochs /= 1.0 + share
            optimizer.warmup_epochs /= 1.0 + share
            at_epochs = optimizer.decay_at_epochs.split(",") if optimizer.decay_at_epochs else []
            optimizer.decay_at_epochs = ",".join(
                f"{float(at) / (1.0 + share):g}" for at in at_epochs
            )

    def to_json(self) -> str:
        """Returns the config as JSON text, which `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ExperimentConfig":
        """Returns the config that `to_json` wrote; missing fields have their defaults.

        Raises:
            ConfigError: not such a text, an unknown field, or a value that `validate`
                refuses.
        """
        try:
            sections = json.loads(text)
            problem = "" if _are_sections(sections) else "not an object of sections"
        except json.JSONDecodeError as error:
            problem = f"not JSON ({error})"
        if problem:
            raise ConfigError(
                f"The saved config is {problem}; `ExperimentConfig.to_json` writes such a text."
            )
        config = cls()
        known = {name for name, _, _ in flatten(config)}
        for section, fields in sections.items():
            for field_name, value in fields.items():
                if f"{section}.{field_name}" not in known:
                    raise ConfigError(
                        f"`config.{section}.{field_name}` is in the saved config, but no field of"
                        f" this version's; {suggest(f'{section}.{field_name}')}"
                    )
                setattr(getattr(config, section), field_name, value)
        config.validate()
        return config


def differences(one: ExperimentConfig, other: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that differ: "section.field" → (value in `one`, in `other`)."""
    return {
        name: (value, get(other, name))
        for name, value, _ in flatten(one)
        if value != get(other, name)
    }


def type_of(name: str) -> Any:
    """Returns the annotated type of "section.field"; raises a `ConfigError` for no field."""
    known = {known_name: hint for known_name, _, hint in flatten(ExperimentConfig())}
    if name not in known:
        raise ConfigError(
            f"`config.{name}` is no field of the config; {suggest(name) or 'see --help.'}"
        )
    return known[name]


def override(config: ExperimentConfig, name: str, text: str) -> None:
    """Sets "section.field" to the value that `text` means; raises a `ConfigError`."""
    annotated = type_of(name)
    try:
        value = config_fields.parse(text, annotated)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"`config.{name}` is {text!r}, but must be {config_fields.type_rule(annotated)}."
        ) from error
    section, field_name = name.split(".")
    setattr(getattr(config, section), field_name, value)


def suggest(name: str) -> str:
    """Returns what "section.field", or a field's name alone, may have been meant for."""
    known = sorted(known_name for known_name, _, _ in flatten(ExperimentConfig()))
    typo = misspelled(name, [f"`config.{other}`" for other in known], f"`config.{name}`")
    if typo:
        return f"{typo.removeprefix('; ')}?"
    # Fields of this name or with its words: which one is meant is the reader's to say.
    section, _, field_name = name.rpartition(".")
    words = set(field_name.split("_"))
    siblings = [other for other in known if section and other.startswith(f"{section}.")]
    namesakes = [other for other in known if other.endswith(f".{field_name}")]
    related = [other for other in known if words <= set(other.rpartition(".")[2].split("_"))]
    listed = [other for other in related if other in siblings] or namesakes or related or siblings
    return f"there are {', '.join(f'`config.{other}`' for other in listed)}." if listed else ""


def describe_fields() -> list[tuple[str, list[tuple[str, Any, str]]]]:
    """Returns a line on each section, with its fields' names, defaults and meanings."""
    config = ExperimentConfig()
    described = []
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        summary = (type(part).__doc__ or "").partition("\n\n")[0]
        fields = [
            (f"{section.name}.{name}", value, config_fields.help_of(part, name))
            for name, value in dataclasses.asdict(part).items()
        ]
        described.append((f"{section.name}: {' '.join(summary.split())}", fields))
    return described


def _are_sections(sections: Any) -> bool:
    return isinstance(sections, dict) and all(isinstance(part, dict) for part in sections.values())


def _is_eval_crop(value: str) -> bool:
    try:
        return value in ("released", "none", "v2", "v2-ft") or 0 < float(value) <= 1
    except ValueError:
        return False


def _are_epochs(value: str) -> bool:
    try:
        epochs = [float(part) for part in value.split(",")] if value else []
    except ValueError:
        return False
    return all(low < high for low, high in zip([0.0, *epochs], epochs))
