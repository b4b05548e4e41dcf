"""Fine-tuning: initial weights, frozen parts, and learning rates that depend on depth.

Usage:

    # stem to blocks_10; before the optimizer is made
    freeze(model, "blocks_10")
    factors = learning_rate_factors(model, layer_decay=0.9, head_factor=10.0)
    report = initialize(state, "b3-advprop")    # before the first step

The averages start at the loaded weights, too. Layer-wise learning rates follow Clark et
al., ICLR 2020 (ELECTRA) and Bao et al., ICLR 2022 (BEiT): the rate of a part is a
constant times the rate of the part above it.
"""

from typing import Sequence

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints.file_weights import CLASSIFIER, variable_name
from efficientnet_advprop.models.checkpoints.weight_loading import LoadReport, load_weights
from efficientnet_advprop.training.state import TrainState

NOTHING = "none"
BACKBONE = "backbone"


def part_names(model: keras.Model) -> list[str]:
    """The parts of a network from input to output: "stem", "blocks_0", …, "head"."""
    return ["stem", *(block.name for block in model.blocks), "head"]


def freeze(model: keras.Model, up_to: str) -> None:
    """Excludes the lower parts of a network from training.

    In frozen parts, the weights and the batch norms' statistics of all branches stay
    unchanged.

    Args:
        model: a `Network`.
        up_to: "none"; the last frozen part ("stem", "blocks_3"); or "backbone", which
            means all but the classifier.

    Raises:
        ConfigError: the network has no such part.
    """
    parts = [model.stem, *model.blocks]
    names = [part.name for part in parts]
    if up_to not in (NOTHING, BACKBONE, *names):
        raise ConfigError(
            f"`config.init.freeze` is {up_to!r}, but must be '{NOTHING}', '{BACKBONE}' "
            "(all but the classifier) or the last part to stay as it is, "
            f"from 'stem' to '{names[-1]}'."
        )
    if up_to == NOTHING:
        return
    frozen = (
        parts + model.head.below_classifier
        if up_to == BACKBONE
        else parts[: names.index(up_to) + 1]
    )
    for layer in frozen:
        layer.trainable = False


def learning_rate_factors(
    model: keras.Model, *, layer_decay: float = 1.0, head_factor: float = 1.0
) -> list[float]:
    """The factor of the learning rate of each trainable variable, in the model's order.

    Args:
        model: a `Network`.
        layer_decay: the part that is k parts below the head (head, last block, …, stem)
            gets the factor layer_decay^k.
        head_factor: an additional factor of the classifier (`head/dense`).
    """
    names = part_names(model)
    depths = {name: len(names) - 1 - index for index, name in enumerate(names)}
    factors = []
    for variable in model.trainable_variables:
        name = variable_name(model, variable)
        factors.append(
            layer_decay ** depths[name.removeprefix("model/").split("/")[0]]
            * (head_factor if name in CLASSIFIER else 1.0)
        )
    return factors


def initialize(
    state: TrainState, source: str, *, use_ema: bool = True, include_head: bool = True
) -> LoadReport:
    """Loads the weights of a checkpoint or file into a run before its first step.

    The averages start at the same weights, and auxiliary batch norms at the main ones.

    Args and errors: as `load_weights`.
    """
    report = load_weights(state.model, source, use_ema=use_ema, include_head=include_head)
    if state.ema is not None:
        _restart(state.ema.shadows, state.ema.averaged)
    return report


def _restart(shadows: Sequence[tf.Variable], variables: Sequence[tf.Variable]) -> None:
    for shadow, variable in zip(shadows, variables):
        shadow.assign(variable)
