"""Lets a running program be profiled from outside: by TensorBoard's "capture profile", or by

Usage:

    tf.profiler.experimental.client.trace("grpc://localhost:6009", logdir, duration_ms=5000)
"""

import os

import tensorflow as tf

from tpu_utils.devices import addresses
from tpu_utils.errors import StrategyError


def listen(port: int) -> None:
    """Starts TensorFlow's profiler server, which costs nothing until somebody asks it for a trace.

    Args:
        port: to listen on, at all addresses of this machine.

    Raises:
        StrategyError: the port is taken or not allowed; TensorFlow would only log it.
    """
    problem = addresses.listening_problem("", port)
    if problem:
        raise StrategyError(
            f"`--profiler_port` is {port}, but this machine cannot listen there ({os.strerror(problem)}); take another port."
        )
    tf.profiler.experimental.server.start(port)
