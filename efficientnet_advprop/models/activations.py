"""Activation functions by name, whose gradients are one pass over memory, and swish
with squeeze-excite gates.

    activation = Activation("softplus", alpha=10.0)      # what a network's blocks are told
    y = activation.make("activation")(x, training=True)  # one place's function

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
from efficientnet_advprop.runtime.errors import require_choice
from efficientnet_advprop.runtime.pass_mode import current_pass, weights
from tpu_utils import replica_runtime


def _swish_gradient(x, upstream):
    """Returns d(x·σ(x))/dx · upstream, computed in float32."""
    x32, upstream32 = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    sigmoid = tf.sigmoid(x32)
    return tf.cast(upstream32 * sigmoid * (1.0 + x32 * (1.0 - sigmoid)), x.dtype)


def _gated_swish_gradient(x, upstream, gates, upstream_mean):
    # As above where the output is multiplied by `gates` and also goes, as its spatial mean,
    # somewhere else.
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
    """Returns one gate in (0, 1) per image and channel (Hu et al. 2018), of their spatial
    means [batch, channels].
    """
    squeezed = activation(tf.nn.bias_add(tf.linalg.matmul(pooled, reduce_kernel), reduce_bias))
    return tf.sigmoid(tf.nn.bias_add(tf.linalg.matmul(squeezed, expand_kernel), expand_bias))


@tf.custom_gradient
def gated_swish(x: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
    """Returns swish(x) times its gates; `weights` are those of `squeeze_excite`, in x's dtype."""
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

    def __call__(self, x: tf.Tensor, alpha: Union[None, float, tf.Tensor]) -> tf.Tensor:
        """Returns y; the gradient flows to `alpha` too where it is trained."""
        if self.derivative is None:
            return self.value(x, alpha)
        alpha = tf.convert_to_tensor(0.0 if alpha is None else alpha, tf.float32)

        @tf.custom_gradient
        def run(x, alpha):
            def gradient(upstream):
                to_x = _in_one_pass(self._backward, x, alpha, upstream)
                if self.derivative_by_alpha is None:
                    return to_x, tf.zeros_like(alpha)
                slope = self.derivative_by_alpha(tf.cast(x, tf.float32), alpha)
                return to_x, tf.reduce_sum(tf.cast(upstream, tf.float32) * slope)

            return _in_one_pass(self._forward, x, alpha), gradient

        return run(x, alpha)

    def _forward(self, x, alpha):
        return tf.cast(self.value(tf.cast(x, tf.float32), alpha), x.dtype)

    def _backward(self, x, alpha, upstream):
        slope = self.derivative(tf.cast(x, tf.float32), alpha)
        return tf.cast(tf.cast(upstream, tf.float32) * slope, x.dtype)


def _gelu_derivative(x, alpha):
    """Returns that of x·½(1 + tanh(√(2/π)(x + 0.044715x³)))."""
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


@dataclasses.dataclass(frozen=True)
class Activation:
    """Which function a network has; itself the function, if that has no variable.

    Args:
        name: a key of `ACTIVATIONS` or of `OTHER_NAMES`.
        alpha: of softplus, of parametric softplus, of smooth_relu at the start of
            training, or of a smooth gradient of relu; None: the function's own.
        smooth_relu_gradient: where relu's gradient is parametric softplus's, σ(αx):
            "none", in the "attack" (inference mode), in "training" mode, or "both".

    Raises:
        ValueError: one of these is out of its range, or does not go with the others.
    """

    name: str
    alpha: Optional[float] = None
    smooth_relu_gradient: str = "none"

    def __post_init__(self):
        require_choice("activation", self.name, [*ACTIVATIONS, *OTHER_NAMES])
        object.__setattr__(self, "name", OTHER_NAMES.get(self.name, self.name))
        require_choice("smooth_relu_gradient", self.smooth_relu_gradient, SMOOTH_RELU_GRADIENTS)
        formula = self.formula
        if self.smooth_relu_gradient != "none":
            if self.name != "relu":
                raise ValueError(
                    f"`smooth_relu_gradient` is {self.smooth_relu_gradient!r}, but `activation` is"
                    f" {self.name!r}; it goes with 'relu' alone."
                )
            formula = _RELU_WITH_SMOOTH_GRADIENT
        if self.alpha is None:
            object.__setattr__(self, "alpha", formula.alpha)
        elif formula.alpha is None:
            raise ValueError(
                f"`activation_alpha` is {self.alpha!r}, but `activation` is {self.name!r}, which"
                " has no α; leave it out."
            )
        elif not self.alpha > 0:
            raise ValueError(f"`activation_alpha` is {self.alpha!r}, but must be > 0.")
        else:
            object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def formula(self) -> Formula:
        return ACTIVATIONS[self.name]

    def make(self, layer_name: str, **kwargs) -> Union["Activation", "TrainedActivation"]:
        """Returns the function of one place of the network, a layer with this name and
        `kwargs` where it has a variable.
        """
        if self.formula.derivative_by_alpha is None:
            return self
        return TrainedActivation(self, name=layer_name, **kwargs)

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies it to a float tensor of any shape.

        Only a smooth gradient of relu depends on `training`, a Python bool; False means
        inference, and so an attack with running statistics.
        """
        if current_pass().constant_weights:
            # Plain operations: a custom gradient would hide the pattern from readers of
            # an exported graph.
            return self.formula.value(x, self.alpha)
        if self.name == "swish":
            return swish(x)
        if self.smooth_relu_gradient in ("both", "training" if training else "attack"):
            return _RELU_WITH_SMOOTH_GRADIENT(x, self.alpha)
        return self.formula(x, self.alpha)


class TrainedActivation(keras.layers.Layer):
    """A function whose α is trained: one number, the square of a variable, so that it
    stays positive (as in the code of SAT).
    """

    def __init__(self, activation: Activation, **kwargs):
        super().__init__(**kwargs)
        self.activation = activation

    def build(self, input_shape):
        self.root_of_alpha = self.add_weight(
            "root_of_alpha",
            [],
            tf.float32,
            keras.initializers.Constant(self.activation.alpha**0.5),
            experimental_autocast=False,
        )
        self.built = True

    def call(self, inputs, training=False):
        """Applies it to a float tensor of any shape."""
        formula = self.activation.formula
        if current_pass().constant_weights:
            return formula.value(inputs, weights(lambda: tf.square(self.root_of_alpha)))
        return formula(inputs, tf.square(self.root_of_alpha))
