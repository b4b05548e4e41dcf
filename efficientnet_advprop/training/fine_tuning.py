"""Fine-tuning: initial weights, frozen parts, and learning rates that depend on depth.

Layer-wise learning rates follow Clark et al., ICLR 2020 (ELECTRA) and Bao et al., ICLR
2022 (BEiT): the rate of a part is a constant times the rate of the part above it.
"""

from efficientnet_advprop.config.experiment import ConfigError, InitConfig
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints.variable_names import CLASSIFIER, variable_name
from efficientnet_advprop.models.checkpoints.weight_loading import LoadReport, load_weights
from efficientnet_advprop.training.state import TrainState

NOTHING = "none"
BACKBONE = "backbone"


def part_names(model: keras.Model) -> list[str]:
    """Returns the parts from input to output: "stem", "blocks_0", …, "head"."""
    return ["stem", *(block.name for block in model.blocks), "head"]


def freeze(model: keras.Model, up_to: str) -> None:
    """Excludes the lower parts of a network, statistics included, from training.

    `up_to` is "none", the last frozen part ("stem", "blocks_3") or "backbone", all but
    the classifier. Raises a `ConfigError` if there is no such part.
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
    """Returns the factor of each trainable variable's learning rate, in the model's order:
    layer_decay^k for k parts below the head, and `head_factor` for the classifier.
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


def initialize(state: TrainState, init: InitConfig) -> LoadReport:
    """Loads a checkpoint or file into a run before its first step, as `load_weights`.

    Averages start at the same weights, auxiliary batch norms at the main ones.
    """
    report = load_weights(
        state.model, init.checkpoint, use_ema=init.use_ema, include_head=init.include_head
    )
    if state.ema is not None:
        for shadow, variable in zip(state.ema.shadows, state.ema.averaged):
            shadow.assign(variable)
    return report
