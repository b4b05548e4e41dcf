"""AdvProp for dense prediction: a small U-Net finds the pixels of a handwritten digit in noise.

    python examples/keras_segmentation.py [epochs]

The loss is per pixel, and so are the wrong classes that the targeted attack draws.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras import AdvPropModel, BranchModel, add_auxiliary_batch_norms
from efficientnet_advprop.keras2 import keras

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("epochs", type=int, nargs="?", default=3)
arguments = parser.parse_args()
layers = keras.layers
random = np.random.default_rng(0)
digits = np.kron(load_digits().images * (255 / 16), np.ones((1, 2, 2)))[..., None]
masks = (digits[..., 0] > 100).astype("int32")  # class 1: the digit
images = np.clip(digits + random.normal(0, 60, digits.shape), 0, 255).astype("float32")


def convolve(inputs, filters):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inputs)
    return layers.ReLU()(layers.BatchNormalization()(x))


inputs = layers.Input((16, 16, 1))
fine = convolve(layers.Rescaling(1 / 255)(inputs), 8)
coarse = convolve(layers.MaxPool2D()(fine), 16)
joined = layers.Concatenate()([fine, layers.UpSampling2D()(coarse)])
model = keras.Model(inputs, layers.Conv2D(2, 1)(convolve(joined, 8)))

dual = add_auxiliary_batch_norms(model)
trainer = AdvPropModel(dual, PGD(epsilon=4.0, num_steps=2, step_size=2.0, num_classes=2))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
trainer.fit(
    images[:1500],
    masks[:1500],
    epochs=arguments.epochs,
    validation_data=(images[1500:], masks[1500:]),
)
aux = BranchModel(dual, "aux")
aux.compile(loss=loss, metrics=["accuracy"])
print("through the auxiliary branch:", aux.evaluate(images[1500:], masks[1500:], verbose=0))
