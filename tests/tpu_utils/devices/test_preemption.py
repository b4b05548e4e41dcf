"""Notices of the machine's end: SIGTERM, and a metadata server like Google Cloud's."""

import http.server
import os
import signal
import threading
import time

import pytest

from tpu_utils.devices.preemption import StopRequest


@pytest.fixture
def metadata():
    """(address, answers by path) of a metadata server."""
    answers = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.removeprefix("/computeMetadata/v1/")
            known = self.headers["Metadata-Flavor"] == "Google" and path in answers
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(answers.get(path, "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


def wait_for(condition):
    deadline = time.monotonic() + 20.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(
    "path, quiet, alarming",
    [
        ("instance/preempted", "FALSE", "TRUE"),
        (
            "instance/maintenance-event",
            "MIGRATE_ON_HOST_MAINTENANCE",
            "TERMINATE_ON_HOST_MAINTENANCE",
        ),
    ],
)
def test_the_machine_gives_notice(metadata, path, quiet, alarming):
    address, answers = metadata
    with StopRequest(address, poll_seconds=0.01) as stop:
        answers[path] = quiet
        time.sleep(0.2)
        assert stop.reason == ""
        answers[path] = alarming
        wait_for(lambda: stop.reason)
    assert stop.reason == f"the machine's notice {path}={alarming}"


def test_sigterm_where_no_server_answers():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest("http://127.0.0.1:9") as stop:
        assert stop.reason == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process
    assert signal.getsignal(signal.SIGTERM) is before
