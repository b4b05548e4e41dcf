"""AdvProp for MobileNetV3Small of Keras, on handwritten digits.

python examples/keras_mobilenet.py [epochs]
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras import (
    AdvPropModel,
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
)
from efficientnet_advprop.keras2 import keras

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("epochs", type=int, nargs="?", default=10)
epochs = parser.parse_args().epochs
digits = load_digits()
images = np.kron(digits.images * (255 / 16), np.ones((1, 4, 4)))  # 8 x 8 to 32 x 32 pixels
images = np.repeat(images[..., None], 3, axis=-1).astype("float32")
train, test = (images[:1500], digits.target[:1500]), (images[1500:], digits.target[1500:])

model = keras.applications.MobileNetV3Small(
    weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
)
for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.9  # Keras's 0.999 wants thousands of updates, and here are 470
dual = add_auxiliary_batch_norms(model)
trainer = AdvPropModel(dual, PGD(epsilon=4.0, num_steps=1, step_size=4.0, num_classes=10))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
trainer.fit(*train, epochs=epochs, validation_data=test, verbose=2)

plain = remove_auxiliary_batch_norms(dual)  # Keras's own model again, for anyone
plain.save("mobilenet_advprop.keras")
