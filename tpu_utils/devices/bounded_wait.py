"""A bound for calls that wait inside TensorFlow, where neither a thread nor an exception reaches them: they hold Python's lock.

    with end_unless_done(600, "the others have not come", peers=["host1:2222"]):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)

A second process watches; this module is also its program.
"""

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import Iterator, Sequence

from tpu_utils.devices import addresses


@contextlib.contextmanager
def end_unless_done(
    timeout_seconds: float, message: str, peers: Sequence[str] = ()
) -> Iterator[None]:
    """Ends this process by SIGKILL, after `message` on stderr, if the body takes longer than `timeout_seconds`.

    Args:
        timeout_seconds: > 0.
        message: what the process has waited for, and the way out.
        peers: "host:port" of those it waits for; the message then names the ones at which nobody listens.
    """
    root = pathlib.Path(__file__).parents[2]
    arguments = [str(os.getpid()), str(timeout_seconds), message, *peers]
    watcher = subprocess.Popen(
        [sys.executable, "-m", "tpu_utils.devices.bounded_wait", *arguments],
        cwd=root,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert watcher.stdin is not None  # it is a pipe
    try:
        yield
    finally:
        watcher.stdin.close()  # that is what it waits for; this process's death would do the same
        watcher.wait()


def _watch(pid: int, timeout_seconds: float, message: str, peers: Sequence[str]) -> None:
    done, _, _ = select.select([sys.stdin], [], [], timeout_seconds)
    if done:
        return
    silent = [peer for peer in peers if not addresses.is_reachable(peer)]
    found = (
        f" Nothing answers at {', '.join(silent)}."
        if silent
        else " They all answer, though."
        if peers
        else ""
    )
    print(f"error: {message}{found}", file=sys.stderr, flush=True)
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
