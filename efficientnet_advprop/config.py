"""The schema: every field a run can be told, its unit and its default, once.

A config file under `configs/` returns an `ExperimentConfig`; `--config.attack.epsilon=1` overrides one field of it. Overrides are
applied after construction, so the doors call `config.validate()` before anything starts. Flags say where and how a program runs
(directories, hardware); the config says what is computed, and is saved with every run.
"""

import dataclasses
import json
import math
import typing
from typing import Any, Optional

METHODS = ("vanilla", "advprop", "adversarial")


class ConfigError(ValueError):
    """A config field whose value breaks a rule; the message names the field, the value, the rule and the way out."""


def _require(ok: bool, field: str, value: Any, rule: str) -> None:
    if not ok:
        raise ConfigError(f"`config.{field}` is {value!r}, but {rule}.")


@dataclasses.dataclass
class ModelConfig:
    """The network. `None` means: what the scaling table says for the variant."""

    variant: str = "b0"
    num_classes: int = 1000
    width_coefficient: Optional[float] = None
    depth_coefficient: Optional[float] = None
    dropout_rate: Optional[float] = None
    survival_prob: float = 0.8  # stochastic depth: of the last block, falling linearly from 1; 1 switches it off
    normalization: str = "advprop"  # of pixels, inside the model: "advprop" | "imagenet" | "none"
    compute_dtype: str = "bfloat16"  # of activations; variables, statistics, losses and logits are float32
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3


@dataclasses.dataclass
class AttackConfig:
    """Projected gradient descent in pixel units of 255 (paper section 4; PAPER facts: ε = n − 1, except PGD1 with ε = 1)."""

    epsilon: float = 1.0
    step_size: float = 1.0
    num_steps: int = 1
    targeted: bool = True  # at a uniformly drawn wrong class; False ascends the loss of the true one
    random_start: float = 0.8  # probability of starting from uniform noise in ±ε rather than from the clean image
    projection: bool = True  # onto the ε-ball; False is plain gradient descent (GD)
    statistics: str = "running"  # of the auxiliary batch norms in the attack: "running" (the paper) | "batch" (Fast AdvProp)


@dataclasses.dataclass
class DataConfig:
    """What the network sees. The trainer reads TFRecords only; `source` says who writes them when they are not there."""

    source: str = "tfrecord"  # "tfrecord" | "digits" (scikit-learn's digits, written on first use)
    image_size: int = 224
    crop: str = "inception"  # of training images: "inception" | "pad" (a random shift by `crop_padding`) | "none"
    crop_padding: int = 0  # pixels
    horizontal_flip: bool = True
    shuffle_buffer: int = 16384  # records
    num_train_examples: Optional[int] = None  # of digits: how many of the training images to use; None: all there are
    max_bad_records: int = 0


@dataclasses.dataclass
class OptimizerConfig:
    """The official recipe: RMSProp, warm-up, staircase decay, weight decay in the loss, averaged weights."""

    name: str = "rmsprop"  # "rmsprop" | "momentum" | "sgd"
    momentum: float = 0.9
    decay: float = 0.9  # of RMSProp's mean square
    epsilon: float = 1e-3  # inside RMSProp's square root
    learning_rate_per_256: float = 0.016  # scaled by global_batch_size / 256
    schedule: str = "exponential"  # "exponential" | "cosine" | "constant"
    decay_factor: float = 0.97
    decay_epochs: float = 2.4
    warmup_epochs: float = 5.0
    weight_decay: float = 1e-5
    label_smoothing: float = 0.1
    ema_decay: float = 0.9999  # 0: no averaging


@dataclasses.dataclass
class TrainingConfig:
    """How long, in what portions, and what is kept."""

    method: str = "advprop"  # "vanilla" | "advprop" | "adversarial" (both through the same batch norms: the paper's control)
    num_epochs: float = 350.0
    global_batch_size: int = 4096  # clean images per update, over all replicas and accumulation steps
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
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
