"""The TensorFlow of a TPU VM, on a machine that may have no TPU: `make check-tpu-stack`
runs this where it is installed.
"""

import os
import pathlib
import subprocess
import sys
from importlib import metadata

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]


def has_tpu_build() -> bool:
    try:
        metadata.version("tensorflow-tpu")
    except metadata.PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not has_tpu_build(), reason="not the TPU's TensorFlow: make check-tpu-stack"
)


def test_the_runtime_is_loaded():
    """TensorFlow has opened libtpu, and has the operations that initialise a TPU."""
    assert tf.config.list_physical_devices("TPU_SYSTEM")
    opened = {line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines()}
    assert [path for path in opened if path.endswith("/libtpu.so")]


@pytest.mark.skipif(bool(tf.config.list_physical_devices("TPU")), reason="there is a TPU")
def test_strategy_tpu_ends_with_the_drivers_own_error(tmp_path):
    """Not with TensorFlow's, that it is built without TPU support; in one line."""
    command = [
        sys.executable,
        "-m",
        "efficientnet_advprop.train",
        "--config=digits:vanilla",
        "--strategy=tpu",
        "--tpu=local",
        f"--data_dir={tmp_path}",
        f"--model_dir={tmp_path}/run",
    ]
    variables = {
        **os.environ,
        "TPU_SKIP_MDS_QUERY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # this process has loaded it too
    }
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)
    assert run.returncode == 2, run.stderr
    (message,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "`tpu` is 'local', but no TPU answers there (" in message
    assert "tpu_node_interfaces" in message and "without TPU support" not in message
