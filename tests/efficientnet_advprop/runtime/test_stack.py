"""What fits together: requirements as PyPI has them for these versions, and Keras 2 in
every process.
"""

import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from efficientnet_advprop.runtime import stack

ROOT = pathlib.Path(__file__).parents[3]
# Of the packages' own metadata: the lines that decide.
REQUIREMENTS = {
    "tensorflow 2.15.1": [
        "ml-dtypes ~=0.3.1",
        "numpy <2.0.0,>=1.23.5",
        "protobuf !=4.21.0,<5.0.0dev,>=3.20.3",
        "keras <2.16,>=2.15.0",
    ],
    "tensorflow 2.21.0": [
        "protobuf<8.0.0,>=6.31.1",
        "numpy>=1.26.0",
        "ml_dtypes<1.0.0,>=0.5.1",
        'nvidia-nccl-cu12<3.0,>=2.27.7; extra == "and-cuda"',
    ],
    "tensorflow-tpu 2.20.0": ["protobuf>=5.28.0", "numpy>=1.26.0", "libtpu~=0.0.14"],
    "tf-keras 2.20.1": ["tensorflow<2.21,>=2.20"],
    "tf-keras 2.21.0": ["tensorflow<2.22,>=2.21"],
}
ON_215 = {"tensorflow": "2.15.1", "numpy": "1.26.4", "protobuf": "4.25.9", "ml-dtypes": "0.3.2"}
ON_221 = {
    "tensorflow": "2.21.0",
    "tf-keras": "2.21.0",
    "numpy": "2.2.6",
    "protobuf": "7.36.2",
    "ml-dtypes": "0.5.4",
}
ON_A_TPU_VM = {
    "tensorflow-tpu": "2.20.0",
    "tf-keras": "2.20.1",
    "libtpu": "0.0.17",
    "numpy": "2.2.6",
    "protobuf": "7.36.2",
}


def check(versions, python_minor):
    """Checks an environment with such distributions; None takes one out."""
    versions = {name: version for name, version in versions.items() if version}
    told = {name: REQUIREMENTS.get(f"{name} {version}", []) for name, version in versions.items()}
    stack.check(versions, told, python_minor)


@pytest.mark.parametrize(
    "versions, python_minor",
    [
        (ON_215, 10),
        (ON_215, 11),
        (ON_221, 10),
        (ON_221, 13),
        (ON_A_TPU_VM, 12),
        # A meta package and the build that it stands for, as on Arm machines.
        ({**ON_215, "tensorflow-cpu-aws": "2.15.1"}, 11),
        # In between, and newer than tried: the packages' own metadata decide.
        ({"tensorflow": "2.18.1", "tf-keras": "2.18.0", "numpy": "1.26.4"}, 12),
        ({"tensorflow": "2.22.0", "tf-keras": "2.22.0", "numpy": "3.0.0"}, 14),
        ({"tf-nightly": "2.22.0.dev20260101", "tf-keras": "2.22.0"}, 13),
    ],
)
def test_what_fits(versions, python_minor):
    check(versions, python_minor)


@pytest.mark.parametrize(
    "versions, python_minor, found, wanted",
    [
        ({}, 11, "Python 3.11", "requirements.txt"),
        ({}, 13, "Python 3.13", "requirements-tf221.txt"),
        ({}, 9, "Python 3.9", "Python 3.10 to 3.13"),
        ({**ON_A_TPU_VM, "tensorflow": "2.20.0"}, 12, "overwrite", "requirements-tpu.txt"),
        ({**ON_221, "tensorflow-cpu": "2.20.0"}, 12, "tensorflow-cpu 2.20.0", "pip uninstall -y"),
        ({"tensorflow": "2.10.1"}, 10, "tensorflow 2.10.1", "requirements.txt"),
        ({**ON_221, "tf-keras": None}, 13, "Keras 3", "requirements-tf221.txt"),
        ({**ON_221, "tf-keras": "2.20.1"}, 12, "tensorflow<2.21,>=2.20", "requirements-tf221.txt"),
        ({**ON_A_TPU_VM, "tf-keras": None}, 12, "Keras 3", "requirements-tpu.txt"),
        ({**ON_A_TPU_VM, "libtpu": None}, 12, "libtpu", "requirements-tpu.txt"),
        ({**ON_A_TPU_VM, "libtpu": "0.0.52"}, 12, "libtpu is 0.0.52", "requirements-tpu.txt"),
        ({**ON_215, "numpy": "2.2.6"}, 11, "numpy is 2.2.6", "requirements.txt"),
        ({**ON_215, "protobuf": "5.29.5"}, 11, "protobuf is 5.29.5", "requirements.txt"),
        ({**ON_221, "protobuf": "4.25.9"}, 13, "protobuf is 4.25.9", "requirements-tf221.txt"),
    ],
)
def test_what_does_not_fit(versions, python_minor, found, wanted):
    with pytest.raises(stack.StackError) as caught:
        check(versions, python_minor)
    message = str(caught.value)
    assert found in message and wanted in message and len(message.splitlines()) == 1, message
    assert caught.value.exit_code == 1


