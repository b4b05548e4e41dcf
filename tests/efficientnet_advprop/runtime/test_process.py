"""Streams that cannot show everything, and signals at every moment."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[3]


def run(*arguments, **options):
    options = {"cwd": ROOT, **options}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "program, encoding", [("train", "ascii"), ("prepare", "latin-1"), ("evaluate", "cp437")]
)
def test_a_stream_replaces_what_it_cannot_show(program, encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = run("-m", f"efficientnet_advprop.{program}", "--help", errors="replace")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Flags:" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments, code", [("--help", 0), ("--output_dir=r", 2)])
def test_without_a_stream(closed, arguments, code):
    command = f'"{sys.executable}" -m efficientnet_advprop.prepare {arguments} {closed}'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr


PROGRAM = """
import os, signal, sys
from efficientnet_advprop.command_line import program

def main(argv):
    number = getattr(signal, argv[1])
    if argv[2] == "importing":  # as of an extension module, which makes an ImportError of it
        sys.path.insert(0, argv[3])
        try:
            import stopped_module
        except BaseException:
            print("went on")
    elif argv[2] == "replaced":
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise ImportError("initialization failed")
    else:
        try:
            os.kill(os.getpid(), number)
        finally:
            print("cleaned up")

program.run(main, takes_arguments=True, sigterm_exit_code=0)
"""


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 0)])
@pytest.mark.parametrize("moment", ["running", "importing", "replaced"])
def test_a_signal_ends_a_program_with_one_line(name, code, moment, tmp_path):
    (tmp_path / "stopped_module.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.{name})\n"
    )
    done = run("-c", PROGRAM, name, moment, str(tmp_path))
    assert done.returncode == code
    assert done.stderr == f"stopped by {'Ctrl-C' if name == 'SIGINT' else name}.\n"
    assert done.stdout == ("cleaned up\n" if moment == "running" else "")


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 0)])
@pytest.mark.parametrize("door", ["efficientnet_advprop.train", "efficientnet_advprop train"])
def test_a_signal_before_anything_is_imported(name, code, door, tmp_path):
    """absl is the first that `train` imports from elsewhere."""
    (tmp_path / "absl.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    done = run("-m", *door.split(), cwd=tmp_path)  # the first on the path
    assert done.returncode == code
    assert done.stderr == f"stopped by {'Ctrl-C' if code else 'SIGTERM'}.\n"


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_before_training_begins(number, code, tmp_path):
    """While the program imports TensorFlow, whenever that is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientnet_advprop.train"]
        + ["--config=digits", f"--data_dir={tmp_path}/d", f"--model_dir={tmp_path}/r"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    loaded = pathlib.Path(f"/proc/{process.pid}/maps")
    while "libtensorflow" not in loaded.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == code
    assert told == f"stopped by {'Ctrl-C' if code else 'SIGTERM'}.\n"
    assert not (tmp_path / "r").exists()
