"""Notices that this process is asked to stop, so that a run can save its state first.

    with StopRequest() as stop:
        while not stop.reason: ...            # "SIGTERM", "Ctrl-C", or the machine's notice

Google's virtual machines, including those with TPUs, announce a preemption or
maintenance through their metadata server. TensorFlow's `PreemptionCheckpointHandler` is
not used: on Google Cloud it does nothing for TPUs, it adds a variable to each
checkpoint, and it takes over the saving.
"""

import contextlib
import os
import signal
import threading
import urllib.request
from typing import Any, Optional

CTRL_C = "Ctrl-C"
_SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: CTRL_C}
_METADATA_SERVER = "http://metadata.google.internal"
# Path on the metadata server → whether its answer means that the machine will stop.
# (MIGRATE_ON_HOST_MAINTENANCE does not.)
_NOTICES = {
    "instance/preempted": lambda answer: answer == "TRUE",
    "instance/maintenance-event": lambda answer: answer.startswith("TERMINATE"),
}


class StopRequest:
    """Waits, while active, for a request to stop; the same signal again ends the process.

    Args:
        metadata_server: address of that of Google Cloud's virtual machines.
        poll_seconds: time between two requests to it.

    Attributes:
        reason: "" until a stop is requested, then who requested it.
    """

    def __init__(self, metadata_server: str = _METADATA_SERVER, poll_seconds: float = 5.0):
        self.reason = ""
        self._metadata_server = metadata_server
        self._poll_seconds = poll_seconds
        self._previous: dict[int, Any] = {}  # the handlers before these
        self._over = threading.Event()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A shell starts a job in the background with SIGINT ignored: so it stays.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note_signal)
        threading.Thread(target=self._watch_machine, daemon=True, name="maintenance events").start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note_signal(self, number: int, _) -> None:
        self.reason = self.reason or _SIGNALS[signal.Signals(number)]
        text = f"{self.reason}: the state is saved first; once more ends at once\n"
        with contextlib.suppress(OSError):  # nobody may be reading
            os.write(2, text.encode())  # not `print`, which the signal may have interrupted
        # Only the same signal: who starts processes may pass Ctrl-C on by SIGTERM, too.
        signal.signal(number, signal.SIG_DFL)

    def _watch_machine(self) -> None:
        if self._ask("instance/maintenance-event") is None:
            return  # this is not a Google Cloud machine
        while not self.reason and not self._over.wait(self._poll_seconds):
            for path, announces_stop in _NOTICES.items():
                answer = self._ask(path) or ""
                if announces_stop(answer):
                    self.reason = self.reason or f"the machine's notice {path}={answer}"

    def _ask(self, path: str) -> Optional[str]:
        """Returns the answer of the metadata server; None if there is none."""
        request = urllib.request.Request(
            f"{self._metadata_server}/computeMetadata/v1/{path}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5.0) as response:
                return response.read().decode().strip()
        except (OSError, ValueError):
            return None
