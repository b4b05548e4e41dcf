"""A folder has one writer at a time; one that was killed does not keep the next out."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from efficientnet_advprop.runtime import directory_lock
from efficientnet_advprop.runtime.directory_lock import LOCK_FILE, DirectoryLock
from efficientnet_advprop.runtime.errors import RunError

ROOT = pathlib.Path(__file__).parents[3]
HOLDER = """
import sys, time
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
with DirectoryLock(sys.argv[1], "model_dir"):
    print("held", flush=True)
    time.sleep(600)
"""


def start_holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_while_the_first_lives_and_not_after_it_was_killed(tmp_path):
    holder = start_holder(tmp_path / "run")
    try:
        with pytest.raises(RunError) as error:
            with DirectoryLock(str(tmp_path / "run"), "model_dir"):
                pass
        assert f"process {holder.pid} on {socket.gethostname()} is at work" in str(error.value)
        assert str(error.value).startswith("`model_dir` is ")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with DirectoryLock(str(tmp_path / "run"), "model_dir"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["process"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_within_one_process_too(tmp_path):
    with DirectoryLock(str(tmp_path), "out_dir"):
        with pytest.raises(RunError, match="`out_dir` is "):
            with DirectoryLock(str(tmp_path), "out_dir"):
                pass
    with DirectoryLock(str(tmp_path), "out_dir"):
        pass


@pytest.fixture
def without_system_locks(monkeypatch):
    """As on a bucket, and as quickly as a test can wait."""
    monkeypatch.setattr(DirectoryLock, "_lock_file", lambda self: False)
    monkeypatch.setattr(directory_lock, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(directory_lock, "_WATCH_SECONDS", 1.0)
    monkeypatch.setattr(directory_lock, "_SETTLE_SECONDS", 0.2)


def leave_lock(folder, **changes):
    """What a process leaves behind, and how it looks."""
    with DirectoryLock(folder, "model_dir"):
        with tf.io.gfile.GFile(f"{folder}/{LOCK_FILE}") as file:
            holder = {**json.loads(file.read()), **changes}
    with tf.io.gfile.GFile(f"{folder}/{LOCK_FILE}", "w") as file:
        file.write(json.dumps(holder))


@pytest.mark.parametrize("kind", ["local", "ram"])
@pytest.mark.parametrize(
    "changes", [{}, {"host": "elsewhere"}], ids=["of this host", "of another host"]
)
def test_what_a_killed_process_left_where_the_system_locks_nothing(
    tmp_path, without_system_locks, monkeypatch, kind, changes
):
    monkeypatch.setattr(directory_lock, "_WATCH_SECONDS", 0.3)  # nobody writes
    folder = str(tmp_path) if kind == "local" else f"ram://{tmp_path.name}/run"
    leave_lock(folder, **changes)
    with DirectoryLock(folder, "model_dir"):
        pass


@pytest.mark.parametrize("host", [socket.gethostname(), "another host"])
def test_a_process_that_goes_on_writing_lives(tmp_path, without_system_locks, monkeypatch, host):
    with DirectoryLock(str(tmp_path), "model_dir"):
        time.sleep(0.3)
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        with pytest.raises(RunError, match=f"process {os.getpid()} on "):
            with DirectoryLock(str(tmp_path), "model_dir"):
                pass


@pytest.mark.parametrize("contents", [b"", b"\xff\xfe", b"[]", b'{"host": "elsewhere"}'])
def test_a_file_that_says_nothing_is_no_lock(tmp_path, contents):
    (tmp_path / LOCK_FILE).write_bytes(contents)
    with DirectoryLock(str(tmp_path), "model_dir"):
        pass
