"""A trace of what this process computes, taken over the network; and a port that is taken."""

import socket
import threading

import pytest
import tensorflow as tf

from tpu_utils.connections import start_profiler_server
from tpu_utils.platforms import PlatformError


@pytest.mark.slow  # a trace of two seconds; loaded machines may see none of the work in one
def test_a_trace_holds_the_operations_that_ran(tmp_path):
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    start_profiler_server(port)
    is_over = tf.Variable(False)

    @tf.function
    def compute():  # in TensorFlow, because the client keeps Python's lock
        while not is_over:
            determinant = tf.linalg.det(tf.random.uniform([3, 3]))  # not to be folded
            tf.debugging.assert_all_finite(determinant, "")

    worker = threading.Thread(target=compute.get_concrete_function())
    worker.start()
    try:
        tf.profiler.experimental.client.trace(
            f"grpc://localhost:{port}", str(tmp_path), duration_ms=2000
        )
    finally:
        is_over.assign(True)
        worker.join()
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert b"MatrixDeterminant" in trace.read_bytes()


def test_a_taken_port_is_refused():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            PlatformError,
            match=rf"`--profiler_port` is {port}.*Address already in use.*another port",
        ):
            start_profiler_server(port)
