"""Activation functions by name, whose gradients are one pass over memory, and swish
with squeeze-excite gates.

    choice = choose("softplus", alpha=10.0)      # what a network's blocks are told
    # one place's function: y = activation(x, training=True)
    activation = choice.make("activation")

Smooth functions matter in adversarial training: Xie et al. 2020, "Smooth Adversarial
Training" (SAT), arXiv 2006.14536.
"""

# Automatic differentiation of a smooth function runs several elementwise operations over
# tensors far larger than any cache; of `tf.nn.silu` six, which are a third of a training
# step on a CPU. Here the gradient is one expression, compiled by XLA into one loop;
# inside a step that is compiled as a whole it simply becomes part of it, and where there
# is no XLA (the host of a TPU) it runs operation by operation. Only the activation's
# input is kept for the backward pass.

import dataclasses
from typing import Callable, Optional, Union

import tensorflow as tf

from efficientnet_advprop.config.tables import SMOOTH_RELU_GRADIENTS
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.pass_mode import current_pass, weights
from tpu_utils import replica_runtime


def _swish_gradient(x, upstream):
    """Returns d(x·σ(x))/dx · upstream, computed in float32."""
    x32, upstream32 = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    sigmoid = tf.sigmoid(x32)
    return tf.cast(upstream32 * sigmoid * (1.0 + x32 * (1.0 - sigmoid)), x.dtype)


def _gated_swish_gradient(x, upstream, gates, upstream_mean):
    """Returns the same where the output is multiplied by `gates` and also goes, as its
    spatial mean, somewhere else.
    """
    height, width = tf.unstack(tf.shape(x)[1:3])  # the static shape may leave them open
    share = tf.cast(upstream_mean, tf.float32)[:, None, None, :] / tf.cast(
        height * width, tf.float32
    )
    total = tf.cast(upstream, tf.float32) * tf.cast(gates, tf.float32)[:, None, None, :] + share
    return _swish_gradient(x, tf.cast(total, x.dtype))


def spatial_mean(x: tf.Tensor) -> tf.Tensor:
    """Returns the mean over height and width, taken in float32: [batch, height, width,
    channels] → [batch, channels].
    """
    return tf.cast(tf.reduce_mean(tf.cast(x, tf.float32), [1, 2]), x.dtype)


_COMPILED = {}


def _in_one_pass(function, *tensors):
    """Returns the function's result, by XLA where there is one."""
    if not replica_runtime.current().compiles_parts:
        return function(*tensors)
    if function not in _COMPILED:
        _COMPILED[function] = tf.function(function, jit_compile=True, autograph=False)
    # One trace per shape: a network has dozens, which a plain call would warn about.
    return _COMPILED[function].get_concrete_function(*tensors)(*tensors)


@tf.custom_gradient
def swish(x: tf.Tensor) -> tf.Tensor:
    """Returns x·σ(x) (Ramachandran et al. 2017), in x's dtype."""
    return tf.nn.silu(x), lambda upstream: _in_one_pass(_swish_gradient, x, upstream)


def squeeze_excite(
    pooled, reduce_kernel, reduce_bias, expand_kernel, expand_bias, activation=tf.nn.silu
) -> tf.Tensor:
    """Returns one gate in (0, 1) per image and channel (Hu et al. 2018).

    Args:
        pooled: spatial means, [batch, channels].
        reduce_kernel, expand_kernel: [channels, squeezed] and [squeezed, channels].
        reduce_bias, expand_bias: [squeezed] and [channels].
        activation: between the two.
    """
    squeezed = activation(tf.nn.bias_add(tf.linalg.matmul(pooled, reduce_kernel), reduce_bias))
    return tf.sigmoid(tf.nn.bias_add(tf.linalg.matmul(squeezed, expand_kernel), expand_bias))


