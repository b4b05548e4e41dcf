"""Classes of image files, and files that are none."""

import json

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.inference.image_classification import (
    PredictionError,
    find_images,
    predict,
    read_class_names,
)
from tests.conftest import load_tiny, make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index, (name, encode) in enumerate(
        [("b.JPG", tf.io.encode_jpeg), ("a.png", tf.io.encode_png), ("c.jpeg", tf.io.encode_jpeg)]
    ):
        pixels = random.integers(0, 256, [40 + index, 50, 3], np.uint8)
        (path / name).write_bytes(encode(pixels).numpy())
    (path / "broken.png").write_bytes(b"no image")
    (path / "notes.txt").write_text("not looked at")
    return path


def test_files_folders_and_patterns(folder):
    names = [
        path.rsplit("/", 1)[1]
        for path in find_images([str(folder), str(folder / "*.jp*g"), str(folder / "a.png")])
    ]
    assert names == ["a.png", "b.JPG", "broken.png", "c.jpeg", "c.jpeg", "a.png"]
    for argument in ("/no/such.png", "/no/such/*.png"):
        with pytest.raises(PredictionError, match="no image"):
            find_images([argument])


def test_predictions_are_the_softmax_of_the_models_logits(folder):
    model = make_tiny(aux_branches=0)
    load_tiny(model.variables, "/ExponentialMovingAverage")
    predictions = list(predict(model, find_images([str(folder)]), image_size=32))
    assert [bool(prediction.problem) for prediction in predictions] == [False, False, True, False]
    assert (
        "Unknown image file format" in predictions[2].problem
        and "Op:" not in predictions[2].problem
    )
    for prediction in predictions[:2]:
        image = preprocessing.preprocess_for_eval(tf.io.read_file(prediction.path), 32)
        logits = model(image[None]).numpy()[0].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities)[:5]
        assert list(prediction.classes) == list(order)
        np.testing.assert_allclose(prediction.probabilities, probabilities[order], rtol=1e-4)


def test_class_names(tmp_path):
    path = tmp_path / "labels_map.txt"
    path.write_text(json.dumps({"0": "tench", "1": "goldfish"}))
    assert read_class_names(str(path), 2) == ["tench", "goldfish"]
    for content, num_classes in ((path.read_text(), 3), ("[]", 1), ("not JSON", 1)):
        path.write_text(content)
        with pytest.raises(
            PredictionError, match="labels_map.txt.*must be JSON with a name for each"
        ):
            read_class_names(str(path), num_classes)
    with pytest.raises(PredictionError):
        read_class_names(str(tmp_path / "missing"), 1)
