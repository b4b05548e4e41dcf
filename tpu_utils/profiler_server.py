"""Lets TensorBoard ("capture profile"), or
`tf.profiler.experimental.client.trace("grpc://localhost:6009", logdir, duration_ms=5000)`
in another process, profile a running program.
"""

import os

import tensorflow as tf

from tpu_utils import addresses
from tpu_utils.platforms import PlatformError


def listen(port: int) -> None:
    """Starts TensorFlow's profiler server, which costs no time until a trace is requested.

    Raises a `PlatformError` if the port is in use or not allowed, which TensorFlow would
    only log.
    """
    problem = addresses.listening_problem("", port)
    if problem:
        raise PlatformError(
            f"`--profiler_port` is {port}, but this machine cannot listen there "
            f"({os.strerror(problem)}); take another port."
        )
    tf.profiler.experimental.server.start(port)
