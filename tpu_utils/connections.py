"""Connections to other processes: who listens at "host:port", and how long to wait for them.

TensorFlow's calls that wait hold Python's global interpreter lock, so neither a thread nor
an exception can end them. A second process watches the time; it runs this module as its
program, and therefore without TensorFlow.
"""

import contextlib
import errno
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
from typing import Iterator, Sequence

from tpu_utils.platforms import PlatformError


def split(address: str) -> tuple[str, int]:
    """Splits "host:port"; raises a `ValueError` for another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port, such as host0:2222")
    return host.strip("[]"), int(port)


def is_reachable(address: str, timeout_seconds: float = 2.0) -> bool:
    """Returns whether a process listens at "host:port"."""
    try:
        with socket.create_connection(split(address), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def listening_problem(host: str, port: int) -> int:
    """Returns the error number with which this machine refuses to listen there, or 0.

    An empty host means all addresses of this machine.
    """
    try:
        # Without SO_REUSEPORT: TensorFlow's server sets it and would share a port
        # unnoticed.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def start_profiler_server(port: int) -> None:
    """Lets TensorBoard ("capture profile"), or `tf.profiler.experimental.client.trace`, profile
    this process; costs no time until a trace is requested.

    Raises a `PlatformError` if the port is in use or not allowed, which TensorFlow would
    only log.
    """
    problem = listening_problem("", port)
    if problem:
        raise PlatformError(
            f"`--profiler_port` is {port}, but this machine cannot listen there "
            f"({os.strerror(problem)}); take another port."
        )
    import tensorflow as tf  # here, so that the watching process starts without it

    tf.profiler.experimental.server.start(port)


@contextlib.contextmanager
def end_unless_done(
    timeout_seconds: float, message: str, peers: Sequence[str] = ()
) -> Iterator[None]:
    """Ends this process by SIGKILL if the body takes longer than `timeout_seconds`, after
    `message` and those of `peers` ("host:port") that do not answer.
    """
    root = pathlib.Path(__file__).parents[1]
    arguments = [str(os.getpid()), str(timeout_seconds), message, *peers]
    watcher = subprocess.Popen(
        [sys.executable, "-m", "tpu_utils.connections", *arguments],
        cwd=root,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert watcher.stdin is not None  # it is a pipe
    try:
        yield
    finally:
        # The watcher waits for its input to close, as it does if this process dies.
        watcher.stdin.close()
        watcher.wait()


def _watch(pid: int, timeout_seconds: float, message: str, peers: Sequence[str]) -> None:
    done, _, _ = select.select([sys.stdin], [], [], timeout_seconds)
    if done:
        return
    silent = [peer for peer in peers if not is_reachable(peer)]
    found = " They all answer, though." if peers else ""
    if silent:
        found = f" Nothing answers at {', '.join(silent)}."
    print(f"error: {message}{found}", file=sys.stderr, flush=True)
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
