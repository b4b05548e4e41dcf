"""Chooses a recipe for the size of the data, by one table, which docs/own_images.md explains.

    config = choose("advprop", num_train=300, num_classes=5, checkpoint="b0-advprop")
    config.training.num_epochs

All of it is our own judgement, from the papers' recipes and from small data sets; each
field can be overridden by its `--config.…` flag.
"""

from typing import NamedTuple, Optional

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.models import scaling


class Row(NamedTuple):
    """The choices up to a number of training images."""

    up_to: float
    batch: int  # small, so that few images still make many updates
    min_updates: int  # never fewer, however few the images are
    epochs: int  # or so many, if that is more updates
    ema_decay: float  # remembers about a twentieth of the shortest run
    momentum: float  # of the batch norms' statistics: settled long before the end
    width: float = 1.0  # of a network from scratch, as is `image_size`
    image_size: int = 0  # pixels; 0: the variant's own
    augment: str = "none"  # AutoAugment needs long training: it lost in short ones


# From AdvProp weights all layers train at once: their rate is low, the classifier's ten
# times as high. Frozen layers first would take a second run, and win little with batch norms
# that must see the new images anyway.
PRETRAINED = (
    Row(1_000, batch=32, min_updates=300, epochs=30, ema_decay=0.95, momentum=0.9),
    Row(10_000, batch=64, min_updates=1_000, epochs=20, ema_decay=0.98, momentum=0.99),
    Row(float("inf"), 128, 3_000, 15, 0.99, 0.99, augment="autoaugment"),
)
# A small width and few pixels: a CPU trains it in minutes, and 100 images fill no B0.
SCRATCH = (
    Row(1_000, 16, 600, 40, 0.98, 0.9, width=0.25, image_size=64),
    Row(10_000, 32, 3_000, 40, 0.99, 0.97, width=0.5, image_size=96),
    Row(
        float("inf"), 128, 10_000, 60, 0.999, 0.99, width=1.0, image_size=128, augment="autoaugment"
    ),
)
EPSILON, NUM_STEPS = 4.0, 1  # of AdvProp, pixels of 255; the paper's small networks take PGD1
WARMUP_SHARE = 0.05  # of the updates
LEARNING_RATES = {"pretrained": 0.004, "scratch": 0.0256}  # per 256 images
HEAD_FACTOR = 10.0  # the new classifier's rate by that of the other layers
DROPOUT = {"pretrained": 0.2, "scratch": 0.0}


def row_for(num_train: int, is_pretrained: bool) -> Row:
    """Returns the row of the table for so many training images."""
    return next(row for row in (PRETRAINED if is_pretrained else SCRATCH) if num_train <= row.up_to)


def choose(
    method: str,
    *,
    num_train: int,
    num_classes: int,
    checkpoint: Optional[str],
    variant: str = "b0",
) -> ExperimentConfig:
    """Returns the config of a method for a data set.

    Args:
        method: a key of `METHODS`.
        num_train: training images.
        num_classes: without a background class.
        checkpoint: initial weights; None: from scratch.
        variant: of `scaling.VARIANTS`.
    """
    is_pretrained = checkpoint is not None
    row = row_for(num_train, is_pretrained)
    config = ExperimentConfig()
    model, data, training, optimizer = config.model, config.data, config.training, config.optimizer
    model.variant, model.num_classes = variant, num_classes
    model.dropout_rate = DROPOUT["pretrained" if is_pretrained else "scratch"]
    model.batch_norm_momentum = row.momentum
    model.compute_dtype = "float32"
    data.image_size = row.image_size or scaling.VARIANTS[variant].image_size
    # The whole image is seen in training and evaluation: nothing is cut away.
    data.crop, data.eval_crop = "pad", "none"
    data.augment = row.augment
    data.cache = num_train <= 10_000
    data.shuffle_buffer = min(num_train, 10_000)
    batch = row.batch
    while batch > max(2, num_train // 2):  # no image twice in a step
        batch //= 2
    updates = max(row.min_updates, -(-row.epochs * num_train // batch))
    training.global_batch_size = batch
    # A little more than whole updates, whose number is rounded down.
    training.num_epochs = updates * batch / num_train * (1 + 1e-6)
    training.steps_per_loop = min(20, updates)
    training.checkpoint_every_steps = max(20, updates // 10)
    training.summary_every_steps = max(20, updates // 20)
    training.eval_batch_size = 64
    training.keep_last = 1
    optimizer.schedule = "cosine"
    optimizer.ema_decay = row.ema_decay
    optimizer.learning_rate_per_256 = LEARNING_RATES["pretrained" if is_pretrained else "scratch"]
    if is_pretrained:
        config.init.checkpoint = checkpoint
        config.init.head_learning_rate_factor = HEAD_FACTOR
    else:
        model.width_coefficient, model.survival_prob = row.width, 1.0
        model.depth_coefficient = min(1.0, row.width + 0.1)
    config.attack.epsilon = config.attack.step_size = EPSILON
    config.attack.num_steps = NUM_STEPS
    config.use_method(method)
    follow(config)
    return config


def follow(config: ExperimentConfig) -> None:
    """Chooses once more what is a share of another field, which the user may have set."""
    config.data.crop_padding = max(1, config.data.image_size // 16)
    num_epochs = config.training.num_epochs
    config.training.evaluate_every_epochs = max(1.0, num_epochs / 10)
    config.optimizer.warmup_epochs = WARMUP_SHARE * num_epochs
