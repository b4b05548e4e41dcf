"""What a program needs of its process: streams that take any text, and an orderly end.

Importing this module prepares the streams; the package's `__init__` does so in a program.
"""

import atexit
import importlib.abc
import importlib.util
import logging
import os
import signal
import sys
from types import FrameType
from typing import Optional

from tpu_utils.platforms import without_noise

INTERRUPTED = 130  # the convention of shells: 128 + SIGINT
# Programs that save their state: a preempted machine may ask before their imports end.
SIGTERM_EXIT_CODES = {"train": 0, "fine_tune": 0}
UNREAD = 141  # likewise, SIGPIPE: who reads the output, such as `head`, has ended


def _prepare_streams() -> None:
    """Replaces closed streams, and has the others replace what they cannot show."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # `>&-`: the next file that is opened would become the output
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # not a notebook's or a test's own
            stream.reconfigure(errors="backslashreplace")


class _SilentGreeting(importlib.abc.MetaPathFinder):
    """Imports one package while what its libraries write to stderr goes to a file."""

    def __init__(self, name: str):
        self._name = name

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = (  # type: ignore[method-assign]
                lambda module: self._execute(execute, module)
            )
        return spec

    @staticmethod
    def _execute(execute, module) -> None:
        # Python's own messages, such as that of Ctrl-C, are shown at once. The stream stays
        # open: a logger that is made meanwhile keeps it.
        python_stderr = sys.stderr
        sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")
        try:
            with without_noise(b""):  # all of it
                execute(module)
        finally:
            sys.stderr = python_stderr


def greet_in_silence(name: str) -> None:
    """Has the first import of a package keep what it writes to stderr, unless it fails.

    TensorFlow 2.21 greets with six lines, whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _SilentGreeting(name))


class _Stop:
    """Handles the signals that stop a program."""

    exit_codes = {signal.SIGINT: INTERRUPTED}
    messages = {signal.SIGINT: "stopped by Ctrl-C.", signal.SIGTERM: "stopped by SIGTERM."}
    received: Optional[signal.Signals] = None  # that has come
    is_running = False  # `main`, which can clean up

    def __call__(self, number: int, frame: Optional[FrameType]) -> None:
        self.received = signal.Signals(number)
        # Libraries that are being imported turn an exception into one of their own, or go on
        # without what they were importing.
        while self.is_running and frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                self.is_running = False
            frame = frame.f_back
        if not self.is_running:
            print(self.messages[self.received], file=sys.stderr, flush=True)
            os._exit(self.exit_codes[self.received])
        raise KeyboardInterrupt(self.messages[self.received])


stop = _Stop()


def handle_interrupt() -> None:
    """Has Ctrl-C stop the program with one line, whatever it is doing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, stop)


def handle_sigterm(exit_code: int) -> None:
    """Has SIGTERM stop the program as Ctrl-C does, with this exit code."""
    stop.exit_codes = {**stop.exit_codes, signal.SIGTERM: exit_code}
    signal.signal(signal.SIGTERM, stop)


def handle_sigterm_of(program: str) -> None:
    """Has SIGTERM stop one of the programs that then save; leaves it alone in others."""
    if program in SIGTERM_EXIT_CODES:
        handle_sigterm(SIGTERM_EXIT_CODES[program])


def leave_output(error: OSError) -> int:
    """Writes no more to an output that nobody reads, or on a full disk; returns the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is still in a buffer goes there at the end
    os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return UNREAD
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 1


_exit_code = 0


def ends_with(code: int) -> None:
    """Notes the exit code of the program, which is about to end."""
    global _exit_code
    _exit_code = code
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end itself is not to be interrupted


def _end_failed_program() -> None:
    # An error leaves input pipelines open, whose threads read ahead. `data.python_calls`
    # keeps them out of Python; but a call that TensorFlow has queued for seconds, on a busy
    # machine, still comes too late, and the process would hang or abort instead of giving
    # its exit code. What was registered first is called last: threads are joined by now.
    if _exit_code:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)


atexit.register(_end_failed_program)
_prepare_streams()
