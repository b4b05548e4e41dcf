"""Notices that this machine is about to go, so that a run can save first: SIGTERM, and Google Cloud's maintenance events.

    with StopRequest() as stop:
        while not stop.reason: ...                      # "SIGTERM", or the machine's notice

Google's virtual machines, TPU ones included, tell of a preemption or of maintenance through their metadata server before they
act; where there is no such server nothing is asked. `tf.distribute.experimental.PreemptionCheckpointHandler` does not serve: on
Google Cloud it does nothing for TPUs, it adds a variable of its own to each checkpoint, and it takes over the saving.
"""

import signal
import threading
import urllib.request
from typing import Any, Optional

_METADATA_SERVER = "http://metadata.google.internal"
# What can be asked → whether the answer means that the machine will stop. (MIGRATE_ON_HOST_MAINTENANCE does not.)
_NOTICES = {
    "instance/preempted": lambda answer: answer == "TRUE",
    "instance/maintenance-event": lambda answer: answer.startswith("TERMINATE"),
}


class StopRequest:
    """Watches for the machine's end while active. A second SIGTERM ends the process at once.

    Args:
        metadata_server: of Google Cloud's virtual machines.
        poll_seconds: how often it is asked.

    Attributes:
        reason: "" as long as nobody wants an end, then who does.
    """

    def __init__(self, metadata_server: str = _METADATA_SERVER, poll_seconds: float = 5.0):
        self.reason = ""
        self._metadata_server = metadata_server
        self._poll_seconds = poll_seconds
        self._previous: Any = None  # the handler of SIGTERM before this one
        self._over = threading.Event()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note_signal)
        threading.Thread(target=self._watch_machine, daemon=True, name="maintenance events").start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note_signal(self, *_) -> None:
        self.reason = self.reason or "SIGTERM"
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _watch_machine(self) -> None:
        if self._ask("instance/maintenance-event") is None:
            return  # not one of Google's machines
        while not self.reason and not self._over.wait(self._poll_seconds):
            for path, is_the_end in _NOTICES.items():
                answer = self._ask(path) or ""
                if is_the_end(answer):
                    self.reason = self.reason or f"the machine's notice {path}={answer}"

    def _ask(self, path: str) -> Optional[str]:
        """The metadata server's answer; None if it does not give one."""
        request = urllib.request.Request(
            f"{self._metadata_server}/computeMetadata/v1/{path}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5.0) as response:
                return response.read().decode().strip()
        except (OSError, ValueError):
            return None
