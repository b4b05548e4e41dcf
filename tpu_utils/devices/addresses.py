"""Network addresses "host:port" of machines that work together."""

import errno
import socket


def split(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ValueError: it is not "host:port".
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port, such as host0:2222")
    return host.strip("[]"), int(port)


def is_reachable(address: str, timeout_seconds: float = 2.0) -> bool:
    """Whether somebody listens at "host:port"."""
    try:
        with socket.create_connection(split(address), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def listening_problem(host: str, port: int) -> int:
    """0 if this machine can listen there (at all of its addresses where the host is empty), or the system's error number."""
    try:
        with (
            socket.socket() as probe
        ):  # without SO_REUSEPORT, which TensorFlow's server sets and so shares a port unnoticed
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
