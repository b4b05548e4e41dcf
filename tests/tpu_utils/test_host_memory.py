"""Freed memory is kept, by the C library's own count of blocks that the kernel gave."""

import subprocess
import sys

import pytest

# Blocks of 1 MiB that come from the kernel: 1 of 1 where a threshold of 128 KiB is fixed.
_PROGRAM = """
import ctypes

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


class Statistics(ctypes.Structure):
    # mallinfo(3)
    _fields_ = [(name, ctypes.c_int) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


libc.mallinfo.restype = Statistics


def num_from_the_kernel():
    before = libc.mallinfo().hblks
    libc.malloc(ctypes.c_size_t(2**20))
    return libc.mallinfo().hblks - before

"""


def run(program):
    if not sys.platform.startswith("linux"):
        pytest.skip("mallopt is glibc's")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM + program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_blocks_come_from_the_heap_again():
    program = """
from tpu_utils.batch_iterator import keep_freed_blocks

libc.mallopt(-3, 128 * 1024)  # as TensorFlow 2.21 does
print(num_from_the_kernel(), keep_freed_blocks(), num_from_the_kernel())
"""
    assert run(program) == ["1", "True", "0"]


@pytest.mark.slow
def test_fit_does_not_leave_it_to_the_kernel():
    program = """
import numpy as np
import tensorflow as tf
from efficientnet_advprop.keras import AdvPropModel
from efficientnet_advprop.keras2 import keras

with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
    layers = [keras.layers.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    trainer = AdvPropModel(keras.Sequential(layers), method="vanilla")
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
trainer.fit(np.zeros([4, 2, 2, 3], "float32"), np.zeros([4], "int32"), verbose=0)
print(num_from_the_kernel())
"""
    assert run(program)[-1:] == ["0"]


def test_neither_training_nor_evaluation_leaves_it_to_the_kernel():
    """What TensorFlow does to the process, it does with the first iterator."""
    program = """
import tensorflow as tf
from efficientnet_advprop.evaluation.evaluator import Evaluator

strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
rows = {"images": tf.zeros([4, 2, 2, 3]), "labels": tf.zeros([4], tf.int32), "mask": tf.ones([4])}
dataset = tf.data.Dataset.from_tensor_slices(rows).batch(2, drop_remainder=True)
batches = strategy.distribute_datasets_from_function(lambda context: dataset)
with strategy.scope():
    evaluator = Evaluator(lambda images: tf.reduce_mean(images, [1, 2]), strategy=strategy)
evaluator(batches)
print(num_from_the_kernel())
"""
    assert run(program)[-1:] == ["0"]
