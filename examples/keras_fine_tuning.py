"""Fine-tuning with AdvProp: a backbone with frozen lower layers, and a new head.

    # of MobileNetV2 without its top
    python examples/keras_fine_tuning.py WEIGHTS.h5 [epochs]
    python examples/keras_fine_tuning.py imagenet                 # Keras downloads them

Batch norms of frozen layers are frozen in both branches: they normalise with the
statistics that they came with. The layers above get an auxiliary branch that learns.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras import AdvPropModel, add_auxiliary_batch_norms
from efficientnet_advprop.keras2 import keras

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("weights", help="of MobileNetV2 without its top: a file, imagenet or none")
parser.add_argument("epochs", type=int, nargs="?", default=5)
arguments = parser.parse_args()
layers = keras.layers
weights = None if arguments.weights == "none" else arguments.weights
digits = load_digits()
images = np.kron(digits.images * (2 / 16) - 1, np.ones((1, 4, 4)))  # MobileNetV2 wants -1 to 1
images = np.repeat(images[..., None], 3, axis=-1).astype("float32")

backbone = keras.applications.MobileNetV2(
    weights=weights, include_top=False, pooling="avg", input_shape=(32, 32, 3)
)
for layer in backbone.layers[:100]:
    layer.trainable = False
model = keras.Sequential([backbone, layers.Dropout(0.2), layers.Dense(10)])

dual = add_auxiliary_batch_norms(model)
print(dual.summary_of_branches())
attack = PGD(epsilon=4.0, step_size=4.0, num_classes=10)  # in 255ths of the range
trainer = AdvPropModel(dual, attack, pixel_range=(-1.0, 1.0), clean_epochs=1)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
trainer.fit(
    images[:1500],
    digits.target[:1500],
    epochs=arguments.epochs,
    validation_data=(images[1500:], digits.target[1500:]),
)
