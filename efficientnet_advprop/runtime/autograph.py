"""AutoGraph, which rewrites Python that asks a tensor: off for this project's code, on
for other people's.

None of our code depends on a tensor's value, and rewriting it takes longer than tracing
it, so our functions are `tf.function(…, autograph=False)`. That switches AutoGraph off
for all that they call. A layer of somebody's own may contain `if tf.reduce_mean(x) > 0:`,
which Keras would rewrite.
"""

from typing import Any, Callable

import tensorflow as tf


@tf.autograph.experimental.do_not_convert
def call_as_it_is(function: Callable, *args, **kwargs) -> Any:
    """Calls a function without AutoGraph, also where the caller is being rewritten."""
    return function(*args, **kwargs)


def call_rewritten(function: Callable, *args, **kwargs) -> Any:
    """Calls a function, or a Keras model, with AutoGraph, also where it is switched off.

    In eager mode nothing has to be rewritten.
    """
    if tf.executing_eagerly():
        return function(*args, **kwargs)
    return _rewritten_call(function, args, kwargs)


def _call(function, args, kwargs):
    return function(*args, **kwargs)


_rewritten_call = tf.autograph.to_graph(_call)
