"""All variables that change during a run, which a checkpoint must contain."""

import enum
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import KerasNetwork
from efficientnet_advprop.models.variable_names import official_name
from efficientnet_advprop.training.ema import ExponentialMovingAverage
from efficientnet_advprop.training.loss_scale import LossScale
from efficientnet_advprop.training.optimizers import Optimizer


class Role(enum.Enum):
    """Which images train a variable."""

    SHARED = "shared"  # kernels and biases: trained by clean and adversarial images
    MAIN = "main"  # main batch norms: clean images only
    AUX = "aux"  # auxiliary batch norms: adversarial images only


STEP_NAME = "global_step"
BATCH_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
SHARED_LEAVES = (
    "kernel",
    "depthwise_kernel",
    "condconv_kernel",  # of routed experts, as CondConv's official code names them
    "depthwise_condconv_kernel",
    "bias",
    "root_of_alpha",  # of an activation whose α is trained
)


def role_of(name: str) -> Role:
    """The role of a variable of a model, derived from its name.

    Raises:
        ValueError: the variable belongs to no batch norm, and is no kernel, bias or α.
            Add new kinds of variables to this function before training them.
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
        f"The variable {name!r} is neither shared, main nor auxiliary by its name; "
        "`training.state.role_of` must know it."
    )


class TrainState(tf.Module):
    """A model, the slots of its optimizer, its averages and the number of updates.

    Create it under the strategy's scope.

    Args:
        model: a `Network`, built.
        optimizer: for the model's trainable variables.
        ema: averages of its trainable variables and statistics; None: no averages.
        loss_scale: for a model that computes in float16; None: the loss is not scaled.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Optimizer,
        ema: Optional[ExponentialMovingAverage] = None,
        loss_scale: Optional[LossScale] = None,
    ):
        super().__init__()
        # Of a Keras model any layer may have any names: its batch norms, which the
        # conversion has found, are main and auxiliary, all the rest is shared.
        if not isinstance(model, KerasNetwork):
            for variable in model.variables:
                role_of(variable.name)
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.loss_scale = loss_scale
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64, name=STEP_NAME)


def averaged_variables(model: keras.Model) -> Sequence[tf.Variable]:
    """The variables that the official EMA averages.

    These are all trainable variables and all moving statistics, that is, every variable
    of a network with batch norms. What layers of Keras hold beside it, in whole numbers
    or in the compute dtype, are constants.
    """
    return [variable for variable in model.variables if variable.dtype == tf.float32]
