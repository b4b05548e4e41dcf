"""Python in a dataset's graph, which no longer runs once the interpreter goes.

    row, = call_python(read, [file, record], row=tf.TensorSpec([], tf.string))    # in a dataset

A dataset's threads read ahead as long as its iterator lives, and that may be longer
than Python: an exception's traceback, for instance, holds the frames that hold the
iterator. A thread that then calls into Python ends the process by SIGABRT, or makes it
wait for ever, whatever exit code it was about to give. So each call asks first, in the
graph, whether Python still answers. Before the interpreter goes, the datasets are told
that it does not, and the calls that have begun are waited for. What the iterators do
after that is TensorFlow's business alone.
"""

import atexit
import threading
import time
from typing import Callable, Sequence

import numpy as np
import tensorflow as tf

# A call that takes longer is stuck, say in a file system that does not answer.
_PATIENCE_SECONDS = 10.0
# For calls that are in the graph, on their way to Python. One that was cancelled never
# arrives.
_GRACE_SECONDS = 2.0
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
        with _STATE.running():
            try:
                answers = function(*values)
            # Whatever it is, it goes through the graph to whoever reads the dataset.
            except Exception as error:
                return [f"{type(error).__name__}: {error}".encode(), *nothing]
        answers = answers if isinstance(answers, tuple) else (answers,)
        return [b"", *(_as_array(value, spec) for value, spec in zip(answers, specs))]

    def refuse():
        with tf.control_dependencies([_STATE.num_coming.add(-1)]):
            return [tf.constant(_ENDED), *(tf.constant(value) for value in nothing)]

    _STATE.begin()
    # In this order: who has asked before the end counts as coming when the end begins
    # to wait.
    with tf.control_dependencies([_STATE.num_coming.add(1)]):
        has_ended = _STATE.has_ended.read()
    dtypes = [tf.string, *(spec.dtype for spec in specs)]
    failure, *answers = tf.cond(
        has_ended, refuse, lambda: tf.numpy_function(answer, arguments, dtypes)
    )
    failure = tf.reshape(failure, [])
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(failure, ""), [failure])]):
        return [tf.ensure_shape(value, spec.shape) for value, spec in zip(answers, specs)]


class _Cell:
    """A number in TensorFlow's memory that all graphs and Python know by its name.

    Not a `tf.Variable`: a strategy would make copies of it, and a dataset that captures
    a variable is one that tf.data does not optimize.
    """

    def __init__(self, name: str, dtype: tf.DType):
        self._name, self._dtype = f"efficientnet_advprop_python_calls_{name}", dtype

    def _handle(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=self._dtype, shape=[], shared_name=self._name)

    def exists(self) -> bool:
        with tf.device("CPU:0"):
            return bool(tf.raw_ops.VarIsInitializedOp(resource=self._handle()))

    def assign(self, value) -> None:
        value = tf.constant(value, self._dtype)
        with tf.device("CPU:0"):
            tf.raw_ops.AssignVariableOp(resource=self._handle(), value=value)

    def add(self, value):
        value = tf.constant(value, self._dtype)
        with tf.device("CPU:0"):
            return tf.raw_ops.AssignAddVariableOp(resource=self._handle(), value=value)

    def read(self) -> tf.Tensor:
        with tf.device("CPU:0"):
            value = tf.raw_ops.ReadVariableOp(resource=self._handle(), dtype=self._dtype)
        return tf.ensure_shape(value, [])


class _State:
    """What this process's datasets and its end have to tell each other."""

    def __init__(self):
        self.has_ended = _Cell("have_ended", tf.bool)
        self.num_coming = _Cell("coming", tf.int32)  # calls ever begun in graphs, less the refused
        self._num_come, self._num_running = 0, 0  # ever arrived in Python; now in it
        self._lock = threading.Lock()
        self._is_registered = False

    def begin(self) -> None:
        """Makes the cells, also where a strategy has started TensorFlow anew since the
        last call.
        """
        with tf.init_scope(), self._lock:
            if not self.has_ended.exists():
                self.num_coming.assign(self._num_come)
                self.has_ended.assign(False)
            if not self._is_registered:
                atexit.register(self.end)
                self._is_registered = True

    def running(self) -> "_State":
        """A context manager for a call that has arrived in Python."""
        return self

    def __enter__(self) -> None:
        with self._lock:
            self._num_come += 1
            self._num_running += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._num_running -= 1

    def end(self) -> None:
        """Lets no further call begin, for good, and waits for those that have."""
        self.has_ended.assign(True)
        started = time.monotonic()
        while (
            self._num_running > 0
            and time.monotonic() - started < _PATIENCE_SECONDS
            or int(self.num_coming.read()) != self._num_come
            and time.monotonic() - started < _GRACE_SECONDS
        ):
            time.sleep(0.01)  # without Python's lock, which they need


_STATE = _State()


def _empty(spec: tf.TensorSpec) -> np.ndarray:
    shape = [size or 0 for size in spec.shape]
    return np.full(shape, b"" if spec.dtype == tf.string else 0, spec.dtype.as_numpy_dtype)


def _as_array(value, spec: tf.TensorSpec) -> np.ndarray:
    return np.asarray(value, spec.dtype.as_numpy_dtype)
