"""Exponential moving averages of weights and batch-norm statistics.

The averages are evaluated, exported and released. Keras's `use_ema` does not average
the statistics; the official code averages them with all other variables.
"""

from typing import Sequence

import tensorflow as tf

from efficientnet_advprop.models.variable_names import official_name
from efficientnet_advprop.runtime.errors import list_names


class ExponentialMovingAverage(tf.Module):
    """Averages ("shadows") of variables.

    An update computes shadow ← shadow − (1 − d)·(shadow − value), with d = min(decay,
    (1 + step)/(10 + step)), as `tf.train.ExponentialMovingAverage` with `num_updates`.
    The smaller d at the beginning lets the averages follow the first steps. Create the
    object under the strategy's scope.

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
                # Statistics differ between replicas, and therefore their averages do,
                # too.
                synchronization=variable.synchronization,
                aggregation=variable.aggregation,
                name=f"{official_name(variable.name)}/ExponentialMovingAverage",
            )
            for variable in self.averaged
        ]

    def update(self, step: tf.Tensor) -> None:
        """Updates every shadow; call it in a replica.

        `step`: int scalar, the number of updates so far, including the current one.
        """
        step = tf.cast(step, tf.float32)
        rate = 1.0 - tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, variable in zip(self.shadows, self.averaged):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=shadow.handle, alpha=rate, delta=shadow - variable
            )

    def copy_to(self, variables: Sequence[tf.Variable]) -> None:
        """Assigns to `variables` the averages of the variables with the same names.

        They may belong to another model, for example one without auxiliary branches.

        Raises:
            ValueError: there is no average with the name of one of the variables.
        """
        shadows = {
            official_name(variable.name): shadow
            for variable, shadow in zip(self.averaged, self.shadows)
        }
        missing = [
            official_name(variable.name)
            for variable in variables
            if official_name(variable.name) not in shadows
        ]
        if missing:
            raise ValueError(
                f"`variables` holds {list_names(missing)}, of which there is no average; "
                "average the model they come from."
            )
        for variable in variables:
            variable.assign(shadows[official_name(variable.name)])
