"""Limits the time of calls that wait inside TensorFlow.

They hold Python's global interpreter lock, so neither a thread nor an exception can end
them. A second process watches the time; it runs this module as its program.
"""

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import Iterator, Sequence

from tpu_utils import addresses


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
        [sys.executable, "-m", "tpu_utils.bounded_wait", *arguments],
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
    silent = [peer for peer in peers if not addresses.is_reachable(peer)]
    found = " They all answer, though." if peers else ""
    if silent:
        found = f" Nothing answers at {', '.join(silent)}."
    print(f"error: {message}{found}", file=sys.stderr, flush=True)
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
