"""Everything beside its weights that can change a model's logits: part of the key of its
results, so that no answer of another network is taken for its own.

    settings_of(EfficientNet("b0", normalization="caffe"))        # {"normalization": "caffe", …}
"""

import dataclasses
import hashlib
import json
from typing import Any, Mapping

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import KerasNetwork, Network

# Constructor arguments that act in training only, or that the weights' names and shapes
# tell; the activation is told as resolved.
_WITHOUT_EFFECT = {
    *("name", "num_classes", "width_coefficient", "depth_coefficient", "aux_branches"),
    *("dropout_rate", "survival_prob", "recomputed_blocks"),
    *("batch_norm_momentum", "batch_norm_group_size"),
    *("activation", "activation_alpha", "smooth_relu_gradient"),
}
# Likewise of the layers of Keras models, by the ends of their names.
_WITHOUT_EFFECT_IN_LAYERS = ("_initializer", "_regularizer", "_constraint", "momentum", "trainable")


def settings_of(model: Any) -> dict[str, Any]:
    """Returns the settings as JSON values; of a function, about which nothing is known, {}."""
    if isinstance(model, Network) and not isinstance(model, KerasNetwork):
        settings = {
            name: value for name, value in model.get_config().items() if name not in _WITHOUT_EFFECT
        }
        return as_json({**settings, "activation": dataclasses.asdict(model.activation)})
    if not isinstance(model, tf.Module):
        return {}
    # `submodules` comes in an order of its own making, the same for the same model.
    layers = [part for part in (model, *model.submodules) if isinstance(part, keras.layers.Layer)]
    digest = hashlib.sha256()
    for layer in layers:
        text = json.dumps(as_json(_config_of(layer)), sort_keys=True)
        digest.update(f"{type(layer).__name__} {layer.dtype_policy.name} {text};".encode())
    settings: dict[str, Any] = {"layers": digest.hexdigest()}
    if isinstance(model, KerasNetwork):
        settings |= {"normalization": model.normalization, "output": model.output_kind}
    return settings


def _config_of(layer: keras.layers.Layer) -> Any:
    try:
        return layer.get_config()
    except Exception:  # a class of the model's author, without one
        return {}


def as_json(value: Any) -> Any:
    """Returns `value` as JSON reads it back, without what has no effect on logits."""
    if isinstance(value, Mapping):
        return {
            str(name): as_json(item)
            for name, item in value.items()
            if not str(name).endswith(_WITHOUT_EFFECT_IN_LAYERS)
        }
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__  # such as a function, whose text would hold its address
