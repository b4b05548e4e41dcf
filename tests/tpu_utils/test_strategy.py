"""Strategies on this machine, each in its own process: logical devices are made once per process."""

import pathlib
import subprocess
import sys

import pytest

from tpu_utils.platforms import PlatformError
from tpu_utils.strategy import make_strategy

ROOT = pathlib.Path(__file__).parents[2]


def test_one_device():
    assert make_strategy("one_device").num_replicas_in_sync == 1


def test_mirrored_over_logical_cpus_sums_over_all_of_them_and_takes_no_more():
    code = """
import tensorflow as tf
from tpu_utils.platforms import PlatformError
from tpu_utils.strategy import make_strategy
strategy = make_strategy("mirrored", num_logical_devices=3)
@tf.function
def total():
    def replica():
        context = tf.distribute.get_replica_context()
        own = tf.cast(10 + context.replica_id_in_sync_group, tf.float32)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)
    return strategy.run(replica)
print([float(value) for value in strategy.experimental_local_results(total())])
try:
    make_strategy("mirrored", num_logical_devices=4)
except PlatformError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    sums, refusal = done.stdout.splitlines()
    assert sums == "[33.0, 33.0, 33.0]"
    assert "`num_logical_devices` is 4, but TensorFlow runs with 3 already" in refusal


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
