"""Classes of image files, and files that are none."""

import os

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.runtime.errors import UsageError
from efficientnet_advprop.serving.image_classification import find_images, predict
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
        with pytest.raises(UsageError, match="no image"):
            find_images([argument])


def test_predictions_are_the_softmax_of_the_models_logits(folder):
    model = make_tiny(aux_branches=0)
    load_tiny(model.variables, "/ExponentialMovingAverage")
    predictions = list(predict(model, find_images([str(folder)]), image_size=32))
    problems = [problem for _, _, problem in predictions]
    assert [bool(problem) for problem in problems] == [False, False, True, False]
    assert "no JPEG" in problems[2] and "Op:" not in problems[2]
    for path, top, _ in predictions[:2]:
        image = preprocessing.preprocess_for_eval(tf.io.read_file(path), 32)
        logits = model(image[None]).numpy()[0].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-probabilities)[:5]
        classes, found = zip(*top)
        assert list(classes) == list(order)
        np.testing.assert_allclose(found, probabilities[order], rtol=1e-4)


def test_hidden_files_do_not_count(folder):
    """macOS keeps what belongs to `a.png` in `._a.png`, which is no image."""
    (folder / "._a.png").write_bytes(b"Mac OS X")
    (folder / "folder.png").mkdir(exist_ok=True)
    for argument in (str(folder), str(folder / "*.png")):
        names = [path.rsplit("/", 1)[1] for path in find_images([argument])]
        assert "._a.png" not in names and "a.png" in names
    assert "folder.png" not in [path.rsplit("/", 1)[1] for path in find_images([str(folder)])]
    assert find_images([str(folder / "._a.png")]) == [str(folder / "._a.png")]  # as asked for


def test_brackets_in_a_folders_name(tmp_path):
    for name in ("set [1]", "set 1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a?.png").touch()
    assert find_images([str(tmp_path / "set [1]")]) == [str(tmp_path / "set [1]" / "a?.png")]
    assert find_images([str(tmp_path / "set [1]" / "*.png")]) == [
        str(tmp_path / "set [1]" / "a?.png")
    ]
    with pytest.raises(UsageError):  # a pattern, which finds nothing in `set [1]`
        find_images([str(tmp_path / "set [34]" / "*.png")])


def test_a_name_that_is_no_text_is_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"no text in UTF-8: caf\\xe9.png; rename"):
        find_images([str(tmp_path)])
