"""The key of a result: whatever changes a prediction changes it, whatever does not, does
not.
"""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_advprop import evaluation
from efficientnet_advprop.evaluation.classifiers import (
    are_probabilities,
    as_classifier,
    settings_of,
)
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.runtime.errors import UsageError

TINY = dict(num_classes=3, width_coefficient=0.1, depth_coefficient=0.1)
# Of each argument the values, grouped by what they do to logits.
EFFECTS = {
    "normalization": [["advprop"], ["caffe"], ["none"]],
    "batch_norm_epsilon": [[1e-3], [0.1]],
    "activation": [[None, "swish"], ["relu"]],
    "compute_dtype": [["float32"], ["bfloat16"]],
    "batch_norm_momentum": [[0.9, 0.99]],
    "survival_prob": [[0.8, 1.0]],
    "dropout_rate": [[0.0, 0.5]],
}


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).uniform(0, 255, [4, 16, 16, 3])
    return tf.constant(pixels, tf.float32)


def choose(draw):
    arguments, effect = {}, []
    for name, groups in EFFECTS.items():
        group = draw(st.sampled_from(range(len(groups))))
        arguments[name] = draw(st.sampled_from(groups[group]))
        effect.append(group)
    return arguments, effect


@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_settings_differ_exactly_where_predictions_do(images, data):
    (first, one), (second, other) = (choose(data.draw) for _ in range(2))
    models = [EfficientNet("b0", **TINY, **arguments) for arguments in (first, second)]
    models[1].set_weights(models[0].get_weights())
    logits = [model(images, training=False).numpy() for model in models]
    is_same = settings_of(models[0]) == settings_of(models[1])
    assert is_same == (one == other)
    assert is_same == np.array_equal(*logits)


def make_keras(activation="relu", epsilon=1e-3, scale=1.0, policy="float32", momentum=0.9):
    inputs = keras.Input([8, 8, 3], name="images")
    x = keras.layers.Rescaling(scale / 255.0, name="scale")(inputs)
    x = keras.layers.Conv2D(4, 3, name="conv", dtype=policy)(x)
    x = keras.layers.BatchNormalization(epsilon=epsilon, momentum=momentum, name="norm")(x)
    x = keras.layers.Activation(activation, name="act")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="mine")


def test_settings_of_keras_models():
    usual = settings_of(make_keras())
    assert settings_of(make_keras(momentum=0.5)) == usual
    for changes in (
        dict(activation="tanh"), dict(epsilon=0.1), dict(scale=2.0), dict(policy="mixed_bfloat16"),
    ):  # fmt: skip
        assert settings_of(make_keras(**changes)) != usual


def test_a_folder_keeps_the_results_of_one_network(tmp_path):
    """Another network is refused there, and gets a folder of its own where none is named."""
    for label in range(3):
        path = tmp_path / "set" / str(label) / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(tf.io.encode_png(np.full([8, 8, 3], 80 * label, np.uint8)).numpy())
    options = dict(image_size=8, crop="none", log=lambda line: None)
    suites, out = [f"folder:{tmp_path / 'set'}"], str(tmp_path / "out")
    models = [make_keras(), make_keras(scale=2.0)]
    models[1].set_weights(models[0].get_weights())
    first = evaluation.run(models[0], suites, out_dir=out, **options)
    with pytest.raises(UsageError, match="`out_dir` is .* another model .*layers"):
        evaluation.run(models[1], suites, out_dir=out, **options)
    assert evaluation.run(models[0], suites, out_dir=out, **options) == first


def test_the_default_folder_is_free_or_of_the_same_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classifiers = [as_classifier(make_keras(scale=scale), image_size=8) for scale in (1.0, 2.0)]
    from efficientnet_advprop.evaluation import evaluation_run

    for number, classifier in enumerate(classifiers):
        evaluation_run.measure(classifier, [], evaluation_run.default_directory(classifier))
        results = evaluation_run._new_results(classifier)
        folder = tmp_path / "runs" / "evaluation" / ("mine" if number == 0 else "mine-2")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(results.to_json())
    folders = [evaluation_run.default_directory(classifier) for classifier in classifiers]
    assert folders == ["runs/evaluation/mine", "runs/evaluation/mine-2"]


@pytest.mark.parametrize("num_classes", [3, 10, 1000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_probabilities_are_known_whatever_they_were_rounded_to(num_classes, scale):
    logits = tf.constant(np.random.default_rng(0).normal(0, scale, [4, num_classes]), tf.float32)
    exact = tf.nn.softmax(logits).numpy()
    assert are_probabilities(exact)
    for dtype in (tf.bfloat16, tf.float16):
        assert are_probabilities(tf.cast(tf.nn.softmax(tf.cast(logits, dtype)), tf.float32).numpy())
    for levels in (255, 256):
        rounded = np.rint(exact * levels) / levels
        if num_classes <= 10 or scale == 5.0:  # else all of 1,000 are rounded to 0
            assert are_probabilities(rounded.astype(np.float32))
    assert not are_probabilities(tf.nn.relu(logits + 0.1).numpy() if scale else logits.numpy())
    assert not are_probabilities(1.05 * exact)
