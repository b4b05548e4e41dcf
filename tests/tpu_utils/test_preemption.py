"""Notices of the machine's end: SIGTERM, and a metadata server like Google Cloud's."""

import http.server
import os
import signal
import threading
import time

import pytest

from tpu_utils.preemption import StopRequest


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


@pytest.mark.parametrize(
    "number, other, reason",
    [(signal.SIGTERM, signal.SIGINT, "SIGTERM"), (signal.SIGINT, signal.SIGTERM, "Ctrl-C")],
)
def test_signals_where_no_server_answers(number, other, reason):
    before = [signal.getsignal(one) for one in (number, other)]
    with StopRequest("http://127.0.0.1:9") as stop:
        assert stop.reason == ""
        os.kill(os.getpid(), number)
        assert stop.reason == reason
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one ends the process
        os.kill(os.getpid(), other)  # as who started the process may pass the first one on
        assert stop.reason == reason
    assert [signal.getsignal(one) for one in (number, other)] == before


def test_an_ignored_signal_stays_ignored():
    """As a shell starts a job in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest("http://127.0.0.1:9") as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.reason == ""
    finally:
        signal.signal(signal.SIGINT, before)
