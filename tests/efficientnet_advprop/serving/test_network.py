import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.inference.trained_network import restore_network
from efficientnet_advprop.serving.network import InferenceNetwork
from tests.conftest import DATA, golden


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


def test_batch_norms_leave_one_bias_per_channel(network):
    """4 numbers per channel of a batch norm become 1, so a network shrinks by 3 per channel."""
    channels = sum(v.shape[0] for v in network.model.variables if v.name.endswith("gamma:0"))
    num_before = sum(int(np.prod(v.shape)) for v in network.model.variables)
    assert InferenceNetwork(network.model, 64).num_weights == num_before - 3 * channels
