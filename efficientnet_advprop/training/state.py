"""All variables that change during a run, which a checkpoint must contain.

The averages of weights and statistics are evaluated, exported and released. Keras's
`use_ema` does not average the statistics; the official code averages all variables.
"""

import enum
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import KerasNetwork
from efficientnet_advprop.models.network import official_name
from efficientnet_advprop.runtime.errors import list_names
from efficientnet_advprop.training.losses import LossScale
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
    """Returns the role of a variable by its name; raises a `ValueError` for a kind that
    this function must learn before it is trained.
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


class ExponentialMovingAverage(tf.Module):
    """Averages ("shadows") of variables; create it under the strategy's scope.

    shadow ← shadow − (1 − d)·(shadow − value), with d = min(decay, (1 + step)/(10 +
    step)), as `tf.train.ExponentialMovingAverage` with `num_updates`: the smaller d lets
    the averages follow the first steps.

    Args:
        averaged: the variables to average; the shadows start at their values.
        decay: in [0, 1); 0.9999 is the official value.
    """

    def __init__(self, averaged: Sequence[tf.Variable], decay: float = 0.9999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(
                f"`decay` is {decay!r}, but must lie in [0, 1); 0.9999 is the official value."
            )
        super().__init__()
        self.averaged = list(averaged)
        self.decay = decay
        self.shadows = [
            tf.Variable(
                variable,
                trainable=False,
                # Statistics differ between replicas, and so do their averages.
                synchronization=variable.synchronization,
                aggregation=variable.aggregation,
                name=f"{official_name(variable.name)}/ExponentialMovingAverage",
            )
            for variable in self.averaged
        ]

    def update(self, step: tf.Tensor) -> None:
        """Updates every shadow, in a replica, after `step` updates (this one included)."""
        step = tf.cast(step, tf.float32)
        rate = 1.0 - tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, variable in zip(self.shadows, self.averaged):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=shadow.handle, alpha=rate, delta=shadow - variable
            )

    def copy_to(self, variables: Sequence[tf.Variable]) -> None:
        """Assigns to `variables`, perhaps of a model without auxiliary branches, the averages
        of the same names; raises a `ValueError` if one is missing.
        """
        shadows = self.by_name()
        named = {official_name(variable.name): variable for variable in variables}
        missing = [name for name in named if name not in shadows]
        if missing:
            raise ValueError(
                f"`variables` holds {list_names(missing)}, of which there is no average; "
                "average the model they come from."
            )
        for name, variable in named.items():
            variable.assign(shadows[name])

    def by_name(self) -> dict[str, tf.Variable]:
        """Returns the shadows by the official names of what they average."""
        return {official_name(v.name): shadow for v, shadow in zip(self.averaged, self.shadows)}


class TrainState(tf.Module):
    """A model, the slots of its optimizer, its averages and the number of updates; create
    it under the strategy's scope.

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
    """Returns what the official EMA averages: all weights and moving statistics."""
    # What else Keras's layers hold, in whole numbers or in the compute dtype, is constant.
    return [variable for variable in model.variables if variable.dtype == tf.float32]
