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
        self.trained, factors = list(trained), learning_rate_factors
        self.factors = [1.0] * len(self.trained) if factors is None else list(factors)
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

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Makes one update by a dense float32 tensor per trained variable."""
        for index, (gradient, factor) in enumerate(zip(gradients, self.factors)):
            rate = learning_rate if factor == 1.0 else learning_rate * factor
            self._update(index, gradient, rate)

    def _update(self, index: int, gradient: tf.Tensor, rate: tf.Tensor) -> None:
        """Updates one variable and its slots."""
        raise NotImplementedError


class RMSProp(Optimizer):
    """RMSProp with momentum, as `tf.train.RMSPropOptimizer`.

    s ← decay·s + (1 − decay)·g²; m ← momentum·m + rate·g/√(s + ε); v ← v − m, with s
    starting at 1.
    """

    def __init__(
        self, trained, learning_rate_factors=None, *, decay=0.9, momentum=0.9, epsilon=1e-3
    ):
        super().__init__(trained, learning_rate_factors)
        self.decay, self.momentum, self.epsilon = decay, momentum, epsilon
        self.mean_squares = self._make_slots("RMSProp", 1.0)
        self.momenta = self._make_slots("RMSProp_1", 0.0)

    def _update(self, index, gradient, rate):
        tf.raw_ops.ResourceApplyRMSProp(
            var=self.trained[index].handle,
            ms=self.mean_squares[index].handle,
            mom=self.momenta[index].handle,
            lr=rate,
            rho=self.decay,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=gradient,
        )


class Momentum(Optimizer):
    """m ← momentum·m + g; v ← v − rate·m (`tf.train.MomentumOptimizer`)."""

    SLOT = "Momentum"

    def __init__(self, trained, learning_rate_factors=None, *, momentum=0.9):
        super().__init__(trained, learning_rate_factors)
        self.momentum = momentum
        self.momenta = self._make_slots(self.SLOT, 0.0)

    def _update(self, index, gradient, rate):
        tf.raw_ops.ResourceApplyMomentum(
            var=self.trained[index].handle,
            accum=self.momenta[index].handle,
            lr=rate,
            grad=gradient,
            momentum=self.momentum,
        )


class SGD(Optimizer):
    """v ← v − rate·g."""

    def _update(self, index, gradient, rate):
        tf.raw_ops.ResourceApplyGradientDescent(
            var=self.trained[index].handle, alpha=rate, delta=gradient
        )


class LARS(Momentum):
    """Momentum whose rate adapts to the norms of each variable and gradient (You et al.
    2017).

    With trust = coefficient·‖v‖ / (‖g‖ + weight_decay·‖v‖ + ε), which is one where
    either norm is zero:

        m ← momentum·m + rate·trust·(g + weight_decay·v); v ← v − m

    Variables of batch norms and biases have neither trust nor weight decay; as in the
    official `lars_optimizer`, their names identify them. The rate is part of the
    momentum, so that older gradients do not count more after the rate has risen.
    """

    SLOT = "LARSOptimizer"
    COEFFICIENT = 1e-3
    EXCLUDED = ("batch_normalization", "bias")

    def __init__(
        self, trained, learning_rate_factors=None, *, momentum=0.9, weight_decay=1e-5, epsilon=0.0
    ):
        super().__init__(trained, learning_rate_factors, momentum=momentum)
        self.weight_decay, self.epsilon = weight_decay, epsilon

    def _update(self, index, gradient, rate):
        variable, step = self.trained[index], rate * gradient
        if not any(part in variable.name for part in self.EXCLUDED):
            trust = self._trust(variable, gradient)
            step = rate * trust * (gradient + self.weight_decay * variable)
        super()._update(index, step, tf.constant(1.0))

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
    learning_rate_factors: Optional[Sequence[float]] = None,
    *,
    decay: float = 0.9,
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    lars_weight_decay: float = 1e-5,
    lars_epsilon: float = 0.0,
) -> Optimizer:
    """Returns the optimizer called `name`, one of `tables.OPTIMIZERS`."""
    lars = {"weight_decay": lars_weight_decay, "epsilon": lars_epsilon}
    optimizers = {
        "rmsprop": (RMSProp, {"decay": decay, "momentum": momentum, "epsilon": epsilon}),
        "momentum": (Momentum, {"momentum": momentum}),
        "sgd": (SGD, {}),
        "lars": (LARS, {"momentum": momentum, **lars}),
    }
    if name not in optimizers:
        raise ValueError(f"`name` is {name!r}, but must be one of {OPTIMIZERS}.")
    kind, settings = optimizers[name]
    return kind(trained, learning_rate_factors, **settings)
