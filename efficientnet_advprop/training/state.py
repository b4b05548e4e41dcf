"""Everything that a run changes as it learns, and that a checkpoint must hold to go on as if nothing had happened."""

import enum
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.variable_names import official_name
from efficientnet_advprop.training.ema import ExponentialMovingAverage
from efficientnet_advprop.training.loss_scale import LossScale
from efficientnet_advprop.training.optimizers import Optimizer


class Role(enum.Enum):
    """Whose a variable is."""

    SHARED = "shared"  # kernels and biases: trained by clean and adversarial images
    MAIN = "main"  # main batch norms: clean images only
    AUX = "aux"  # auxiliary batch norms: adversarial images only


STEP_NAME = "global_step"
BATCH_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
SHARED_LEAVES = ("kernel", "depthwise_kernel", "bias")


def role_of(name: str) -> Role:
    """The role of a model's variable, from its name.

    Raises:
        ValueError: neither a batch norm's variable nor a kernel or bias: say here what it is before training it.
    """
    *scopes, leaf = official_name(name).split("/")
    if leaf in BATCH_NORM_LEAVES:
        return (
            Role.AUX
            if any(scope == "aux" or scope.startswith("aux_") for scope in scopes)
            else Role.MAIN
        )
    if leaf in SHARED_LEAVES:
        return Role.SHARED
    raise ValueError(
        f"The variable {name!r} is neither shared, main nor auxiliary by its name; `training.state.role_of` must know it."
    )


class TrainState(tf.Module):
    """A model, its optimizer's slots, its averages and the number of updates done. Create it under the strategy's scope.

    Args:
        model: an `EfficientNet`, built.
        optimizer: of the model's trainable variables.
        ema: of its trainable variables and statistics; None: no averages.
        loss_scale: for a model that computes in float16; None: the loss as it is.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Optimizer,
        ema: Optional[ExponentialMovingAverage] = None,
        loss_scale: Optional[LossScale] = None,
    ):
        super().__init__()
        for variable in model.variables:
            role_of(variable.name)
        self.model, self.optimizer, self.ema, self.loss_scale = model, optimizer, ema, loss_scale
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64, name=STEP_NAME)


def averaged_variables(model: keras.Model) -> Sequence[tf.Variable]:
    """What the official EMA covers: all trainable variables and all moving statistics; of a batch-normed network, every
    variable."""
    return model.variables
