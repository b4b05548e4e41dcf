"""Lets TensorBoard, or another process, profile a running program.

Usage:

    tf.profiler.experimental.client.trace("grpc://localhost:6009", logdir, duration_ms=5000)

In TensorBoard, the button "capture profile" does the same.
"""

import os

import tensorflow as tf

from tpu_utils.devices import addresses
from tpu_utils.errors import PlatformError


def listen(port: int) -> None:
    """Starts TensorFlow's profiler server, which costs no time until a trace is
    requested.

    Args:
        port: the port to listen on, at all addresses of this machine.

    Raises:
        PlatformError: the port is in use or not allowed. (TensorFlow itself would only
            log it.)
    """
    problem = addresses.listening_problem("", port)
    if problem:
        raise PlatformError(
            f"`--profiler_port` is {port}, but this machine cannot listen there "
            f"({os.strerror(problem)}); take another port."
        )
    tf.profiler.experimental.server.start(port)
