"""Every private name of Keras 3 that this room uses, and what differs by backend.

Tried with Keras 3.8.0 and 3.15.1.
"""

import contextlib
from typing import Any, Callable

from efficientnet_advprop.runtime.stack import StackError, is_at_least

try:
    import keras
except ImportError as error:
    raise StackError(
        f"efficientnet_advprop.keras3 needs Keras 3.8 or later and a backend ({error}). Wanted: pip"
        " install 'efficientnet-advprop[keras3-jax]', or [keras3-torch], [keras3-tensorflow]."
    ) from error
if not is_at_least(keras.__version__, "3.8"):
    raise StackError(
        f"`keras` is {keras.__version__}, but efficientnet_advprop.keras3 needs 3.8 or later; for"
        " models of Keras 2 there is efficientnet_advprop.keras."
    )
BACKEND = keras.config.backend()


def all_layers(model: keras.Model) -> list:
    """Returns the model and every layer in it, tracked at whatever depth."""
    return model._flatten_layers(include_self=True, recursive=True)


@contextlib.contextmanager
def unlocked(layer: keras.Layer):
    """Lets a built layer get and lose sublayers."""
    was_locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield layer._tracker
    finally:
        layer._tracker.locked = was_locked


def drop_functions(model: keras.Model) -> None:
    """Lets a model trace its steps anew."""
    model.train_function = model.test_function = model.predict_function = None


def compiled_loss(model: keras.Model):
    """Returns what `compile` made of the loss; None without one."""
    return model._compile_loss


def compiled_metrics(model: keras.Model):
    """Returns the metric that holds all those of `compile`; None without them."""
    return model._compile_metrics


def without_updates(variables: list) -> keras.StatelessScope:
    """Returns a scope in which these variables do not change and have no gradient."""
    values = [(v, keras.ops.stop_gradient(v.value)) for v in variables]
    return keras.StatelessScope(values, collect_losses=True)


def creation_scope(model: keras.Model):
    """Returns the scope in which variables of the model's strategy are created."""
    if BACKEND == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def whole_loss(loss):
    """Returns a loss as Keras reports it: not divided by TensorFlow's replicas."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return loss * tf.distribute.get_strategy().num_replicas_in_sync
    return loss


def gradient_of(function: Callable, values) -> Any:
    """Returns the gradient of a scalar function; None where TensorFlow or PyTorch finds
    no way to the values.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            result = function(values)
        return tape.gradient(result, values)
    if BACKEND == "jax":
        import jax

        return jax.grad(function)(values)
    import torch

    with torch.enable_grad():
        values = values.detach().requires_grad_(True)
        result = function(values)
        if not result.requires_grad:
            return None
        return torch.autograd.grad(result, values, allow_unused=True)[0]
