"""The golden network, exported once for all tests."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.serving.exporting import ExportOptions, export
from efficientnet_advprop.serving.trained_network import restore_network
from tests.conftest import DATA, golden

CLASS_NAMES = [f"name {index}" for index in range(10)]


@pytest.fixture(scope="session")
def network():
    return restore_network(checkpoint=str(DATA / "tiny_ckpt"), kind="advprop", image_size=64)


@pytest.fixture(scope="session")
def exported(network, tmp_path_factory):
    """The path of a finished SavedModel export."""
    export_dir = tmp_path_factory.mktemp("served") / "tiny"
    return export(network, str(export_dir), ExportOptions(class_names=CLASS_NAMES, num_top=3))[0]


@pytest.fixture(scope="session")
def loaded(exported):
    return tf.saved_model.load(exported)


@pytest.fixture(scope="session")
def photographs():
    """Two real JPEG files."""
    import sklearn.datasets

    folder = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


@pytest.fixture(scope="session")
def expected():
    """The official code's logits of `images_a`, averaged weights, AdvProp's normalisation."""
    logits = golden("logits.npz")
    return logits["images_a"], logits["logits_a_ema_advprop"]


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
