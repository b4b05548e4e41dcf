"""One process at a time writes into a folder: a second one is told who is there.

    with DirectoryLock("runs/b3", "model_dir"):       # a `RunError` while another process lives
        ...

An OS lock, so that a stale file never blocks the next run. Where there is none (gs:// and
other object stores, some network file systems), the file is written anew every 15 seconds,
and whoever comes watches it for 40: if it does not change, its process is gone.

Not covered: two processes that begin on an object store within the same second may both
succeed, since not all of TensorFlow's file systems can write a file only if it is absent;
each looks again after a second. A host that hangs for longer than 40 seconds is taken for
gone.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import BinaryIO, Optional

from efficientnet_advprop.runtime.errors import RunError
from efficientnet_advprop.runtime.files import is_remote, write_atomically

LOCK_FILE = "lock"
_BEAT_SECONDS, _WATCH_SECONDS, _SETTLE_SECONDS = 15.0, 40.0, 1.0
_FILE_BYTES = 1024


class DirectoryLock:
    """A context manager; see the module.

    Args:
        directory: local or remote; made if it does not exist.
        argument: what the folder is called in messages, such as "model_dir".
    """

    def __init__(self, directory: str, argument: str):
        self._directory, self._argument = directory, argument
        self._path = os.path.join(directory, LOCK_FILE)
        self._me = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid.uuid4().hex}
        self._file: Optional[BinaryIO] = None  # that the operating system has locked
        self._over = threading.Event()
        self._heart: Optional[threading.Thread] = None

    def __enter__(self) -> "DirectoryLock":
        import tensorflow as tf

        tf.io.gfile.makedirs(self._directory)
        is_locked = not is_remote(self._directory) and self._lock_file()
        holder = self._read()
        # Another host's lock may be invisible here, and this host's is proof enough.
        if holder and not (is_locked and holder["host"] == self._me["host"]):
            if self._is_beating(holder):
                self._unlock_file()
                raise self._in_use(holder)
        self._write()
        if not is_locked:
            time.sleep(_SETTLE_SECONDS)  # for another one that has just done the same
            holder = self._read()
            if holder is not None and holder["token"] != self._me["token"]:
                raise self._in_use(holder)
        self._heart = threading.Thread(target=self._beat, daemon=True, name=f"lock of {self._path}")
        self._heart.start()
        return self

    def __exit__(self, *_) -> None:
        import tensorflow as tf

        self._over.set()
        if self._heart is not None:
            self._heart.join()
        with contextlib.suppress(OSError, tf.errors.OpError):
            tf.io.gfile.remove(self._path)
        self._unlock_file()

    def _lock_file(self) -> bool:
        """Has the operating system lock the file; returns False where it cannot."""
        try:
            import fcntl
        except ImportError:  # not on this operating system
            return False
        while True:
            opened = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = os.fdopen(opened, "r+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._unlock_file()
                raise self._in_use(self._read()) from None
            except OSError:  # a file system without locks
                self._unlock_file()
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                    return True
            # The process that had it has just ended and removed this file.
            self._unlock_file()

    def _unlock_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_beating(self, holder: dict) -> bool:
        """Returns whether the file is written again while it is watched."""
        deadline = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, _BEAT_SECONDS))
            now = self._read()
            if now != holder:
                return now is not None
        return False

    def _in_use(self, holder: Optional[dict]) -> RunError:
        who = f"process {holder['process']} on {holder['host']}" if holder else "another process"
        return RunError(
            f"`{self._argument}` is {self._directory!r}, in which {who} is at work; wait until it "
            "has ended, stop it, or use another folder."
        )

    def _read(self) -> Optional[dict]:
        """Returns who the file says has the lock; None: nobody, or it does not say."""
        import tensorflow as tf

        try:
            with tf.io.gfile.GFile(self._path, "rb") as file:
                holder = json.loads(file.read())
        except (OSError, tf.errors.OpError, ValueError):
            return None
        return holder if isinstance(holder, dict) and self._me.keys() <= holder.keys() else None

    def _write(self) -> None:
        text = json.dumps({**self._me, "beat": time.time()})
        if self._file is not None:  # the very file that is locked, at once and never empty
            os.pwrite(self._file.fileno(), text.ljust(_FILE_BYTES).encode(), 0)
        else:
            write_atomically(self._path, text.encode())

    def _beat(self) -> None:
        import tensorflow as tf

        while not self._over.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError, tf.errors.OpError):
                self._write()
