import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.serving.converters import to_tflite
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from efficientnet_advprop.serving.trained_network import restore_network
from tests.conftest import DATA, golden, load_tiny, make_tiny


@pytest.mark.parametrize("normalization, key", [("advprop", "advprop"), ("imagenet", "standard")])
@pytest.mark.parametrize("use_ema", [True, False])
def test_logits_are_the_official_ones(normalization, key, use_ema):
    restored = restore_network(
        checkpoint=str(DATA / "tiny_ckpt"), normalization=normalization, use_ema=use_ema
    )
    logits = golden("logits.npz")
    network = InferenceNetwork(restored.model, image_size=64)
    answer = tf.function(network)(tf.constant(logits["images_a"]))["logits"]
    np.testing.assert_allclose(
        answer, logits[f"logits_a_{'ema' if use_ema else 'raw'}_{key}"], atol=3e-5
    )


def test_feature_maps_are_the_models(network):
    images = tf.constant(golden("logits.npz")["images_a"])
    endpoints = InferenceNetwork(network.model, image_size=64)(images)
    features = network.model.features(images)
    assert set(endpoints) == {"logits", "pooled_features", *(f"reduction_{i}" for i in range(1, 6))}
    for name in endpoints.keys() - {"logits"}:
        np.testing.assert_allclose(endpoints[name], features[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "activation", ["smooth_relu", pytest.param("parametric_softplus", marks=pytest.mark.slow)]
)
def test_another_activation_is_served_and_converted(activation):
    """Also an α of each place, which is a constant of its own; by operations that TFLite has."""
    model = make_tiny(aux_branches=0, activation=activation)
    load_tiny(variable for variable in model.variables if "alpha" not in variable.name)
    roots = [variable for variable in model.variables if "root_of_alpha" in variable.name]
    assert bool(roots) == (activation == "smooth_relu")
    for index, variable in enumerate(roots):
        variable.assign(1.0 + index)
    images = golden("logits.npz")["images_a"]
    network = InferenceNetwork(model, 64)
    wanted = model(images).numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(network(images)["logits"], wanted, atol=1e-4 * scale)
    interpreter = tf.lite.Interpreter(model_content=to_tflite(network))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images[:1])
    interpreter.invoke()
    outputs = [interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()]
    logits = next(output for output in outputs if abs(output.sum() - 1) > 1e-3)
    np.testing.assert_allclose(logits, wanted[:1], atol=1e-3 * scale)
