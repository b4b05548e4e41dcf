"""Optimizers with the arithmetic of TensorFlow 1, for which the official recipe was tuned.

Keras's optimizers compute differently: here, RMSProp adds ε inside the square root, and
its mean square starts at one. The updates are TensorFlow's fused kernels, which exist
for CPU, GPU and XLA. Slots are plain variables that are created with the optimizer, so
a checkpoint is complete before the first step.

Every replica updates its own copy with the same summed gradients, so the copies stay
equal without communication.
"""

from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.config.tables import OPTIMIZERS
from efficientnet_advprop.models.network import official_name


class Optimizer(tf.Module):
    """Contains the slots of the trained variables, and updates both.

    Args:
        trained: the variables, in the order of the gradients that `apply` receives.
        learning_rate_factors: a factor of the learning rate for each variable; None:
            one.
    """

    def __init__(
        self,
        trained: Sequence[tf.Variable],
        learning_rate_factors: Optional[Sequence[float]] = None,
    ):
        super().__init__()
        self.trained = list(trained)
        self.factors = (
            [1.0] * len(self.trained)
            if learning_rate_factors is None
            else list(learning_rate_factors)
        )
        if len(self.factors) != len(self.trained):
            raise ValueError(
                f"`learning_rate_factors` are {len(self.factors)}, "
                f"but there are {len(self.trained)} variables."
            )

    def _make_slots(self, name: str, initial: float) -> list[tf.Variable]:
        return [
            tf.Variable(
                tf.fill(variable.shape, initial),
                trainable=False,
                name=f"{official_name(variable.name)}/{name}",
            )
            for variable in self.trained
        ]

    def _rates(self, learning_rate: tf.Tensor) -> list[tf.Tensor]:
        return [
            learning_rate if factor == 1.0 else learning_rate * factor for factor in self.factors
        ]

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Makes one update by a dense float32 tensor per trained variable."""
        raise NotImplementedError


class RMSProp(Optimizer):
    """RMSProp with momentum, as `tf.train.RMSPropOptimizer`.

    s ← decay·s + (1 − decay)·g²; m ← momentum·m + rate·g/√(s + ε); v ← v − m, with s
    starting at 1.
    """

    def __init__(
        self,
        trained,
        decay: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        learning_rate_factors=None,
    ):
        super().__init__(trained, learning_rate_factors)
        self.decay = decay
        self.momentum = momentum
        self.epsilon = epsilon
        self.mean_squares = self._make_slots("RMSProp", 1.0)
        self.momenta = self._make_slots("RMSProp_1", 0.0)

    def apply(self, gradients, learning_rate):
        rates = self._rates(learning_rate)
        for variable, mean_square, momentum, gradient, rate in zip(
            self.trained, self.mean_squares, self.momenta, gradients, rates
        ):
            tf.raw_ops.ResourceApplyRMSProp(
                var=variable.handle,
                ms=mean_square.handle,
                mom=momentum.handle,
                lr=rate,
                rho=self.decay,
                momentum=self.momentum,
                epsilon=self.epsilon,
                grad=gradient,
            )


class Momentum(Optimizer):
    """m ← momentum·m + g; v ← v − rate·m (`tf.train.MomentumOptimizer`)."""

    def __init__(self, trained, momentum: float = 0.9, learning_rate_factors=None):
        super().__init__(trained, learning_rate_factors)
        self.momentum = momentum
        self.momenta = self._make_slots("Momentum", 0.0)

    def apply(self, gradients, learning_rate):
        for variable, momentum, gradient, rate in zip(
            self.trained, self.momenta, gradients, self._rates(learning_rate)
        ):
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=momentum.handle,
                lr=rate,
                grad=gradient,
                momentum=self.momentum,
            )


class SGD(Optimizer):
    """v ← v − rate·g."""

    def apply(self, gradients, learning_rate):
        for variable, gradient, rate in zip(self.trained, gradients, self._rates(learning_rate)):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)


class LARS(Optimizer):
    """Momentum whose rate adapts to the norms of each variable and gradient (You et al.
    2017).

    With trust = coefficient·‖v‖ / (‖g‖ + weight_decay·‖v‖ + ε), which is one where
    either norm is zero:

        m ← momentum·m + rate·trust·(g + weight_decay·v); v ← v − m

    Variables of batch norms and biases have neither trust nor weight decay; as in the
    official `lars_optimizer`, their names identify them. The rate is part of the
    momentum, so that older gradients do not count more after the rate has risen.
    """

    COEFFICIENT = 1e-3
    EXCLUDED = ("batch_normalization", "bias")

    def __init__(
        self,
        trained,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        epsilon: float = 0.0,
        learning_rate_factors=None,
    ):
        super().__init__(trained, learning_rate_factors)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.epsilon = epsilon
        self.momenta = self._make_slots("LARSOptimizer", 0.0)

    def apply(self, gradients, learning_rate):
        one = tf.constant(1.0)
        for variable, momentum, gradient, rate in zip(
            self.trained, self.momenta, gradients, self._rates(learning_rate)
        ):
            step = rate * gradient
            if not any(part in variable.name for part in self.EXCLUDED):
                step = (
                    rate
                    * self._trust(variable, gradient)
                    * (gradient + self.weight_decay * variable)
                )
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=momentum.handle,
                lr=one,
                grad=step,
                momentum=self.momentum,
            )

    def _trust(self, variable, gradient) -> tf.Tensor:
        norm = tf.norm(tf.convert_to_tensor(variable))
        gradient_norm = tf.norm(gradient)
        denominator = gradient_norm + self.weight_decay * norm + self.epsilon
        is_defined = (norm > 0.0) & (gradient_norm > 0.0)
        return tf.where(
            is_defined, self.COEFFICIENT * norm / tf.where(is_defined, denominator, 1.0), 1.0
        )


def make_optimizer(
    name: str,
    trained: Sequence[tf.Variable],
    *,
    decay: float = 0.9,
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    lars_weight_decay: float = 1e-5,
    lars_epsilon: float = 0.0,
    learning_rate_factors: Optional[Sequence[float]] = None,
) -> Optimizer:
    """Returns the optimizer called `name`, one of `tables.OPTIMIZERS`."""
    factors = learning_rate_factors
    if name == "rmsprop":
        return RMSProp(trained, decay, momentum, epsilon, factors)
    if name == "momentum":
        return Momentum(trained, momentum, factors)
    if name == "sgd":
        return SGD(trained, factors)
    if name == "lars":
        return LARS(trained, momentum, lars_weight_decay, lars_epsilon, factors)
    raise ValueError(f"`name` is {name!r}, but must be one of {', '.join(map(repr, OPTIMIZERS))}.")
