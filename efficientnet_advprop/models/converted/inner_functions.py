"""One trace per branch for a `tf.function` inside a model, which keeps what it traced
first.

    separate_traces(layer)        # of its methods and attributes that are tf.functions
    join_traces(layer)            # as they were

TensorFlow calls a finished trace whenever the arguments fit, and the branch is no
argument. So each kind of pass gets a function of its own, made from the same Python
code. Functions that are no attribute of any layer cannot be found.
"""

import functools
import inspect
import types
from typing import Callable

import tensorflow as tf

from efficientnet_advprop.runtime.pass_mode import MAIN_PASS, PassMode, current_pass

_Function = tf.types.experimental.PolymorphicFunction


class _FunctionOfPass:
    """Calls one `tf.function` in main passes, and another, made by `copy`, per other
    kind of pass.
    """

    def __init__(self, own: Callable, copy: Callable[[], Callable]):
        self.own, self._copy = own, copy
        self._others: dict[PassMode, Callable] = {}

    def __call__(self, *args, **kwargs):
        mode = current_pass()
        if mode == MAIN_PASS:
            return self.own(*args, **kwargs)
        if mode not in self._others:
            self._others[mode] = self._copy()
        return self._others[mode](*args, **kwargs)

    def as_method(self, function: _Function, layer: tf.Module) -> types.MethodType:
        """Looks like the method it stands for, because Keras reads the arguments of
        `call`.
        """

        def method(self, *args, **kwargs):
            return function_of_pass(*args, **kwargs)

        function_of_pass = self
        method.__signature__ = inspect.signature(function.python_function)
        method.function_of_pass = self
        return types.MethodType(method, layer)


def separate_traces(layer: tf.Module) -> None:
    """Puts a function per kind of pass before every `tf.function` of a layer."""
    of_class = {
        name: value for kind in reversed(type(layer).__mro__) for name, value in vars(kind).items()
    }
    for name, function in of_class.items():
        if isinstance(function, _Function) and name not in vars(layer):
            bound = function.__get__(layer, type(layer))
            anew = functools.partial(_bind_anew, function, layer)
            vars(layer)[name] = _FunctionOfPass(bound, anew).as_method(function, layer)
    for name, function in list(vars(layer).items()):
        if isinstance(function, _Function):
            vars(layer)[name] = _FunctionOfPass(
                function, functools.partial(tf.function, function.python_function)
            )


def join_traces(layer: tf.Module) -> None:
    """Takes away what `separate_traces` put there."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, _FunctionOfPass):
            vars(layer)[name] = value.own
        elif isinstance(value, types.MethodType) and hasattr(value, "function_of_pass"):
            del vars(layer)[name]


def _bind_anew(function: _Function, layer: tf.Module) -> Callable:
    """A method of the layer with traces of its own.

    TensorFlow keeps them per instance, so it is bound to another view of the layer,
    with the same attributes.
    """
    view = object.__new__(type(layer))
    object.__setattr__(view, "__dict__", vars(layer))
    bound = function.__get__(view, type(view))

    def call(*args, _view=view, **kwargs):  # a bound function knows its instance only weakly
        return bound(*args, **kwargs)

    return call
