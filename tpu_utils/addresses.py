"""Network addresses "host:port": parsing them and testing whether they answer."""

import errno
import socket


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
