"""Calls into Python from a dataset's graph: what they return, how they fail, and that
none comes after the end.

The end is for good, so what happens then is tried in processes of their own.
"""

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data.python_calls import call_python

ROOT = pathlib.Path(__file__).parents[3]


def halves(number):
    """A number's half and as many zeros; odd numbers are refused."""
    if number % 2:
        raise KeyError(f"{number} is odd")
    return number // 2, np.zeros(number // 2, np.int64)


def call_halves(number):
    return call_python(
        halves, [number], half=tf.TensorSpec([], tf.int64), zeros=tf.TensorSpec([None], tf.int64)
    )


def test_values_and_shapes():
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant([0, 6], tf.int64)).map(call_halves)
    assert dataset.element_spec[0].shape == [] and dataset.element_spec[1].shape.as_list() == [None]
    assert [(int(half), len(zeros)) for half, zeros in dataset] == [(0, 0), (3, 3)]
    half, _ = call_halves(tf.constant(8, tf.int64))  # outside of a dataset too
    assert int(half) == 4


def test_an_exception_reaches_who_reads_the_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant([2, 3, 4], tf.int64)).map(call_halves)
    iterator = iter(dataset)
    assert int(next(iterator)[0]) == 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="KeyError: .*3 is odd"):
        next(iterator)
    assert int(next(iterator)[0]) == 2  # as for every other error in a dataset


def test_text_with_any_bytes():
    (row,) = call_python(lambda: b"a\0b\xff", [], row=tf.TensorSpec([], tf.string))
    assert row.numpy() == b"a\0b\xff"


def test_nothing_else_calls_python_from_a_graph():
    """Whoever calls it in another way may be called when Python is gone."""
    callers = []
    for folder in ("efficientnet_advprop", "tpu_utils"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute)
            }
            if names & {"py_function", "numpy_function", "from_generator"}:
                callers.append(path.name)
    assert callers == ["python_calls.py"]


ENDLESS = """
import sys, threading, time
import tensorflow as tf
from efficientnet_advprop.data import python_calls
from efficientnet_advprop.data.python_calls import call_python

calls, late = 0, []
has_ended = threading.Event()

def count(number):
    global calls
    calls += 1
    if has_ended.is_set():
        late.append(int(number))
    time.sleep(0.001)
    return number

numbers = tf.data.Dataset.counter().map(
    lambda number: call_python(count, [number], number=tf.TensorSpec([], tf.int64))[0],
    num_parallel_calls=8,
)
iterator = iter(numbers.prefetch(10**7))  # goes on as long as the process
kept = [next(iterator)]
"""

AFTER_THE_END = """
while calls < 100:
    time.sleep(0.01)
python_calls.end_calls()
has_ended.set()
time.sleep(0.5)
assert not late, late
try:
    for _ in range(10**6):
        next(iterator)
except tf.errors.InvalidArgumentError as error:
    assert "Python no longer answers" in str(error)
else:
    raise AssertionError("it goes on")
sys.exit(7)
"""


def run(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_after_the_end_no_call_reaches_python():
    result = run(ENDLESS + AFTER_THE_END)
    assert result.returncode == 7, result.stderr


# Each of these ends with SIGABRT or not at all where a thread calls Python after it has
# gone.
OPEN_STREAM = """
import pathlib, sys
import tensorflow as tf
from efficientnet_advprop.command_line import program
from efficientnet_advprop.data import pipeline, records, sources
from efficientnet_advprop.runtime.errors import UsageError
from tests.efficientnet_advprop.training import tiny_run

data_dir, how = sys.argv[1:]
del sys.argv[1:]
kept = []  # as an exception's traceback keeps what it has gone through


def main(argv):
    rows = [*tiny_run.examples(19, 0), records.make_example(b"no image", 0)]
    tiny_run.write_data(pathlib.Path(data_dir), rows if how == "bad record" else None)
    config = tiny_run.make_config()
    dataset = pipeline.make_train_dataset(
        config.data, sources.open_split(config.data, data_dir, "train"),
        global_batch_size=2, seed=0, num_classes=4,
    )
    kept.append(iter(dataset.prefetch(10**6)))  # an endless stream, which opens a file every 10 batches
    try:
        for _ in range(10**6 if how == "bad record" else 50):
            next(kept[0])
    except tf.errors.OpError as error:
        raise records.explain_data_error(error) from error
    if how == "usage":
        raise UsageError("no.")
    if how == "bug":
        raise KeyError("a bug")


program.run(main)
"""
CODES = {"bad record": 1, "usage": 2, "bug": 1, "success": 0}


def exit_code_with_an_open_stream(folder, how):
    result = run(OPEN_STREAM, str(folder), how)
    if how == "bad record":
        assert "record 19: its image cannot be decoded" in result.stderr
    return result.returncode


@pytest.mark.parametrize("how", ["bad record", pytest.param("success", marks=pytest.mark.slow)])
def test_the_exit_code_with_an_open_stream(tmp_path, how):
    assert exit_code_with_an_open_stream(tmp_path, how) == CODES[how]


@pytest.mark.slow
@pytest.mark.parametrize("how", CODES)
def test_the_exit_code_with_an_open_stream_twenty_times(tmp_path, how):
    codes = [exit_code_with_an_open_stream(tmp_path, how) for _ in range(20)]
    assert codes == [CODES[how]] * 20
