"""What tests share: the golden data, and the small network that its checkpoint belongs to."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.runtime import stack
from efficientnet_advprop.runtime.files import without_pattern
from tpu_utils import replica_runtime

DATA = pathlib.Path(__file__).parent / "data"

# A shell that starts the tests in the background has them ignore Ctrl-C, which the programs
# that they start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Four CPUs in name, so that replicas can be tested without hardware; must come before
# anything computes.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


def run_program(name: str, *arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Runs a program of the package as a user does, from any directory, as `make` installed it."""
    command = [sys.executable, "-m", f"efficientnet_advprop.{name}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def golden(name: str):
    """Numbers made by the official TF1 code; `name` is a file of `tests/data`."""
    path = DATA / name
    if name.endswith(".npz"):
        return np.load(path)
    if name.endswith(".json.gz"):
        return json.loads(gzip.decompress(path.read_bytes()))
    return json.loads(path.read_text())


def make_tiny(**overrides):
    """The network of the golden checkpoint: B0 at a quarter of the width and three
    tenths of the depth, nothing random in it.
    """
    from efficientnet_advprop.models import EfficientNet

    arguments = dict(
        num_classes=10,
        width_coefficient=0.25,
        depth_coefficient=0.3,
        aux_branches=1,
        survival_prob=1.0,
        dropout_rate=0.0,
    )
    return EfficientNet("b0", **{**arguments, **overrides})


def load_tiny(variables, suffix: str = "") -> None:
    """Gives variables the golden checkpoint's values, auxiliary ones those of main;
    `suffix` "/ExponentialMovingAverage" the averages.
    """
    # The clone may lie in a folder whose name TensorFlow takes for a pattern.
    reader = tf.train.load_checkpoint(without_pattern(str(DATA / "tiny_ckpt")))
    for variable in variables:
        name = (
            variable.name.split(":")[0]
            .replace("/aux/", "/")
            .replace("/aux_2/", "/")
            .replace("/aux_3/", "/")
        )
        variable.assign(reader.get_tensor(name + suffix))


def require_xla_for_the_host():
    """Skips the test where TensorFlow was built for TPUs."""
    if not replica_runtime.current().compiles_parts:
        pytest.skip("this TensorFlow, built for TPUs, has no XLA for the host")


@pytest.fixture(autouse=True)
def skips_what_needs_xla_for_the_host(monkeypatch):
    """A TensorFlow built for TPUs compiles nothing for the host: a test that wants it
    to is skipped, with that reason.

    Only what tests and the preflight compile counts; anywhere else in the package such
    a call would be a fault, and fails.
    """
    if stack.installed_version("tensorflow-tpu") is None:
        return
    genuine = tf.function

    def function(*arguments, **options):
        caller = pathlib.Path(sys._getframe(1).f_code.co_filename)
        may_skip = caller.is_relative_to(DATA.parent) or caller.stem == "tpu_compiler"
        if options.get("jit_compile") and may_skip:
            require_xla_for_the_host()
        return genuine(*arguments, **options)

    monkeypatch.setattr(tf, "function", function)


@pytest.fixture(scope="session")
def two_replicas():
    """Two logical CPUs.

    One strategy for all tests: a second over the same devices numbers its collectives
    like the first.
    """
    return tf.distribute.MirroredStrategy(
        [device.name for device in tf.config.list_logical_devices("CPU")[:2]]
    )


@pytest.fixture(scope="session")
def four_replicas():
    """Four logical CPUs, which reduce without collectives and so get on with `two_replicas`."""
    devices = [device.name for device in tf.config.list_logical_devices("CPU")[:4]]
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


@pytest.fixture(scope="session")
def tiny():
    """The golden network with one auxiliary branch and its raw weights; whoever changes
    them puts them back with `load_tiny`.
    """
    model = make_tiny()
    load_tiny(model.variables)
    return model
