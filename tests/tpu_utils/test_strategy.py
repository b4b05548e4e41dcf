"""Strategies on this machine, each in its own process: logical devices are made once per process."""

import pathlib
import subprocess
import sys

import pytest

from tpu_utils.platforms import PlatformError
from tpu_utils.strategy import make_strategy

ROOT = pathlib.Path(__file__).parents[2]


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_one_device():
    assert make_strategy("one_device").num_replicas_in_sync == 1


def test_mirrored_over_logical_cpus_sums_over_all_of_them():
    code = """
import tensorflow as tf
from tpu_utils.strategy import make_strategy
strategy = make_strategy("mirrored", num_logical_devices=3)
@tf.function
def total():
    def replica():
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(10 + context.replica_id_in_sync_group, tf.float32))
    return strategy.run(replica)
print(strategy.num_replicas_in_sync, [float(value) for value in strategy.experimental_local_results(total())])
"""
    assert run(code) == "3 [33.0, 33.0, 33.0]\n"


def test_too_late_for_logical_devices():
    code = """
import tensorflow as tf
from tpu_utils.strategy import make_strategy
from tpu_utils.platforms import PlatformError
tf.zeros([])
try:
    make_strategy("mirrored", num_logical_devices=2)
except PlatformError as error:
    print(error)
"""
    assert "TensorFlow runs with 1 already" in run(code)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="two_device"), "`strategy` is 'two_device', but must be one of"),
        (dict(name="tpu"), "`tpu` is empty"),
        (dict(name="tpu", tpu="local"), "`tpu` is 'local', but no TPU answers there"),
        (dict(name="one_device", tpu="local"), "it goes with --strategy=tpu"),
        (dict(name="one_device", num_logical_devices=2), "it goes with --strategy=mirrored"),
        (dict(name="mirrored", num_logical_devices=0), "must be ≥ 1"),
    ],
)
def test_what_is_not_there(arguments, message):
    with pytest.raises(PlatformError) as error:
        make_strategy(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
