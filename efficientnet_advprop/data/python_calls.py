"""Python in a dataset's graph, which no longer runs once the interpreter goes.

    row, = call_python(read, [file, record], row=tf.TensorSpec([], tf.string))    # in a dataset

A dataset's threads read ahead as long as its iterator lives, and that may be longer
than Python: an exception's traceback, for instance, holds the frames that hold the
iterator. A thread that then calls into Python ends the process by SIGABRT, or makes it
wait for ever, whatever exit code it was about to give. So each call asks a flag first, in
the graph; before the interpreter goes, the flag is set, and the calls that have begun are
waited for. What the iterators do after that is TensorFlow's business alone.
"""

import atexit
import contextlib
import threading
import time
from typing import Callable, Sequence

import numpy as np
import tensorflow as tf

# A call that takes longer is stuck, say in a file system that does not answer.
_PATIENCE_SECONDS = 10.0
# For calls that have seen the flag unset and are on their way to Python.
_GRACE_SECONDS = 0.2
_ENDED = "Python no longer answers: the program is about to end"


# AutoGraph's conversion would take longer than the tracing.
@tf.autograph.experimental.do_not_convert
def call_python(
    function: Callable, arguments: Sequence[tf.Tensor], **results: tf.TensorSpec
) -> list[tf.Tensor]:
    """Calls a function from a dataset's graph, as long as Python answers.

    Args:
        function: NumPy arrays → a value, or a tuple of one for each of `results`.
        arguments: tensors.
        results: names (for people) and specs; a dimension may be None.

    Returns:
        A tensor for each of `results`. If `function` raises, or Python no longer
        answers, the tensors' computation fails by an `InvalidArgumentError` whose text
        holds "<class of the exception>: <its message>".
    """
    specs = list(results.values())
    nothing = [_empty(spec) for spec in specs]

    def answer(*values):
        with _counted():
            try:
                answers = function(*values)
            # Whatever it is, it goes through the graph to whoever reads the dataset.
            except Exception as error:
                return [f"{type(error).__name__}: {error}".encode(), *nothing]
        answers = answers if isinstance(answers, tuple) else (answers,)
        dtypes = (spec.dtype.as_numpy_dtype for spec in specs)
        return [b"", *map(np.asarray, answers, dtypes)]

    _prepare_flag()
    failure, *answers = tf.cond(
        _read_flag(),
        lambda: [tf.constant(_ENDED), *map(tf.constant, nothing)],
        lambda: tf.numpy_function(answer, arguments, [tf.string, *(spec.dtype for spec in specs)]),
    )
    failure = tf.reshape(failure, [])
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(failure, ""), [failure])]):
        return [tf.ensure_shape(value, spec.shape) for value, spec in zip(answers, specs)]


def _empty(spec: tf.TensorSpec) -> np.ndarray:
    shape = [size or 0 for size in spec.shape]
    return np.full(shape, b"" if spec.dtype == tf.string else 0, spec.dtype.as_numpy_dtype)


_lock = threading.Lock()
_num_running = 0  # calls that are in Python now


@contextlib.contextmanager
def _counted():
    global _num_running
    with _lock:
        _num_running += 1
    try:
        yield
    finally:
        with _lock:
            _num_running -= 1


# The flag is a number in TensorFlow's memory that all graphs know by its name. Not a
# `tf.Variable`: a strategy would make copies of it, and a dataset that captures a
# variable is one that tf.data does not optimize.
def _handle() -> tf.Tensor:
    name = "efficientnet_advprop_python_has_ended"
    return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name=name)


def _read_flag() -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=_handle(), dtype=tf.bool), [])


def _set_flag(value: bool) -> None:
    with tf.device("CPU:0"):
        tf.raw_ops.AssignVariableOp(resource=_handle(), value=tf.constant(value))


def _prepare_flag() -> None:
    """Makes the flag, also where a strategy has started TensorFlow anew since the last call."""
    with tf.init_scope(), tf.device("CPU:0"), _lock:
        if not tf.raw_ops.VarIsInitializedOp(resource=_handle()):
            _set_flag(False)
            atexit.unregister(end_calls)
            atexit.register(end_calls)


def end_calls() -> None:
    """Lets no further call begin, for good, and waits for those that have."""
    _set_flag(True)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    time.sleep(_GRACE_SECONDS)  # without Python's lock, which the calls need
    while _num_running > 0 and time.monotonic() < deadline:
        time.sleep(0.01)