def test_a_driver_that_the_machine_names_is_left_to_it(monkeypatch):
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
    check({**ON_A_TPU_VM, "libtpu": None}, 12)


def test_the_newest_libtpu_is_the_pinned_one():
    newest = stack.NEWEST_LIBTPU
    assert f"\nlibtpu=={newest}\n" in (ROOT / "requirements-tpu.txt").read_text()
    assert f'"libtpu=={newest}"' in (ROOT / "pyproject.toml").read_text()


def test_this_environment():
    stack.check_installed()
    for pins in stack.PINS:
        assert (ROOT / pins).exists()


def run_code(code, **variables):
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    return told.stdout.split(), told.stderr


def test_keras_2_without_asking_and_the_environment_left_alone():
    """Where it is hardest: after Keras 3 has been loaded; on 2.15, where a variable asks for a
    package that is not there. The package alone loads neither TensorFlow nor a Keras, and
    child processes see no variable of ours.
    """
    has_keras_3 = stack.is_at_least(tf.__version__, stack.FIRST_WITH_KERAS_3)
    load_keras_3 = "import tensorflow as tf; before = hasattr(tf.keras, 'ops')"
    code = (
        "import os, sys\n"
        "variables = set(os.environ)\n"
        "import efficientnet_advprop\n"
        "loaded = len({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules))\n"
        f"{load_keras_3 if has_keras_3 else 'before = False'}\n"
        "import efficientnet_advprop.keras\n"
        "from efficientnet_advprop.keras2 import keras\n"
        "from efficientnet_advprop.models import DualBatchNormalization\n"
        "layer = DualBatchNormalization(aux_branches=1)\n"
        "layer.build([2, 3, 3, 4])\n"
        "assert isinstance(layer, keras.layers.BatchNormalization)\n"
        "ours = sum('KERAS' in name for name in set(os.environ) - variables)\n"
        "print(loaded, ours, before, hasattr(keras, 'ops'), len(layer.variables))"
    )
    told, errors = run_code(code, TF_USE_LEGACY_KERAS="0" if has_keras_3 else "1")
    # `keras.ops` is what Keras 3 has and 2 has not.
    assert told == ["0", "0", str(has_keras_3), "False", "8"], errors


@pytest.mark.skipif(
    not stack.is_at_least(tf.__version__, stack.FIRST_WITH_KERAS_3), reason="one Keras alone"
)
def test_tf_keras_stays_keras_3():
    code = (
        "import tensorflow as tf\n"
        "import efficientnet_advprop.keras\n"
        "from efficientnet_advprop.models import EfficientNet\n"
        "from tensorflow.keras import layers\n"
        "print(layers.Dense.__module__.split('.')[0], tf.keras.layers.Dense is layers.Dense)"
    )
    told, errors = run_code(code)
    assert told == ["keras", "True"], errors


def test_a_program_says_in_one_line_what_is_missing(tmp_path):
    """Beside a numpy that TensorFlow does not take; nothing of TensorFlow is imported."""
    metadata = tmp_path / "numpy-0.9.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.9\n")
    run = subprocess.run(
        [sys.executable, "-m", "efficientnet_advprop.train"],
        cwd=tmp_path,  # which is the first on the path
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("error: tensorflow") and "but numpy is 0.9. Wanted: " in run.stderr
    assert len(run.stderr.splitlines()) == 1
