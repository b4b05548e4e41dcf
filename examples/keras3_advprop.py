"""AdvProp for a model of Keras 3, on any backend: three epochs on digits.

KERAS_BACKEND=jax python examples/keras3_advprop.py        # or torch, tensorflow
"""

import keras
import numpy as np
from sklearn import datasets

from efficientnet_advprop.keras3 import (
    PGD,
    AdvPropModel,
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
)

digits = datasets.load_digits()
images = np.repeat(digits.images[..., None] * (255.0 / 16.0), 3, axis=-1).astype("float32")
images = images.repeat(4, axis=1).repeat(4, axis=2)
train, test = slice(0, 512), slice(1280, None)

model = keras.applications.MobileNetV3Small(
    weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
)
dual = add_auxiliary_batch_norms(model)
for layer in dual.layers:  # few updates, so that statistics have to follow faster
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.8
trainer = AdvPropModel(dual, PGD(epsilon=16.0, step_size=16.0, num_classes=10))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
trainer.fit(images[train], digits.target[train], epochs=3,
            validation_data=(images[test], digits.target[test]))  # fmt: skip
plain = remove_auxiliary_batch_norms(dual)
plain.save("digits.keras")  # loads where this package is not installed
