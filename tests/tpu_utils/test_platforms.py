"""What is left of a message: words, and none of TensorFlow's names of operations."""

import contextlib
import os

import pytest
import tensorflow as tf

from tpu_utils.platforms import brief_message, without_noise


def explode():
    raise ValueError("a failure in Python")


# TensorFlow says where in the program the operation stands, at length, before it says
# what happened.
@pytest.mark.parametrize(
    "fail, words",
    [
        (lambda: tf.io.decode_image(b"no image"), "Unknown image file format"),
        (lambda: tf.function(tf.io.decode_image)(b"no image"), "Unknown image file format"),
        (
            lambda: next(iter(tf.data.Dataset.from_tensors("no image").map(tf.io.decode_image))),
            "Unknown image file format",
        ),
        (
            lambda: tf.function(lambda: tf.numpy_function(explode, [], tf.float32))(),
            "ValueError: a failure in Python",
        ),
    ],
    ids=["eager", "graph", "dataset", "python"],
)
def test_what_tensorflow_wraps_comes_out(fail, words):
    with pytest.raises(tf.errors.OpError) as raised:
        fail()
    assert "{{" in raised.value.message
    assert brief_message(raised.value).startswith(words)
    assert not set("{}[]\n") & set(brief_message(raised.value))


def test_the_first_of_several_errors():
    message = (
        "Graph execution error:\n\n2 root error(s) found.\n"
        "  (0) UNAVAILABLE:  worker 1 is gone\n\t [[{{node b}}]]\n  (1) ABORTED:  too\n"
    )
    assert brief_message(message) == "worker 1 is gone"


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ValueError("shapes [[1, 2]] and [3] differ.\nmore"), "shapes [[1, 2]] and [3] differ"),
        (KeyError(), "KeyError"),
        ("Used 17.2G of 15.75G.\n\n(all of it)", "Used 17.2G of 15.75G"),
        ("", "no message"),
    ],
)
def test_others_give_their_first_line(error, words):
    assert brief_message(error) == words


@pytest.mark.parametrize("fails, shown", [(False, "told\n"), (True, "noise\ntold\n")])
def test_noise_is_kept_from_stderr(fails, shown, capfd):
    with contextlib.suppress(ZeroDivisionError), without_noise(b"^no"):
        os.write(2, b"noise\ntold\n")
        print(1 / (not fails))
    assert capfd.readouterr().err == shown