@tf.custom_gradient
def gated_swish(x: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
    """Returns swish(x) times its squeeze-excite gates.

    Args:
        x: float tensor [batch, height, width, channels]; height and width may be
            unknown when tracing.
        *weights: the two kernels and biases of `squeeze_excite`, in its order and in
            x's dtype.
    """
    # The gradients of both paths come back in one pass. Automatic differentiation would
    # write the gated gradient, the broadcast gradient of the mean, and their sum to
    # memory, each as large as the widest activation of the block.
    y = tf.nn.silu(x)
    pooled = spatial_mean(y)
    gates = squeeze_excite(pooled, *weights)

    def gradient(upstream):
        products = tf.cast(upstream, tf.float32) * tf.cast(y, tf.float32)
        upstream_gates = tf.cast(tf.reduce_sum(products, [1, 2]), x.dtype)
        # Small matrices: cheaper run again than kept.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([pooled, *weights])
            again = squeeze_excite(pooled, *weights)
        upstream_mean, *weight_gradients = tape.gradient(again, [pooled, *weights], upstream_gates)
        gradient_of_x = _in_one_pass(_gated_swish_gradient, x, upstream, gates, upstream_mean)
        return gradient_of_x, *weight_gradients

    return y * gates[:, None, None, :], gradient


@dataclasses.dataclass(frozen=True)
class Formula:
    """A function in closed form.

    Args:
        value: (x, α) → y, elementwise.
        derivative: (x, α) → dy/dx, elementwise and in float32; None: TensorFlow's own
            gradient is one operation.
        alpha: what α is unless something else is said; None: the function has none.
        derivative_by_alpha: (x, α) → dy/dα. Where there is one, α is trained: each
            place of the network has its own, which all its channels share.
    """

    value: Callable
    derivative: Optional[Callable] = None
    alpha: Optional[float] = None
    derivative_by_alpha: Optional[Callable] = None


def _gelu_derivative(x, alpha):
    """Returns that of x·½(1 + tanh(√(2/π)(x + 0.044715x³)))."""
    del alpha
    tanh = tf.tanh(0.7978845608 * (x + 0.044715 * x * x * x))
    slope = 0.7978845608 * (1.0 + 0.134145 * x * x)
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope


def _smooth_relu(x, alpha):
    """SAT, eq. 4: x − log(αx + 1)/α above zero, zero below."""
    return tf.nn.relu(x - tf.math.log(1.0 + alpha * tf.abs(x)) / alpha)


def _smooth_relu_derivative(x, alpha):
    scaled = alpha * tf.nn.relu(x)
    return scaled / (1.0 + scaled)


def _smooth_relu_derivative_by_alpha(x, alpha):
    scaled = alpha * tf.nn.relu(x)
    return (tf.math.log1p(scaled) - scaled / (1.0 + scaled)) / (alpha * alpha)


def _softplus(x, alpha):
    """log(1 + exp(αx))/α, by operations that every converter of graphs knows."""
    scaled = alpha * x
    return (tf.nn.relu(scaled) + tf.math.log(1.0 + tf.exp(-tf.abs(scaled)))) / alpha


def _softplus_derivative(x, alpha):
    return tf.sigmoid(alpha * x)


_SOFTPLUS = Formula(_softplus, _softplus_derivative, alpha=1.0)
# Sources of those that are not everyone's: Ramachandran et al. 2017 (swish, also called
# SiLU); SAT, eq. 2 (softplus with α, of which the paper's is 10) and eq. 4 (SmoothReLU,
# whose α is trained and starts at 400); of GELU the form with the hyperbolic tangent,
# which the code of SAT has.
ACTIVATIONS = {
    "relu": Formula(lambda x, alpha: tf.nn.relu(x)),
    "relu6": Formula(lambda x, alpha: tf.nn.relu6(x)),
    "elu": Formula(lambda x, alpha: tf.nn.elu(x)),
    "swish": Formula(lambda x, alpha: x * tf.sigmoid(x)),
    "gelu": Formula(lambda x, alpha: tf.nn.gelu(x, approximate=True), _gelu_derivative),
    "softplus": _SOFTPLUS,
    "parametric_softplus": dataclasses.replace(_SOFTPLUS, alpha=10.0),
    "smooth_relu": Formula(
        _smooth_relu, _smooth_relu_derivative, 400.0, _smooth_relu_derivative_by_alpha
    ),
}
OTHER_NAMES = {"silu": "swish"}
# SAT's diagnosis, section 4: relu's values with parametric softplus's gradient, in the
# attack, in the training pass, or in both.
_RELU_WITH_SMOOTH_GRADIENT = dataclasses.replace(
    _SOFTPLUS, value=ACTIVATIONS["relu"].value, alpha=10.0
)


def _value_and_gradients(formula: Formula):
    """Returns the functions that run in one pass: (x, α) → y and (x, α, upstream) → dx."""

    def value(x, alpha):
        return tf.cast(formula.value(tf.cast(x, tf.float32), alpha), x.dtype)

    def gradient(x, alpha, upstream):
        slope = formula.derivative(tf.cast(x, tf.float32), alpha)
        return tf.cast(tf.cast(upstream, tf.float32) * slope, x.dtype)

    return value, gradient


_PASSES = {
    formula: _value_and_gradients(formula)
    for formula in [*ACTIVATIONS.values(), _RELU_WITH_SMOOTH_GRADIENT]
    if formula.derivative is not None
}


def _apply(formula: Formula, x: tf.Tensor, alpha: Union[None, float, tf.Tensor]) -> tf.Tensor:
    """Returns the function's values; the gradient flows to `alpha` too where it is
    trained.
    """
    if formula.derivative is None:
        return formula.value(x, alpha)
    value, gradient_of_x = _PASSES[formula]
    alpha = tf.convert_to_tensor(0.0 if alpha is None else alpha, tf.float32)

    @tf.custom_gradient
    def run(x, alpha):
        def gradient(upstream):
            to_x = _in_one_pass(gradient_of_x, x, alpha, upstream)
            if formula.derivative_by_alpha is None:
                return to_x, tf.zeros_like(alpha)
            slope = formula.derivative_by_alpha(tf.cast(x, tf.float32), alpha)
            return to_x, tf.reduce_sum(tf.cast(upstream, tf.float32) * slope)

        return _in_one_pass(value, x, alpha), gradient

    return run(x, alpha)


@dataclasses.dataclass(frozen=True)
class ActivationChoice:
    """Which function a network has, as `choose` checked it.

    Args:
        name: a key of `ACTIVATIONS`.
        alpha: of the function, or, where it is trained, at the start; of a smooth
            gradient; None: there is none.
        smooth_relu_gradient: one of `SMOOTH_RELU_GRADIENTS`.
    """

    name: str
    alpha: Optional[float] = None
    smooth_relu_gradient: str = "none"

    def make(self, layer_name: str, **kwargs) -> Union["Activation", "TrainedActivation"]:
        """Returns the function of one place of the network, a layer with this name and
        `kwargs` where it has a variable.
        """
        if ACTIVATIONS[self.name].derivative_by_alpha is None:
            return Activation(self)
        return TrainedActivation(self, name=layer_name, **kwargs)


class Activation:
    """A function without variables."""

    def __init__(self, choice: ActivationChoice):
        self.choice = choice

    @property
    def alpha(self) -> Optional[float]:
        """α of the function; None where it has none."""
        return None if ACTIVATIONS[self.choice.name].alpha is None else self.choice.alpha

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies it to a float tensor of any shape.

        Only a smooth gradient of relu depends on `training`, a Python bool; False means
        inference, and so an attack with running statistics.
        """
        choice, formula = self.choice, ACTIVATIONS[self.choice.name]
        if current_pass().constant_weights:
            # Plain operations: a custom gradient would hide the pattern from readers of
            # an exported graph.
            return formula.value(x, self.alpha)
        if choice.name == "swish":
            return swish(x)
        if choice.smooth_relu_gradient in ("both", "training" if training else "attack"):
            return _apply(_RELU_WITH_SMOOTH_GRADIENT, x, choice.alpha)
        return _apply(formula, x, self.alpha)


class TrainedActivation(keras.layers.Layer):
    """A function whose α is trained: one number, the square of a variable, so that it
    stays positive (as in the code of SAT).
    """

    def __init__(self, choice: ActivationChoice, **kwargs):
        super().__init__(**kwargs)
        self.choice = choice

    def build(self, input_shape):
        self.root_of_alpha = self.add_weight(
            "root_of_alpha",
            [],
            tf.float32,
            keras.initializers.Constant(self.choice.alpha**0.5),
            experimental_autocast=False,
        )
        self.built = True

    @property
    def alpha(self) -> tf.Tensor:
        """α, a float32 scalar."""
        return tf.square(self.root_of_alpha)

    def call(self, inputs, training=False):
        """Applies it to a float tensor of any shape."""
        del training
        formula = ACTIVATIONS[self.choice.name]
        if current_pass().constant_weights:
            return formula.value(inputs, weights(lambda: self.alpha))
        return _apply(formula, inputs, self.alpha)


def choose(
    name: str, alpha: Optional[float] = None, smooth_relu_gradient: str = "none"
) -> ActivationChoice:
    """Returns what a network is told about its activation, checked.

    Args:
        name: a key of `ACTIVATIONS` or of `OTHER_NAMES`.
        alpha: of softplus, of parametric softplus, of smooth_relu at the start of
            training, or of a smooth gradient of relu; None: the function's own.
        smooth_relu_gradient: where relu's gradient is parametric softplus's, σ(αx):
            "none", in the "attack" (inference mode), in "training" mode, or "both".

    Raises:
        ValueError: one of these is out of its range, or does not go with the others.
    """
    if name not in ACTIVATIONS and name not in OTHER_NAMES:
        choices = ", ".join(map(repr, [*ACTIVATIONS, *OTHER_NAMES]))
        raise ValueError(f"`activation` is {name!r}, but must be one of {choices}.")
    name = OTHER_NAMES.get(name, name)
    if smooth_relu_gradient not in SMOOTH_RELU_GRADIENTS:
        choices = ", ".join(map(repr, SMOOTH_RELU_GRADIENTS))
        raise ValueError(
            f"`smooth_relu_gradient` is {smooth_relu_gradient!r}, but must be one of {choices}."
        )
    formula = ACTIVATIONS[name]
    if smooth_relu_gradient != "none":
        if name != "relu":
            raise ValueError(
                f"`smooth_relu_gradient` is {smooth_relu_gradient!r}, but `activation` is {name!r};"
                " it goes with 'relu' alone."
            )
        formula = _RELU_WITH_SMOOTH_GRADIENT
    if alpha is not None and formula.alpha is None:
        raise ValueError(
            f"`activation_alpha` is {alpha!r}, but `activation` is {name!r}, which has no α; leave"
            " it out."
        )
    if alpha is not None and not alpha > 0:
        raise ValueError(f"`activation_alpha` is {alpha!r}, but must be > 0.")
    return ActivationChoice(
        name, formula.alpha if alpha is None else float(alpha), smooth_relu_gradient
    )
